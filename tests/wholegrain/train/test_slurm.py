"""The supervisor of a job among commands that stand for Slurm's: what it asks them, and decides."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from wholegrain.errors import ConfigError
from wholegrain.train.slurm_folder import own_run_folder
from wholegrain.train.slurm_job import Job, read_job
from wholegrain.train.slurm_restarts import Restarts, newest_step
from wholegrain.train.slurm_step import srun_command

JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_CPUS_PER_NODE": "16(x2)",
    "SLURM_GPUS_ON_NODE": "4",
}
# Runs the ranks' command in its own place, with what the test wants printed before it ends.
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > {folder}/srun.words
env > {folder}/srun.env
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> {folder}/asked
if [[ $1 == show ]]; then echo "JobId=7 JobState=$STATE Restarts=${{RESTARTS:-0}}"; exit; fi
[[ -z ${{REFUSAL:-}} ]] && exit
echo "$REFUSAL" >&2
exit 1
"""


@dataclass
class Cluster:
    """Stands for Slurm."""

    folder: Path
    repository: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def command(self, program: str, **more: str) -> tuple[list[str], dict[str, str]]:
        words = ["-m", "wholegrain.train.slurm", "-c", program, f"--out={self.run}"]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        path = f"{self.folder}/bin:{environ['PATH']}"
        environ |= {**JOB, "PATH": path, "PYTHONPATH": str(self.repository), "STATE": "RUNNING"}
        return [sys.executable, *words], environ | more

    def start(self, program: str, **more: str) -> subprocess.Popen[str]:
        command, environ = self.command(program, **more)
        return subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)

    def ends(self, program: str, **more: str) -> tuple[int, str]:
        started = self.start(program, **more)
        _, said = started.communicate(timeout=60)
        return started.returncode, said

    def asked(self) -> list[str]:
        path = self.folder / "asked"
        return path.read_text().splitlines() if path.exists() else []

    def checkpoint(self, step: int) -> str:
        """A program that leaves one behind."""
        folder = self.run / "checkpoints" / f"step_{step:06d}"
        made = f"folder = pathlib.Path({str(folder)!r}); folder.mkdir(parents=True, exist_ok=True)"
        marked = "(folder / 'COMPLETE').touch(); (folder.parents[1] / 'config.yaml').touch()"
        return f"import pathlib; {made}; {marked}; "


@pytest.fixture
def cluster(repository: Path, tmp_path: Path) -> Cluster:
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.write_text(text.format(folder=tmp_path))
        path.chmod(0o755)
    return Cluster(tmp_path, repository)


REQUEUE = ["show job --oneliner 7", "requeue 7"]


def test_a_run_that_is_done(cluster: Cluster) -> None:
    status, said = cluster.ends("print('trained')")
    assert status == 0 and not cluster.asked()
    assert "job 7, start 1: 8 ranks on 2 nodes (n[1-2]), 4 CPUs a rank" in said
    account = json.loads((cluster.run / "restarts.json").read_text())
    assert account == {"job": "7", "step": -1, "in_vain": 0, "interrupted": False}
    environ = (cluster.folder / "srun.env").read_text().splitlines()
    assert f"WHOLEGRAIN_LOGS={cluster.run}/logs" in environ and "PYTHONUNBUFFERED=1" in environ


def test_what_the_user_must_correct_ends_the_job(cluster: Cluster) -> None:
    status, _ = cluster.ends("raise SystemExit(2)")
    assert status == 2 and not cluster.asked()


@pytest.mark.parametrize("status", [1, 70, 71, 75])
def test_what_a_start_can_mend_is_requeued(cluster: Cluster, status: int) -> None:
    assert cluster.ends(f"raise SystemExit({status})")[0] == 75
    assert cluster.asked() == REQUEUE


def test_the_rank_that_failed_first_decides(cluster: Cluster) -> None:
    """Not the status of srun, which is that of ranks ended by it."""
    logs = cluster.run / "logs"
    logs.mkdir(parents=True)
    (cluster.run / "config.yaml").touch()
    before = "=== a start before\nold news\n"
    (logs / "rank-00003.log").write_text(f"{before}=== this start\nsegment of a shard is gone\n")
    lines = [
        "srun: error: n2: task 3: Exited with exit code 70",
        "srun: error: n1: tasks 0-2: Killed",
    ]
    program = f"import sys; print(*{lines!r}, sep='\\n', file=sys.stderr); sys.exit(143)"
    status, said = cluster.ends(program)
    assert status == 75 and cluster.asked() == REQUEUE
    assert "slurm: rank 3 failed first: Exited with exit code 70" in said
    assert "  rank-00003.log: segment of a shard is gone" in said and "old news" not in said
    said_of_user = lines[0].replace("70", "2")
    assert cluster.ends(program.replace(lines[0], said_of_user))[0] == 2
    assert cluster.asked() == REQUEUE


