"""The ranks of a job as one step of srun, watched from the batch script."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from wholegrain.errors import ConfigError
from wholegrain.train.launch import LOGS
from wholegrain.train.slurm_job import Job

OPTIONS, PYTHON = "WHOLEGRAIN_SRUN", "WHOLEGRAIN_PYTHON"
# srun takes options from variables too. Those of the job that say how many tasks there are would
# contradict what is asked of it here, and those of an outer launcher would be believed by ranks.
_DROPPED = frozenset(
    {
        *("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_NTASKS_PER_GPU"),
        *("SLURM_CPUS_PER_TASK", "SLURM_CPUS_PER_GPU", "SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND"),
        *("SLURM_TRES_PER_TASK", "SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS"),
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", LOGS),
    }
)
_ENDED = re.compile(rb"srun: error: (\S+): tasks? (\d+)[-,\d]*: ([^\n]+)\n")
_STATUS = re.compile(r"Exited with exit code (\d+)")
_LONGEST_LINE = 4096


@dataclass(frozen=True)
class End:
    """How a step ended."""

    status: int
    """Exit status of the rank that failed first, which the others were ended for; 0 if all did
    well. A signal counts 128 and its number, or 1 where srun does not tell which."""
    rank: int | None = None
    """The rank that failed first."""
    words: str = ""
    """What srun says of it."""


def srun_command(job: Job, words: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """One task a rank on all nodes; a rank that fails ends the step.

    Args:
        job: the allocation.
        words: for Python, for instance ``-m pretrain --config FILE``.
        environ: WHOLEGRAIN_SRUN adds options, and the last of two that contradict counts;
            WHOLEGRAIN_PYTHON names the Python of the ranks, in a container for instance.
    """
    try:
        more = shlex.split(environ.get(OPTIONS, ""))
    except ValueError as error:
        raise ConfigError(
            f"{OPTIONS} is {environ[OPTIONS]!r} ({error}); close the quote"
        ) from error
    return [
        "srun",
        "--kill-on-bad-exit=1",
        f"--nodes={job.nodes}",
        f"--ntasks={job.ranks}",
        f"--ntasks-per-node={job.ranks_per_node}",
        f"--cpus-per-task={job.cpus_per_rank}",
        "--gpu-bind=none",  # a rank takes the GPU of its number among those of the node
        *more,
        environ.get(PYTHON) or sys.executable,
        *words,
    ]


class Step:
    """A running step; what it prints goes where the batch script prints."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], logs: str | None
    ) -> None:
        kept = {name: value for name, value in environ.items() if name not in _DROPPED}
        kept |= {"PYTHONUNBUFFERED": "1"} | ({LOGS: logs} if logs else {})
        self._first: End | None = None
        try:
            self._srun = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=kept
            )
        except OSError as error:
            raise ConfigError(
                f"{command[0]} cannot be started ({error.strerror}); add the folder of Slurm's "
                "commands to PATH"
            ) from error
        assert self._srun.stderr is not None
        self._reader = threading.Thread(
            target=self._pass_on, args=(self._srun.stderr,), daemon=True
        )
        self._reader.start()

    def ask_to_save(self) -> None:
        """Has all ranks save themselves and end, by SIGUSR1: SIGTERM to srun would kill them."""
        if self._srun.poll() is None:
            self._srun.send_signal(signal.SIGUSR1)

    def wait(self, seconds: float | None) -> End | None:
        """How it ended; None where it has not within so many seconds."""
        try:
            status = self._srun.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join()
        if status < 0:
            status = 128 - status
        return (self._first or End(status)) if status else End(0)

    def _pass_on(self, source: IO[bytes]) -> None:
        # The status of srun is that of ranks which it ended itself; the first one that failed is
        # known from what it prints alone.
        line = b""
        while chunk := os.read(source.fileno(), 1 << 16):
            sys.stderr.buffer.write(chunk)
            sys.stderr.buffer.flush()
            *lines, line = (line + chunk).split(b"\n")
            line = line[-_LONGEST_LINE:]
            for each in lines:
                found = _ENDED.search(each + b"\n")
                if found and self._first is None:
                    self._first = _read_end(int(found[2]), found[3].decode(errors="replace"))


def _read_end(rank: int, words: str) -> End:
    found = _STATUS.match(words)
    if found:
        return End(int(found[1]), rank, words)
    # "Killed", "Segmentation fault (core dumped)" and so on, in the words of the C library.
    named = words.partition(" (")[0]
    numbers = [n for n in signal.valid_signals() if signal.strsignal(n) == named]
    return End(128 + numbers[0] if numbers else 1, rank, words)
