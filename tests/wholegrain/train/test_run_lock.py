"""Two runs never write to one folder, and a dead one keeps no folder from its successor."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.programs import wait_until
from wholegrain.errors import ConfigError
from wholegrain.train.lock_holder import Holder, this_process
from wholegrain.train.run_lock import LOCK, LockLost, RunLock

PROGRAM = Path(__file__).with_name("run_lock_program.py")
BEAT_S = 0.1
STALE_S = 5.0  # of those that must be found alive, also on a machine that pauses
SHORT_S = 1.0  # where it must be waited for


class Run:
    """Another process with a lock of its own."""

    def __init__(self, folder: Path, machine: str = "", **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), str(BEAT_S), str(STALE_S), machine],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, command: str) -> str:
        self.tell(command)
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def start(
    folder: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Run]]:
    """Starts another process on the folder; all of them end with the test."""
    monkeypatch.setenv("PYTHONPATH", str(repository))
    runs: list[Run] = []

    def begin(machine: str = "", **environment: str) -> Run:
        runs.append(Run(folder, machine, **environment))
        return runs[-1]

    yield begin
    for run in runs:
        run.end()


def lock_of(
    folder: Path, say: Callable[[str], None] = lambda line: None, stale_s: float = STALE_S
) -> RunLock:
    return RunLock(folder, beat_s=BEAT_S, stale_s=stale_s, say=say)


def left_behind(folder: Path, age_s: float = 0.0, **changes: object) -> Holder:
    """A lock file that nobody touches any more, by default of another machine."""
    holder = replace(this_process(), **{"machine": "elsewhere", "host": "node7"} | changes)
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(holder.to_json())
    then = time.time() - age_s
    os.utime(folder / LOCK, (then, then))
    return holder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_lock_says_who_holds_it_and_goes_with_the_block(folder: Path) -> None:
    with RunLock(folder) as lock:
        written = json.loads((folder / LOCK).read_text())
        assert written["pid"] == os.getpid()
        lock.check()
        assert names(folder) == [LOCK]
    assert names(folder) == []
    with pytest.raises(LockLost, match="does not hold"):
        lock.check()


def test_a_live_run_of_this_machine_is_refused_for_at_once(
    folder: Path, start: Callable[..., Run]
) -> None:
    other = start(SLURM_JOB_ID="991")
    assert other.ask("acquire") == "done"
    # However long it has not been heard of: that it is alive is known.
    then = time.time() - 10 * STALE_S
    os.utime(folder / LOCK, (then, then))
    with pytest.raises(ConfigError) as refused:
        RunLock(folder, say=pytest.fail).acquire()
    said = str(refused.value)
    assert said.startswith(f"{folder} is in use by process {other.process.pid} on ")
    assert ", Slurm job 991, started by " in said
    assert "last sign of life came" in said
    assert said.endswith("wait for it or end it, or give another --out")
    assert "\n" not in said
    assert other.ask("check") == "done"
    assert other.ask("release") == "done"
    with lock_of(folder):
        assert other.ask("acquire").startswith(f"ConfigError: {folder} is in use by process")


def test_the_lock_of_a_killed_run_is_taken_over_at_once(
    folder: Path, start: Callable[..., Run]
) -> None:
    other = start()
    assert other.ask("acquire") == "done"
    other.process.send_signal(signal.SIGKILL)
    # Not waited for: what is left of it still has its number.
    stat = Path(f"/proc/{other.process.pid}/stat")
    wait_until(lambda: stat.read_text().split()[2] == "Z", "the killed run is over")
    said: list[str] = []
    with lock_of(folder, said.append) as lock:
        lock.check()
        assert names(folder) == [LOCK]
    assert said[-1] == f"{folder / LOCK}: taken over from a run that has ended"


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"started": 1}])
def test_a_number_that_means_another_process_by_now_does_not_hold(
    folder: Path, changes: dict[str, int]
) -> None:
    left_behind(folder, machine=this_process().machine, **changes)
    with RunLock(folder) as lock:
        lock.check()


def test_a_job_that_slurm_requeued_takes_its_own_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "991")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    left_behind(folder, restart=1)
    with RunLock(folder) as lock:
        lock.check()


def test_two_runs_of_one_start_of_a_job_are_two_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[..., Run]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "991")
    assert start("elsewhere").ask("acquire") == "done"
    with pytest.raises(ConfigError, match="in use"):
        lock_of(folder).acquire()


def test_a_live_run_elsewhere_is_known_by_its_next_touch(
    folder: Path, start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = start("elsewhere")
    assert other.ask("acquire") == "done"
    # This host's clock has no say.
    ahead = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: ahead)
    said: list[str] = []
    with pytest.raises(ConfigError, match="in use by process"):
        lock_of(folder, said.append).acquire()
    assert not any("taken over" in line for line in said)
    touched = (folder / LOCK).stat().st_mtime_ns
    wait_until(lambda: (folder / LOCK).stat().st_mtime_ns > touched, "it goes on touching the lock")
    assert other.ask("check") == "done"


def test_a_run_elsewhere_that_has_been_silent_is_taken_over(folder: Path) -> None:
    left_behind(folder, age_s=121)
    with RunLock(folder) as lock:
        lock.check()


def test_silence_is_waited_for(folder: Path) -> None:
    began = time.monotonic()
    left_behind(folder)
    said: list[str] = []
    with lock_of(folder, said.append, SHORT_S) as lock:
        assert time.monotonic() - began > 0.9 * SHORT_S
        waits, takes = said
        assert "on node7" in waits
        assert re.search(r"waiting up to [01] s for another$", waits)
        assert takes.endswith("taken over from a run that has ended")
        lock.check()


@pytest.mark.parametrize("text", ["", "[]", '{"pid": 1}', "\xff", '{"token": "../../x"}'])
def test_a_lock_that_makes_no_sense_is_judged_by_its_age(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / LOCK).write_text(text, encoding="latin-1")
    began = time.monotonic()
    then = time.time() - SHORT_S + 0.3
    os.utime(folder / LOCK, (then, then))
    with lock_of(folder, stale_s=SHORT_S) as lock:
        assert time.monotonic() - began > 0.2
        lock.check()


def test_a_token_names_no_path(folder: Path) -> None:
    left_behind(folder, age_s=200, token="../../outside")
    with RunLock(folder) as lock:
        lock.check()
    assert names(folder) == []


def test_a_run_that_slept_through_its_loss_must_not_write(
    folder: Path, start: Callable[..., Run]
) -> None:
    other = start("elsewhere")
    assert other.ask("acquire") == "done"
    other.process.send_signal(signal.SIGSTOP)
    with lock_of(folder, stale_s=SHORT_S) as lock:
        other.process.send_signal(signal.SIGCONT)
        said = other.ask("check")
        assert said.startswith(f"LockLost: {folder / LOCK}: the run folder was taken over by pro")
        assert f"process {os.getpid()} on" in said
        assert other.ask("release") == "done"
        lock.check()
    assert names(folder) == []


def test_a_lock_that_was_removed_is_lost(folder: Path) -> None:
    with lock_of(folder) as lock:
        (folder / LOCK).unlink()
        with pytest.raises(LockLost, match=r"\.lock: the lock is gone"):
            lock.check()


def test_storage_that_is_away_for_a_moment_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    # Its own thread first touches the lock after `beat_s`, which nobody waits for here.
    with RunLock(folder, beat_s=600, stale_s=60) as lock, monkeypatch.context() as patch:
        patch.setattr("wholegrain.train.run_lock.read_holder", fail)
        lock.check()
        later = time.monotonic() + 61
        patch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(LockLost, match="cannot be read"):
            lock.check()


@pytest.mark.parametrize("before", ["nothing", "dead", "dead taker"])
@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_start_at_once_one_wins(
    folder: Path, start: Callable[..., Run], before: str, links: bool
) -> None:
    if before != "nothing":
        dead = left_behind(folder, age_s=200)
    if before == "dead taker":
        left_over = replace(this_process(), pid=2**22 + 1)
        (folder / f"{LOCK}.after-{dead.token}").write_text(left_over.to_json())
    runs = [start("" if links else "no links") for _ in range(5)]
    for run in runs:
        run.tell("acquire")
    answers = [run.answer() for run in runs]
    assert sorted(answer == "done" for answer in answers) == [False] * 4 + [True]
    assert all("in use by process" in answer for answer in answers if answer != "done")
    winner = runs[answers.index("done")]
    assert winner.ask("check") == "done"
    assert names(folder) == [LOCK]
    assert winner.ask("release") == "done"
    assert names(folder) == []


def test_a_folder_that_cannot_be_locked_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be locked \(Not a directory\)"):
        RunLock(tmp_path / "file" / "run").acquire()
