"""What a cluster does to a job, done to a real pretraining run of two nodes.

Whatever happens, the job comes back by itself, once, and the run's losses are in the end those of a
run that nothing happened to, to the bit.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.slurm import cluster
from tests.slurm.cluster import Slurm, kill, processes, submit, until, variables

pytestmark = [pytest.mark.slow, pytest.mark.ranks]

# More than are taken while the cluster acts, on a fast machine too.
STEPS = 160
# What a clock measures differs between any two runs.
COMPARED = ("step", "split", "loss", "contrastive", "matching", "gradient_norm", "learning_rate")


def losses(out: Path) -> list[dict[str, Any]]:
    """Lines of metrics, without one that is being written."""
    try:
        text = (out / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    entries = [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]
    return [{name: entry.get(name) for name in COMPARED} for entry in entries]


class Job:
    """A run of the shipped script on both nodes, and what is done to it."""

    def __init__(self, slurm: Slurm, repository: Path, folder: Path, *words: object) -> None:
        self.slurm, self.out, self.log = slurm, folder / "run", folder / "job.log"
        self.starts = 1
        self._repository = repository
        self._words = [*words, f"--out={self.out}", "--run.deepspeed=null"]

    def submit(self, **more: str) -> None:
        script = self._repository / "slurm" / "pretrain_4m.sh"
        self.id = submit(
            *(self.slurm, self._repository, self.log, "--nodes=2", "--gpus-per-node=1", script),
            *self._words,
            **more,
        )

    def said(self) -> str:
        logs = [self.log, *sorted(self.out.glob("logs/*.log"))]
        return "\n".join(f"--- {p.name}\n{p.read_text()}" for p in logs if p.exists())

    def begins(self) -> None:
        """Waits for the ranks of this start."""
        started = f"start {self.starts}: "
        until(lambda: started in self.said() and all(self.ranks()), 60, self.said)

    def advances(self) -> None:
        """Waits until this start has come further than any before it."""
        log = self.out / "logs" / "rank-00001.log"
        head = f" start {self.starts} rank 1 of 2 on "
        until(lambda: log.exists() and head in log.read_text(), 60, self.said)
        before = self.step()
        until(lambda: self.step() >= before + 3, 90, self.said)

    def step(self) -> int:
        """The last one that is done."""
        return max((int(line["step"]) for line in losses(self.out)), default=0)

    def comes_back(self) -> None:
        """Waits until the job runs once more, after one requeue and no more."""
        self.slurm.start_soon(self.id, self.starts, self.said)
        self.starts += 1

    def ranks(self) -> tuple[list[int], list[int]]:
        """Processes of each rank, itself first, then what it started."""
        ranks = []
        for number in ("0", "1"):
            found = processes(self.slurm, SLURM_JOB_ID=self.id, SLURM_PROCID=number)
            found = [one for one in found if "SLURM_STEP_ID" in variables(one)]
            ranks.append(sorted(found, key=lambda one: cluster.parent_of(one) in found))
        return ranks[0], ranks[1]


@pytest.fixture
def job(
    slurm: Slurm,
    repository: Path,
    tiny_pretrain: dict[str, Any],
    write_config: Callable[..., Path],
    tmp_path: Path,
) -> Any:
    changes = {"run.steps": STEPS, "run.save_every": 5, "data.validation": None}
    # A loader, so that it can hang, and little patience with that.
    config = write_config(tiny_pretrain, {**changes, "data.workers": 1, "run.patience_s": 6})
    job = Job(slurm, repository, tmp_path, "--config", config)
    yield job
    slurm.command("scancel", job.id, status=None)
    slurm.idle()


def undisturbed(launch: Callable[..., str], folder: Path) -> Path:
    out = folder / "undisturbed"
    given = ("-m", "pretrain", "--config", folder / "config.yaml", f"--out={out}")
    launch("--standalone", "--nproc-per-node", 2, *given, program="torchrun")
    return out


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    name = f"checkpoints/step_{STEPS:06d}/model.safetensors"
    expected = load_file(other / name)
    for key, value in load_file(one / name).items():
        assert torch.equal(value, expected[key]), key


def test_a_job_survives_all_that_ends_it(
    job: Job, slurm: Slurm, launch: Callable[..., str], tmp_path: Path
) -> None:
    job.submit()
    # The warning before the time limit.
    job.advances()
    slurm.command("scancel", "--batch", "--signal=USR1", job.id)
    job.comes_back()
    assert "is requeued and goes on from its newest checkpoint" in job.said()
    # A job of higher priority.
    job.advances()
    urgent = slurm.command(
        *("sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive"),
        *("--output=/dev/null", "--wrap=true"),
    )
    job.comes_back()
    assert slurm.ended(urgent)["JobState"] == "COMPLETED"
    # One rank dies, of a lack of memory for instance.
    job.advances()
    kill(*job.ranks()[1])
    job.comes_back()
    assert "rank 1 failed first: Killed" in job.said()
    # An operator, before the first step.
    job.begins()
    slurm.command("scontrol", "requeue", job.id)
    job.comes_back()
    # A rank that stands still, then the process that loads its data. Both are stopped from
    # outside: nothing in the program knows of it.
    job.advances()
    kill(job.ranks()[1][0], signal=signal.SIGSTOP)
    job.comes_back()
    assert "rank 0 failed first: Exited with exit code 70" in job.said()
    job.advances()
    kill(*job.ranks()[1][1:], signal=signal.SIGSTOP)
    job.comes_back()
    assert job.said().count("failed first: Exited with exit code 70") == 2
    # A node without power.
    job.advances()
    slurm.kill_node("n2")
    until(lambda: slurm.facts(job.id)["Restarts"] == "7", 60, job.said)
    slurm.start_node("n2")
    job.comes_back()
    facts = slurm.ended(job.id)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "7"), job.said()
    assert (job.out / "release" / "model.safetensors").exists()
    assert_same_run(job.out, undisturbed(launch, tmp_path))
    heads = (job.out / "logs" / "rank-00001.log").read_text()
    starts = [n for n in range(1, 10) if f" start {n} rank 1 of 2 on " in heads]
    # The one that the operator ended may have had no log yet.
    assert {*starts} | {4} == {*range(1, 9)}


def test_a_preemption_with_grace_loses_no_step(job: Job, slurm: Slurm) -> None:
    job.submit(SBATCH_PARTITION="spot")
    job.advances()
    urgent = slurm.command(
        *("sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive"),
        *("--output=/dev/null", "--wrap=true"),
    )
    job.comes_back()
    (saved,) = set(re.findall(r"stopped at step (\d+)", job.said()))  # in both ranks' logs
    assert (job.out / "checkpoints" / f"step_{int(saved):06d}").exists()
    job.advances()
    assert slurm.ended(urgent)["JobState"] == "COMPLETED"
    facts = slurm.ended(job.id)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), job.said()
    assert [line["step"] for line in losses(job.out)] == [*range(1, STEPS + 1)]


def test_starts_that_come_no_further_are_capped(job: Job, slurm: Slurm) -> None:
    job.submit(WHOLEGRAIN_MAX_RESTARTS="1")
    for _ in range(2):
        # Before it has begun.
        job.begins()
        kill(*job.ranks()[0])
        if job.starts == 1:
            job.comes_back()
    facts = slurm.ended(job.id)
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "1"), job.said()
    assert "2 starts in a row brought no new checkpoint" in job.said()
    assert not losses(job.out)


def test_a_cancelled_job_stays_away(job: Job, slurm: Slurm) -> None:
    job.submit()
    job.advances()
    slurm.command("scancel", job.id)
    facts = slurm.ended(job.id)
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0"), job.said()
    slurm.idle()
    assert slurm.facts(job.id)["JobState"] == "CANCELLED"