@pytest.mark.parametrize(
    ("state", "restarts"),
    [("COMPLETING", "0"), ("CANCELLED", "0"), ("UNKNOWN", ""), ("RUNNING", "1")],
)
def test_what_others_have_decided_stands(cluster: Cluster, state: str, restarts: str) -> None:
    """The last is a job that Slurm has requeued, and that runs again while this start ends."""
    assert cluster.ends("raise SystemExit(75)", STATE=state, RESTARTS=restarts)[0] == 75
    assert cluster.asked() == REQUEUE[:1]


def test_a_job_that_may_not_be_requeued(cluster: Cluster) -> None:
    refusal = "Requested operation is presently disabled for job 7"
    status, said = cluster.ends("raise SystemExit(75)", REFUSAL=refusal)
    assert status == 75
    assert f"job 7 cannot be requeued ({refusal}): submit the same line again" in said
    assert cluster.asked() == REQUEUE


def test_starts_without_progress_are_capped(cluster: Cluster) -> None:
    for restarts in range(4):
        more = {"SLURM_RESTART_COUNT": str(restarts), "RESTARTS": str(restarts)}
        status, said = cluster.ends("raise SystemExit(1)", **more)
        assert status == (75 if restarts < 3 else 1), said
    assert "4 starts in a row brought no new checkpoint, and WHOLEGRAIN_MAX_RESTARTS is 3" in said
    assert cluster.asked().count("requeue 7") == 3
    # Slurm's own requeue of a run that comes no further ends here too.
    more = {"SLURM_RESTART_COUNT": "4", "RESTARTS": "4"}
    assert cluster.ends("raise SystemExit(0)", **more)[0] == 75
    # Who submits again wants it again.
    assert cluster.ends("raise SystemExit(0)", SLURM_JOB_ID="8")[0] == 0


def test_progress_begins_the_count_anew(cluster: Cluster) -> None:
    for restarts in range(4):
        more = {"SLURM_RESTART_COUNT": str(restarts), "RESTARTS": str(restarts)}
        program = cluster.checkpoint(restarts) + "raise SystemExit(1)"
        assert cluster.ends(program, WHOLEGRAIN_MAX_RESTARTS="0", **more)[0] == 75
    assert cluster.ends("raise SystemExit(1)", WHOLEGRAIN_MAX_RESTARTS="0", **more)[0] == 1


