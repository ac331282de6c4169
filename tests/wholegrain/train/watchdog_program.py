"""What `test_watchdog` watches: CASE [FOLDER]."""

import ctypes
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from wholegrain.train.watchdog import Watchdog

PATIENCE_S, GRACE_S = 0.6, 0.8


def hang_in_python() -> None:
    while True:
        time.sleep(0.01)


def hang_in_c() -> None:
    # A PyDLL does not let go of the interpreter's lock, so that no other thread can run.
    ctypes.PyDLL(None).sleep(60)


def hang_while_nobody_reads() -> None:
    fill_log(room=0)
    hang_in_python()


def hang_while_the_log_fills(depth: int = 100) -> None:
    # Deep, so that the line fits into the page that is left and the stacks do not.
    if depth:
        hang_while_the_log_fills(depth - 1)
    fill_log(room=1)
    hang_in_python()


def fill_log(room: int) -> None:
    """Leaves `room` pages of the pipe that is our standard error."""
    pages = fcntl.fcntl(2, fcntl.F_GETPIPE_SZ) // 4096 - room
    for _ in range(pages):
        os.write(2, b"x" * 4096)


def alone(case: str) -> None:
    cases: dict[str, Callable[[], None]] = {
        "python": hang_in_python,
        "c": hang_in_c,
        "full": hang_while_nobody_reads,
        "fills": hang_while_the_log_fills,
    }
    with Watchdog(PATIENCE_S, 3, GRACE_S) as dog:
        dog.beat("step 17")
        dog.beat("step 18")
        cases[case]()


def busy() -> None:
    """Takes longer than the patience in all, but never at once, and once where that is allowed.

    Its patience outlasts a machine that stands still for two seconds.
    """
    patience_s = 4 * PATIENCE_S
    with Watchdog(patience_s, 0, GRACE_S) as dog:
        with dog.longer("validation", factor=4):
            dog.beat("batch 1")
            time.sleep(1.2 * patience_s)
        for step in range(12):
            dog.beat(f"step {step}")
            time.sleep(patience_s / 10)
        assert threading.active_count() == 2
    assert threading.active_count() == 1
    time.sleep(patience_s + GRACE_S)  # a timer that was left would end it now
    print("done")


def short_again() -> None:
    with Watchdog(PATIENCE_S, 0, GRACE_S) as dog:
        dog.beat("step 1")
        with dog.longer("validation", factor=100):
            pass
        hang_in_python()


def two_ranks(folder: Path) -> None:
    """Rank 1 hangs, then, in other processes, is stopped; rank 0 waits for it in a collective."""
    import torch
    import torch.distributed as dist

    from tests.forked_ranks import run_ranks

    def train(rank: int, stop: bool) -> None:
        # A log each, as ranks have: stacks are written in pieces, which mix in a shared one.
        log = folder / f"{'stopped' if stop else 'hung'}-{rank}.log"
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
        with Watchdog(2 * PATIENCE_S, rank, 2 * GRACE_S) as dog:
            for step in range(100):
                dog.beat(f"step {step}")
                if rank == 1 and step == 2:
                    if stop:
                        os.kill(os.getpid(), signal.SIGSTOP)
                    hang_in_python()
                dist.all_reduce(torch.zeros(1))

    for stop in (False, True):
        print(run_ranks(2, partial(train, stop=stop), folder / f"store-{stop}"), flush=True)


if __name__ == "__main__":
    case, *rest = sys.argv[1:]
    if case == "two ranks":
        two_ranks(Path(rest[0]))
    elif case == "busy":
        busy()
    elif case == "short again":
        short_again()
    else:
        alone(case)
