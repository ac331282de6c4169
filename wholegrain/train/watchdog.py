"""A run that hangs ends by itself, and its log says where every rank stood."""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, TracebackType
from typing import NamedTuple

HUNG = 70
"""Exit status of a rank that hung: starting the run again is right."""

_STDERR = 2


class _Beat(NamedTuple):
    at: float
    doing: str
    allowed: float


class Watchdog:
    """Within the block, ends this process when what it is doing has taken longer than allowed.

    It then prints one line and the stacks of all threads to standard error, waits for `grace_s`,
    and exits with status 70. One rank that hangs keeps the others waiting in a collective; they
    run out of patience at about the same time, and the grace lets them print their stacks too
    before a launcher, which ends all ranks when the first one has ended, reaches them.

    A thread of Python's cannot see a hang in C code that never lets go of the interpreter. For that
    case a timer of C code is set by the same thread: half a grace after the patience it prints the
    stacks and exits, with status 1.

    Args:
        patience_s: seconds without a beat after which this rank counts as hung. A process that was
            suspended for longer counts as hung too.
        rank: of this process, shown.
        grace_s: seconds between the stacks and the exit.
    """

    def __init__(self, patience_s: float, rank: int, grace_s: float = 10.0) -> None:
        self.patience_s, self.rank, self.grace_s = patience_s, rank, grace_s
        self._last = _Beat(time.monotonic(), "the start", patience_s)
        # Shorter than what the timer is set for beyond the patience, so that a beat sets it anew in
        # time.
        self._interval = min(patience_s / 10, grace_s / 2)
        self._left = threading.Event()
        # The name appears in the stacks, which nothing else labels when the timer prints them.
        code = Watchdog._watch.__code__.replace(co_name=f"watchdog_of_rank_{rank}")
        watch = FunctionType(code, globals())
        self._thread = threading.Thread(target=watch, args=(self,), name="watchdog", daemon=True)

    def beat(self, doing: str) -> None:
        """Says that all before is done and `doing`, for instance ``step 18``, begins."""
        self._last = _Beat(time.monotonic(), doing, self._last.allowed)

    @contextmanager
    def longer(self, doing: str, factor: float = 10.0) -> Iterator[None]:
        """Within the block `doing` may take `factor` times the patience, beats or none."""
        before = self._last
        self._last = _Beat(time.monotonic(), doing, factor * self.patience_s)
        try:
            yield
        finally:
            self._last = _Beat(time.monotonic(), before.doing, before.allowed)

    def __enter__(self) -> Watchdog:
        self.beat("the start")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while True:
            last = self._last
            left = last.at + last.allowed - time.monotonic()
            if left <= 0:
                break
            faulthandler.dump_traceback_later(left + self.grace_s / 2, exit=True, file=_STDERR)
            if self._left.wait(min(left, self._interval)):
                return
        self._give_up(last)

    def _give_up(self, last: _Beat) -> None:
        faulthandler.cancel_dump_traceback_later()
        # Where nobody reads the log, printing the stacks waits for ever and keeps the interpreter's
        # lock meanwhile, so that no thread can end the process. The kernel's alarm does.
        signal.alarm(math.ceil(2 * self.grace_s))
        threading.Thread(target=_exit_after, args=(self.grace_s,), daemon=True).start()
        line = (
            f"rank {self.rank}: {last.doing} has not finished for {last.allowed:g} s; "
            "the stacks of all its threads follow\n"
        )
        # Not through sys.stderr: the thread that hangs may hold its lock.
        os.write(_STDERR, line.encode())
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)


def _exit_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(HUNG)
