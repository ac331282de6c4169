"""Which of how many processes this is, as its launcher says it.

``torchrun``, ``accelerate launch`` and ``deepspeed`` put rank and world into variables of one
convention; ``srun`` has its own, of which the same are made here. Nothing is guessed: a set of
variables that is partial or impossible is refused, and several nodes never meet at localhost.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from wholegrain import once
from wholegrain.errors import ConfigError
from wholegrain.train.slurm_hosts import expand_counts, expand_hosts

LOGS = "WHOLEGRAIN_LOGS"
"""Folder that all ranks but the first write their output to."""
HEADER = "=== "
"""What the first line of a start begins with in such a file."""
_OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_OF_MEETING = ("MASTER_ADDR", "MASTER_PORT")
# The batch script, an interactive shell and the step that stands for what is outside of steps have
# numbers at the end of 32 bits.
_FIRST_SPECIAL_STEP = 0xFFFF_FFF0
# Below those that Linux hands out by itself (32768 on), where a port may be taken by chance.
_FIRST_PORT, _PORTS = 15_000, 17_000


@dataclass(frozen=True)
class Place:
    """One process among those of a run."""

    rank: int
    """Number of this process, from 0."""
    world: int
    """All processes."""
    local_rank: int
    """Number among the processes of its node."""
    local_world: int
    """Processes of its node."""
    started_by: str
    """``alone``, ``torchrun``, ``accelerate``, ``deepspeed``, ``srun``, or ``environment`` for
    another launcher of the same convention."""


def find_place(environ: MutableMapping[str, str]) -> Place:
    """The place that a launcher gave this process.

    Args:
        environ: completed in place where the launcher is srun: RANK, WORLD_SIZE, LOCAL_RANK,
            LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT then stand in it as torch wants them.

    Raises:
        ConfigError: a variable is missing or cannot be; names it, its value and the remedy.
    """
    if any(name in environ for name in _OF_RANKS):
        place = _of_convention(environ)
    elif is_step(environ):
        place = _of_step(environ)
    else:
        return Place(0, 1, 0, 1, "alone")
    if place.world > 1:
        for name, value in zip(
            (*_OF_RANKS, "LOCAL_WORLD_SIZE"),
            (place.rank, place.world, place.local_rank, place.local_world),
            strict=True,
        ):
            environ[name] = str(value)
    return place


def is_step(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process; a batch script and an interactive shell are no steps.

    Those have SLURM_PROCID too, and perhaps SLURM_NTASKS, but run once.
    """
    step = environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID", ""))
    if "SLURM_PROCID" not in environ or not step.isdecimal():
        return False
    return int(step) < _FIRST_SPECIAL_STEP


