"""A hang ends in a bounded time, and the log says where every rank stood."""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wholegrain.train.watchdog import HUNG, Watchdog

PROGRAM = Path(__file__).with_name("watchdog_program.py")
BOUND_S = 30  # for the slowest machine; what is waited for takes 2

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(repository: Path) -> Iterator[Start]:
    """Starts the program; whatever is still alive after the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_a_hang_in_python_ends_with_its_stacks(start: Start) -> None:
    process = start("python")
    _, log = process.communicate(timeout=BOUND_S)
    assert process.returncode == HUNG
    first, *stacks = log.splitlines()
    assert first == (
        "rank 3: step 18 has not finished for 0.6 s; the stacks of all its threads follow"
    )
    assert any("in hang_in_python" in line for line in stacks)


def test_a_hang_in_c_that_keeps_the_interpreter_ends_with_its_stacks(start: Start) -> None:
    process = start("c")
    _, log = process.communicate(timeout=BOUND_S)
    assert process.returncode == 1
    assert "in hang_in_c" in log
    assert "in watchdog_of_rank_3" in log


@pytest.mark.parametrize(("case", "status"), [("full", HUNG), ("fills", -signal.SIGALRM)])
def test_a_hang_whose_log_nobody_reads_ends(start: Start, case: str, status: int) -> None:
    assert start(case).wait(BOUND_S) == status


@pytest.mark.slow
def test_what_takes_its_time_is_left_alone(start: Start) -> None:
    process = start("busy")
    out, log = process.communicate(timeout=BOUND_S)
    assert (process.returncode, out, log) == (0, "done\n", "")


def test_what_may_take_longer_is_over_at_its_end(start: Start) -> None:
    process = start("short again")
    _, log = process.communicate(timeout=BOUND_S)
    assert process.returncode == HUNG
    assert log.startswith("rank 0: step 1 has not finished")


@pytest.mark.ranks
def test_ranks_that_wait_for_one_that_hangs_or_is_stopped_say_where(
    start: Start, tmp_path: Path
) -> None:
    out, _ = start("two ranks", tmp_path).communicate(timeout=4 * BOUND_S)
    assert out.splitlines() == [f"[{HUNG}, {HUNG}]", f"[{HUNG}, {-signal.SIGKILL}]"]
    said = {path.stem: path.read_text() for path in tmp_path.glob("*.log")}
    for case in ("hung", "stopped"):
        assert "rank 0: step 2 has not" in said[f"{case}-0"]
        assert "in all_reduce" in said[f"{case}-0"]
    assert "rank 1: step 2" in said["hung-1"]
    assert "in hang_in_python" in said["hung-1"]
    # The one that is stopped says nothing; it is killed when the others have ended.
    assert "rank 1" not in said["stopped-1"]


def test_a_beat_leaves_the_timer_to_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """To set it is a call of the system, which a step must not pay for."""
    callers: set[threading.Thread] = set()

    def set_timer(*given: object, **options: object) -> None:
        callers.add(threading.current_thread())

    monkeypatch.setattr(faulthandler, "dump_traceback_later", set_timer)
    with Watchdog(1800.0, 0) as dog:
        for step in range(100):
            dog.beat(f"step {step}")
    assert [thread.name for thread in callers] == ["watchdog"]


def test_errors_pass_through() -> None:
    before = time.monotonic()
    with pytest.raises(ValueError, match="ours"), Watchdog(1800.0, 0):
        raise ValueError("ours")
    assert time.monotonic() - before < BOUND_S
