"""Signals that reach a job's supervisor at a bad moment: as it requeues, or on a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""
# `on_show` and `on_requeue` are what happens while the controller is asked.
SCONTROL = """#!/bin/bash
echo "$1" >> {folder}/asked
if [[ $1 == show ]]; then
  {on_show}
  echo "JobId=7 JobState=RUNNING Restarts=${{SLURM_RESTART_COUNT:-0}}"
else
  {on_requeue}
fi
"""
# Ranks that wait until they are asked to save themselves.
WAITS = """
import os, pathlib, signal, sys, time
got = []
signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
{before}
pathlib.Path({ready!r}).write_text("x")
while not got: time.sleep(0.01)
sys.exit(75)
"""


@dataclass
class Job:
    """A supervisor among commands that stand for Slurm's."""

    folder: Path
    repository: Path

    @property
    def account(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "run" / "restarts.json").read_text()))

    @property
    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text().split()

    def commands(self, on_show: str = ":", on_requeue: str = ":") -> None:
        (self.folder / "bin").mkdir(exist_ok=True)
        given = {"folder": self.folder, "on_show": on_show, "on_requeue": on_requeue}
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL.format(**given))):
            path = self.folder / "bin" / name
            path.write_text(text)
            path.chmod(0o755)

    def start(
        self, program: str, entry: tuple[str, ...] = ("-m", "wholegrain.train.slurm"), **more: str
    ) -> subprocess.Popen[str]:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        path = f"{self.folder}/bin:{environ['PATH']}"
        environ |= {"PATH": path, "PYTHONPATH": str(self.repository)}
        environ |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"} | more
        command = [sys.executable, *entry, "-c", program, f"--out={self.folder / 'run'}"]
        return subprocess.Popen(
            # A group of its own, whose number is the supervisor's.
            command,
            env=environ,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def waiting(self, before: str = "", **more: Any) -> subprocess.Popen[str]:
        """A supervisor whose ranks are up and wait."""
        ready = self.folder / "ready"
        started = self.start(WAITS.format(before=before, ready=str(ready)), **more)
        until = time.monotonic() + 60
        while not ready.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        return started


@pytest.fixture
def job(repository: Path, tmp_path: Path) -> Job:
    made = Job(tmp_path, repository)
    made.commands()
    return made


def end(started: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = started.communicate(timeout=60)
    return started.returncode, said


@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_starts_in_vain_are_capped_though_slurm_ends_each_that_is_requeued(
    job: Job, name: str
) -> None:
    """``scontrol requeue`` has the node signal the batch script before it has answered."""
    job.commands(on_requeue=f"kill -{name} $PPID; sleep 0.3")
    for restarts in range(3):
        count = {"SLURM_RESTART_COUNT": str(restarts), "WHOLEGRAIN_MAX_RESTARTS": "2"}
        status, said = end(job.start("raise SystemExit(1)", **count))
        assert status == (75 if restarts < 2 else 1), said
        assert not job.account["interrupted"]
    assert "3 starts in a row brought no new checkpoint" in said
    assert job.asked.count("requeue") == 2


def test_signals_count_again_where_the_job_is_not_requeued(job: Job) -> None:
    """They are asked once more while the refusal is said: the reader of the log sends one."""
    job.commands(on_requeue="echo disabled >&2; exit 1")
    program = (
        "import os, signal, sys\n"
        "from wholegrain.train import slurm\n"
        "say = slurm._say\n"
        "def told(line):\n"
        "    say(line)\n"
        "    if 'cannot be requeued' in line: os.kill(os.getpid(), signal.SIGTERM)\n"
        "slurm._say = told\n"
        "sys.exit(slurm.main())\n"
    )
    status, said = end(job.start("raise SystemExit(1)", entry=("-c", program)))
    assert status == 1, said
    assert job.account["interrupted"]


def test_a_signal_to_the_group_does_not_end_the_question(job: Job) -> None:
    job.commands(on_show="kill -TERM -- -$PPID; sleep 0.3")
    status, said = end(job.start("raise SystemExit(75)"))
    assert (status, job.asked) == (75, ["show", "requeue"]), said


def test_ranks_are_asked_to_save_where_the_account_cannot_be_written(job: Job) -> None:
    in_the_way = job.folder / "run" / "restarts.json.partial"
    started = job.waiting(before=f"pathlib.Path({str(in_the_way)!r}).mkdir()")
    started.send_signal(signal.SIGTERM)
    status, said = end(started)
    assert (status, job.asked) == (75, ["show", "requeue"]), said
    assert "Traceback" not in said


def test_a_signal_within_the_handling_of_another(job: Job) -> None:
    """The inner one renames the file that the outer one is about to rename."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from wholegrain.train import slurm\n"
        "replace, calls = Path.replace, []\n"
        "def signalled(path, target):\n"
        "    calls.append(path)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return replace(path, target)\n"
        "Path.replace = signalled\n"
        "sys.exit(slurm.main())\n"
    )
    started = job.waiting(entry=("-c", program))
    started.send_signal(signal.SIGTERM)
    status, said = end(started)
    assert (status, job.asked) == (75, ["show", "requeue"]), said
    assert "Traceback" not in said
    assert job.account["interrupted"]