WAITS = """
import os, pathlib, signal, sys, time
got = []
signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
pathlib.Path({ready!r}).write_text(str(os.getpid()))
while not got: time.sleep(0.01)
sys.exit(75)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signals_reach_the_ranks_as_a_wish_to_save(cluster: Cluster, number: int) -> None:
    ready = cluster.folder / "ready"
    started = cluster.start(WAITS.format(ready=str(ready)), WHOLEGRAIN_MAX_RESTARTS="1")
    await_file(ready)
    started.send_signal(number)
    _, said = started.communicate(timeout=60)
    assert (started.returncode, cluster.asked()) == (75, REQUEUE), said
    interrupted = json.loads((cluster.run / "restarts.json").read_text())["interrupted"]
    assert interrupted == (number == signal.SIGTERM)


def test_ranks_that_do_not_save_themselves_are_given_up(cluster: Cluster) -> None:
    """The time limit would end the job for good, where a requeue before it does not."""
    ready = cluster.folder / "ready"
    program = WAITS.format(ready=str(ready)).replace("while not got", "while True")
    started = cluster.start(program, WHOLEGRAIN_GRACE_S="0")
    await_file(ready)
    started.send_signal(signal.SIGUSR1)
    assert started.wait(60) == 75
    assert cluster.asked() == REQUEUE
    os.kill(int(ready.read_text()), signal.SIGKILL)


def await_file(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("flag", ["--dry-run", "--print-config", "--help"])
def test_what_trains_nothing_leaves_nothing(cluster: Cluster, flag: str) -> None:
    command, environ = cluster.command("import sys; sys.exit(1)")
    done = subprocess.run([*command, flag], env=environ, timeout=60, check=False)
    assert done.returncode == 1 and not cluster.asked() and not cluster.run.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"SLURM_JOB_ID": ""}, "error: SLURM_JOB_ID is not set, so this is no Slurm job; submit"),
        ({"WHOLEGRAIN_RANKS_PER_NODE": "0"}, "WHOLEGRAIN_RANKS_PER_NODE is '0'; it must be"),
        ({"WHOLEGRAIN_SRUN": "--mpi='x"}, 'WHOLEGRAIN_SRUN is "--mpi=\'x" (No closing quotation)'),
        ({"WHOLEGRAIN_MAX_RESTARTS": "many"}, "WHOLEGRAIN_MAX_RESTARTS is 'many'; it must be"),
    ],
)
def test_what_is_wrong_is_one_line(cluster: Cluster, more: dict[str, str], message: str) -> None:
    status, said = cluster.ends("0", **more)
    assert status == 2 and message in said and said.count("\n") == 1


# Its parts


@pytest.mark.parametrize(
    ("more", "ranks", "cpus"),
    [
        ({}, 4, 4),
        ({"SLURM_GPUS_PER_NODE": "a100:2"}, 2, 8),
        ({"SLURM_GPUS_PER_NODE": "0"}, 1, 16),
        ({"SLURM_GPUS_ON_NODE": ""}, 1, 16),
        ({"WHOLEGRAIN_RANKS_PER_NODE": "5"}, 5, 3),
        ({"SLURM_JOB_CPUS_PER_NODE": "16,2"}, 4, 1),
        ({"SLURM_GPUS": "8"}, 4, 4),
    ],
)
def test_how_many_ranks_a_node_has(more: dict[str, str], ranks: int, cpus: int) -> None:
    assert read_job(JOB | more) == Job("7", 2, ranks, cpus, 0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"SLURM_GPUS": "7"},
            "SLURM_GPUS is 7, which does not spread evenly: .* --gpus-per-node=N",
        ),
        ({"SLURM_JOB_NUM_NODES": "x"}, "SLURM_JOB_NUM_NODES is 'x'"),
        ({"SLURM_JOB_NUM_NODES": None}, "SLURM_JOB_NUM_NODES is not set"),
        ({"SLURM_JOB_CPUS_PER_NODE": "many"}, "list of counts is 'many'"),
    ],
)
def test_a_job_that_cannot_be(more: Mapping[str, str | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_job({k: v for k, v in (JOB | dict(more)).items() if v is not None})


def test_options_of_srun_and_its_python() -> None:
    environ = {"WHOLEGRAIN_SRUN": "--container-image='my image.sqsh' --cpus-per-task=2"}
    command = srun_command(Job("7", 2, 4, 3, 0), ["-m", "x"], environ | {"WHOLEGRAIN_PYTHON": "py"})
    assert command[:6] == [
        *("srun", "--kill-on-bad-exit=1", "--nodes=2", "--ntasks=8", "--ntasks-per-node=4"),
        "--cpus-per-task=3",
    ]
    assert command[-5:] == [
        *("--container-image=my image.sqsh", "--cpus-per-task=2", "py", "-m", "x"),
    ]


def test_the_run_folder_of_a_command(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("out: from_base\n")
    (tmp_path / "a.yaml").write_text("defaults: base.yaml\nrun: {steps: 1}\n")
    (tmp_path / "b.yaml").write_text("defaults: base.yaml\nout: from_b\n")
    given = ["-m", "pretrain", "--config", str(tmp_path / "a.yaml")]
    assert own_run_folder(given) == Path("from_base")
    assert own_run_folder([*given, "--config", str(tmp_path / "b.yaml")]) == Path("from_b")
    assert own_run_folder([*given, "--out=x", "--out=y"]) == Path("y")
    (tmp_path / "empty.yaml").touch()
    for config, message in (("empty", "has no `out`"), ("absent", "cannot be read")):
        with pytest.raises(ConfigError, match=f"{config}.yaml: {message}"):
            own_run_folder(["--config", str(tmp_path / f"{config}.yaml")])
    with pytest.raises(ConfigError, match="--config is not given"):
        own_run_folder(["-m", "pretrain"])


def test_a_folder_of_others_is_left_alone(tmp_path: Path) -> None:
    """The stage refuses it; until then nothing must have been written there."""
    (tmp_path / "restarts.json").touch()
    (tmp_path / "logs").mkdir()
    (tmp_path / "slurm-7.out").touch()
    assert own_run_folder([f"--out={tmp_path}"]) == tmp_path
    (tmp_path / "thesis.tex").touch()
    assert own_run_folder([f"--out={tmp_path}"]) is None
    assert own_run_folder([f"--out={tmp_path / 'thesis.tex'}"]) is None
    (tmp_path / "config.yaml").touch()
    assert own_run_folder([f"--out={tmp_path}"]) == tmp_path


def test_progress_is_a_complete_checkpoint(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == -1
    for name, whole in (("step_000004", True), ("step_000010", True), ("step_000020", False)):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if whole:
            (tmp_path / "checkpoints" / name / "COMPLETE").touch()
    (tmp_path / "checkpoints" / "step_000030.damaged").mkdir()
    (tmp_path / "checkpoints" / "step_000030.damaged" / "COMPLETE").touch()
    assert newest_step(tmp_path) == 10


def test_a_start_that_ended_without_a_word_counts(tmp_path: Path) -> None:
    assert Restarts.begin(tmp_path, "7", 0).in_vain == 0
    assert Restarts.begin(tmp_path, "7", 1).in_vain == 1
    assert Restarts.begin(tmp_path, "7", 2).in_vain == 2
    # Others ended it, which says nothing about the run.
    Restarts.begin(tmp_path, "7", 3).write(interrupted=True)
    assert Restarts.begin(tmp_path, "7", 4).in_vain == 3
    (tmp_path / "checkpoints" / "step_000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_000001" / "COMPLETE").touch()
    assert Restarts.begin(tmp_path, "7", 5).in_vain == 0
    (tmp_path / "restarts.json").write_text('{"job": "7"')
    assert Restarts.begin(tmp_path, "7", 6).in_vain == 0
