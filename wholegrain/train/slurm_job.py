"""A Slurm job as its batch script sees it, and the three things asked of the controller."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from wholegrain.errors import ConfigError
from wholegrain.train.slurm_hosts import expand_counts

RANKS = "WHOLEGRAIN_RANKS_PER_NODE"
"""Ranks of a node, in place of one for each GPU."""
RUNNING, REQUEUED = "RUNNING", "REQUEUED"
_ATTEMPTS, _PAUSE_S, _ANSWER_S = 5, 2.0, 60.0  # a busy controller answers later
_FINAL = ("disabled", "not permitted", "denied", "invalid job id")


@dataclass(frozen=True)
class Job:
    """An allocation and how many ranks fit it."""

    id: str
    nodes: int
    ranks_per_node: int
    cpus_per_rank: int
    restarts: int
    """How often Slurm has put the job back into its queue."""

    @property
    def ranks(self) -> int:
        """Of all nodes."""
        return self.nodes * self.ranks_per_node


def read_job(environ: Mapping[str, str]) -> Job:
    """The job of a batch script's environment.

    Raises:
        ConfigError: not within a job, or a count in it cannot be; names the variable.
    """
    if not environ.get("SLURM_JOB_ID"):
        raise ConfigError(
            "SLURM_JOB_ID is not set, so this is no Slurm job; submit a script of slurm/ with "
            "sbatch, or start without Slurm: torchrun --standalone --nproc-per-node N -m ..."
        )
    nodes = _count(environ, "SLURM_JOB_NUM_NODES", environ.get("SLURM_JOB_NUM_NODES", ""))
    ranks = _ranks(environ, nodes)
    counts = expand_counts(environ.get("SLURM_JOB_CPUS_PER_NODE", "1"))
    restarts = environ.get("SLURM_RESTART_COUNT") or "0"
    return Job(
        environ["SLURM_JOB_ID"],
        nodes,
        ranks,
        max(1, min(counts) // ranks),
        _count(environ, "SLURM_RESTART_COUNT", restarts, least=0),
    )


def _ranks(environ: Mapping[str, str], nodes: int) -> int:
    if RANKS in environ:
        return _count(environ, RANKS, environ[RANKS])
    # What was asked for; an exclusive node has all of its GPUs allocated.
    asked = environ.get("SLURM_GPUS_PER_NODE", "").rpartition(":")[2]
    if asked:
        return max(1, _count(environ, "SLURM_GPUS_PER_NODE", asked, least=0))
    here = environ.get("SLURM_GPUS_ON_NODE")
    if not here:
        return 1
    ranks = _count(environ, "SLURM_GPUS_ON_NODE", here)
    total = environ.get("SLURM_GPUS", "").rpartition(":")[2]
    if total and total != str(nodes * ranks):
        raise ConfigError(
            f"SLURM_GPUS is {environ['SLURM_GPUS']}, which does not spread evenly: this one of "
            f"{nodes} nodes has {ranks}; submit with --gpus-per-node=N"
        )
    return ranks


def _count(environ: Mapping[str, str], name: str, text: str, least: int = 1) -> int:
    if text.isascii() and text.isdecimal() and int(text) >= least:
        return int(text)
    if name not in environ:
        raise ConfigError(f"{name} is not set, though this is a Slurm job; submit with sbatch")
    raise ConfigError(f"{name} is {environ[name]!r}; it must be a number, {least} or more")


def state_of(job: Job) -> str:
    """What the controller says of this start of a job, ``UNKNOWN`` where it gives no answer.

    ``RUNNING`` is the one that a start can be requeued from. A job that is being cancelled,
    preempted or requeued by others is ``COMPLETING``; one that was requeued is, and may even run
    again already while this start still ends: its node did not answer for a while.
    """
    said = _ask("scontrol", "show", "job", "--oneliner", job.id)
    facts = dict(re.findall(r"(JobState|Restarts)=(\w+)", said.stdout))
    state = facts.get("JobState", "UNKNOWN")
    return REQUEUED if facts.get("Restarts", str(job.restarts)) != str(job.restarts) else state


def requeue(job: str) -> str | None:
    """Puts the job that this runs in back into the queue, under the same number.

    Returns:
        Why it could not be done; None where it was.
    """
    reason = "no answer"
    for number in range(_ATTEMPTS):
        if number:
            time.sleep(_PAUSE_S * number)
        said = _ask("scontrol", "requeue", job)
        if said.returncode == 0:
            return None
        reason = (said.stderr or said.stdout).strip().replace("\n", "; ") or reason
        if any(sign in reason.lower() for sign in _FINAL):
            break
    return reason


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
            check=False,
            # Signals to the batch script's group must not end a question that is half asked.
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
