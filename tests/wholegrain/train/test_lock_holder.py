"""What can be known of whether a process still runs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from wholegrain.train import lock_holder
from wholegrain.train.lock_holder import Holder, read_holder, runs, this_process

OURS = this_process()


@pytest.fixture
def other() -> Iterator[Holder]:
    """Another process, as its own lock would name it."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    status = lock_holder._status(process.pid)
    assert status is not None
    yield replace(OURS, pid=process.pid, started=status.started)
    process.kill()
    process.communicate()


def test_a_process_of_this_machine_is_asked_after(other: Holder) -> None:
    assert runs(OURS, OURS) is True
    assert runs(other, OURS) is True
    assert runs(replace(other, started=other.started - 1), OURS) is False
    assert runs(replace(other, pid=2**22 + 1), OURS) is False
    assert runs(replace(other, pid=2**70), OURS) is False


def test_a_killed_process_that_still_writes_is_not_known_to_be_over(
    other: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = lock_holder._Status(other.started, over=True, threads=2)
    monkeypatch.setattr(lock_holder, "_status", lambda pid: status)
    assert runs(other, OURS) is None
    monkeypatch.setattr(lock_holder, "_status", lambda pid: status._replace(threads=1))
    assert runs(other, OURS) is False


def test_a_process_that_the_system_hides_is_not_known_to_be_over(
    other: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_holder, "_status", lambda pid: None)
    assert runs(other, OURS) is None

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert runs(other, OURS) is None


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, None),
        ({"restart": 1}, False),
        ({"restart": 2}, None),
        ({"restart": 3}, None),
        ({"restart": 1, "job": "7"}, None),
        ({"restart": 1, "cluster": "other"}, None),
    ],
)
def test_a_job_that_was_requeued_has_ended_before(
    changes: dict[str, object], known: bool | None
) -> None:
    ours = replace(OURS, cluster="here", job="991", restart=2)
    theirs = replace(ours, machine="elsewhere", **changes)
    assert runs(theirs, ours) is known
    outside = replace(OURS, job="", restart=1)
    assert runs(replace(outside, machine="elsewhere", restart=0), outside) is None


def test_what_slurm_says_is_written_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "here")
    monkeypatch.setenv("SLURM_JOB_ID", "991")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    holder = this_process()
    assert (holder.cluster, holder.job, holder.restart) == ("here", "991", 2)
    (tmp_path / "lock").write_text(holder.to_json())
    assert read_holder(tmp_path / "lock")[0] == holder
    assert str(holder).startswith(f"process {os.getpid()} on {holder.host}, Slurm job 991, started")


def test_a_user_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.setattr(lock_holder.getpass, "getuser", nobody)
    assert this_process().user == f"user {os.getuid()}"