def write_to_own_log(place: Place, environ: MutableMapping[str, str]) -> Path | None:
    """Sends the output of all ranks but the first to a file of each.

    The file is ``rank-00003.log`` in the folder that WHOLEGRAIN_LOGS names; nothing happens
    without that. Output is appended below a line that tells this start from the others.

    Raises:
        ConfigError: the file cannot be written.
    """
    folder = environ.pop(LOGS, None)
    if folder is None or place.rank == 0:
        return None
    path = rank_log(Path(folder), place.rank)
    start = int(environ.get("SLURM_RESTART_COUNT", "0") or 0) + 1
    job = environ.get("SLURM_JOB_ID", "none")
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    header = (
        f"{HEADER}{now} job {job} start {start} rank {place.rank} of {place.world} on "
        f"{socket.gethostname()} ({environ.get('SLURMD_NODENAME', 'no node')}): "
        f"{' '.join(sys.argv)}\n"
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.write(descriptor, header.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise ConfigError(
            f"{LOGS} is {folder!r}: {path.name} cannot be written there ({error.strerror}); name a "
            "folder that every node can write to"
        ) from error
    sys.stdout.flush()
    sys.stderr.flush()
    once.keep_stderr(os.dup(2))
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    return path


def rank_log(folder: Path, rank: int) -> Path:
    """Where a rank other than the first writes."""
    return folder / f"rank-{rank:05d}.log"


def _of_convention(environ: Mapping[str, str]) -> Place:
    by = _launcher(environ)
    for name in _OF_RANKS:
        if name not in environ:
            given = ", ".join(n for n in _OF_RANKS if n in environ)
            raise ConfigError(
                f"{name} is not set, but {given} is: a launcher sets {', '.join(_OF_RANKS)}; set "
                "all of them, or unset all to run as one process"
            )
    rank, world, local_rank = (_number(environ, name) for name in _OF_RANKS)
    local_world = world
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):  # the latter is DeepSpeed's
        if name in environ:
            local_world = _number(environ, name)
            break
    place = Place(rank, world, local_rank, local_world, by)
    _refuse_impossible(place, ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if world > 1:
        for name in _OF_MEETING:
            if not environ.get(name):
                raise ConfigError(
                    f"{name} is not set, but WORLD_SIZE is {world}; set it to where rank 0 is met, "
                    "the same for all ranks"
                )
        _number(environ, "MASTER_PORT")
    return place


def _launcher(environ: Mapping[str, str]) -> str:
    if "ACCELERATE_MIXED_PRECISION" in environ:
        return "accelerate"
    if "TORCHELASTIC_RUN_ID" in environ:
        return "torchrun"
    return "deepspeed" if "CROSS_RANK" in environ else "environment"


def _of_step(environ: MutableMapping[str, str]) -> Place:
    world = _number(environ, "SLURM_STEP_NUM_TASKS")
    if world == 1:
        return Place(0, 1, 0, 1, "srun")
    nodes = _number(environ, "SLURM_STEP_NUM_NODES")
    tasks = expand_counts(_given(environ, "SLURM_STEP_TASKS_PER_NODE"))
    node = _number(environ, "SLURM_NODEID")
    if node >= len(tasks):
        raise ConfigError(
            f"SLURM_NODEID is {node}, but SLURM_STEP_TASKS_PER_NODE counts {len(tasks)} nodes; "
            "start the ranks with one srun"
        )
    rank, local_rank = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_LOCALID")
    place = Place(rank, world, local_rank, tasks[node], "srun")
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
    _refuse_impossible(place, names)
    if not environ.get("MASTER_ADDR"):
        hosts = expand_hosts(_given(environ, "SLURM_STEP_NODELIST"))
        environ["MASTER_ADDR"] = "127.0.0.1" if nodes == 1 else hosts[0]
    if not environ.get("MASTER_PORT"):
        job, step = _number(environ, "SLURM_JOB_ID"), _number(environ, "SLURM_STEP_ID")
        environ["MASTER_PORT"] = str(_FIRST_PORT + (job + step) % _PORTS)
    _number(environ, "MASTER_PORT")
    return place


def _given(environ: Mapping[str, str], name: str) -> str:
    if not environ.get(name):
        raise ConfigError(
            f"{name} is not set, although srun started this process; start the ranks with "
            "`srun --export=ALL`, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT"
        )
    return environ[name]


def _number(environ: Mapping[str, str], name: str) -> int:
    text = _given(environ, name) if name.startswith("SLURM_") else environ[name]
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(f"{name} is {text!r}; it must be a number, 0 or more")
    return int(text)


def _refuse_impossible(place: Place, names: tuple[str, str, str, str]) -> None:
    rank, world, local_rank, local_world = names
    if place.world < 1:
        raise ConfigError(f"{world} is {place.world}; a run has one process or more")
    if place.rank >= place.world:
        raise ConfigError(
            f"{rank} is {place.rank}, but {world} is {place.world}; ranks count from 0"
        )
    if place.local_rank >= place.local_world:
        raise ConfigError(
            f"{local_rank} is {place.local_rank}, but {local_world} is {place.local_world}; the "
            "ranks of a node count from 0"
        )
    if place.local_world > place.world:
        raise ConfigError(
            f"{local_world} is {place.local_world}, but {world} is {place.world}; a node has at "
            "most all of the ranks"
        )
