"""``python -m wholegrain.train.slurm -m pretrain --config FILE ...``: a stage as a Slurm job.

A batch script ends with this. It starts the ranks with srun on all nodes of the job, has them save
themselves when the time limit or a preemption is near, and puts the job back into the queue until
the run is done: always while it comes further, a few times while it does not. What the user must
correct ends the job.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from wholegrain.errors import ConfigError, run_cli
from wholegrain.train.launch import HEADER, rank_log
from wholegrain.train.slurm_folder import own_run_folder
from wholegrain.train.slurm_job import RUNNING, Job, read_job, requeue, state_of
from wholegrain.train.slurm_restarts import Restarts
from wholegrain.train.slurm_step import End, Step, srun_command

MAX_RESTARTS, GRACE = "WHOLEGRAIN_MAX_RESTARTS", "WHOLEGRAIN_GRACE_S"
DONE, USER_ERROR, TRY_AGAIN = 0, 2, 75
_TAIL_BYTES, _TAIL_LINES = 16_384, 25
_LOOK_S = 5.0
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def main(argv: Sequence[str] | None = None) -> int:
    """Supervises the ranks of a job; returns the exit status of the job."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        raise ConfigError(
            "name what the ranks run: python -m wholegrain.train.slurm -m pretrain --config FILE"
        )
    return Supervisor(read_job(os.environ), words, os.environ).run()


class Supervisor:
    """One start of a job."""

    def __init__(self, job: Job, words: Sequence[str], environ: Mapping[str, str]) -> None:
        self.job, self.folder = job, own_run_folder(words)
        self._command = srun_command(job, words, environ)
        self._environ = environ
        self._most = _setting(environ, MAX_RESTARTS, 3)
        self._grace = _setting(environ, GRACE, 240)
        self._step: Step | None = None
        self._account: Restarts | None = None
        self._told: signal.Signals | None = None
        self._until: float | None = None
        """When a step that was asked to save itself is given up."""

    def run(self) -> int:
        """Starts the ranks, waits for them, and decides."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        logs = None
        if self.folder is not None:
            self._account = Restarts.begin(self.folder, self.job.id, self.job.restarts)
            if self._account.in_vain > self._most:
                return self._give_up(self._account.in_vain, TRY_AGAIN)
            (self.folder / "logs").mkdir(exist_ok=True)
            logs = str((self.folder / "logs").resolve())
        _say(
            f"{time.strftime('%Y-%m-%d %H:%M:%S')} job {self.job.id}, start "
            f"{self.job.restarts + 1}: {self.job.ranks} ranks on {self.job.nodes} nodes "
            f"({self._environ.get('SLURM_JOB_NODELIST')}), {self.job.cpus_per_rank} CPUs a rank"
        )
        self._step = Step(self._command, self._environ, logs)
        if self._told:  # before there was a step
            self._step.ask_to_save()
        return self._decide(self._wait(self._step))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._told = signal.Signals(number)
        if self._until is None:
            self._until = time.monotonic() + self._grace
        if self._step:
            self._step.ask_to_save()
        if number == signal.SIGTERM and self._account:
            # The ranks' save is worth more than the account: a disk that is full or gone must not
            # end their supervisor. Nor must a second signal, whose handler runs within this one's
            # and may rename the file that this one has just written.
            with suppress(OSError):
                self._account.write(interrupted=True)

    def _wait(self, step: Step) -> End | None:
        """How the step ended; None where it was asked to and does not."""
        while True:
            end = step.wait(_LOOK_S)
            if end is not None:
                return end
            if self._until is not None and time.monotonic() > self._until:
                return None

    def _decide(self, end: End | None) -> int:
        if end is None:
            _say(
                f"the ranks did not save themselves within {self._grace} s of {self._name()}; they "
                "are given up"
            )
            end = End(TRY_AGAIN)
        if end.status in {DONE, USER_ERROR} or self.folder is None:
            return end.status
        self._show(end)
        return self._start_again(end.status)

    def _start_again(self, status: int) -> int:
        """Requeues the job, unless others did, or it comes no further."""
        state = state_of(self.job)
        if state != RUNNING:
            # Cancelled, or requeued by Slurm itself: a preemption, a node that failed, an operator.
            _say(f"job {self.job.id} is {state}: what becomes of it is Slurm's decision")
            return status
        assert self._account is not None
        in_vain = self._account.failed()
        if in_vain > self._most and self._told is not signal.SIGTERM:
            return self._give_up(in_vain, status)
        # Slurm ends a start that is requeued by SIGTERM, like one that it preempts. Handled, it
        # would set down that others ended this start, and no start in vain would ever count.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        reason = requeue(self.job.id)
        if reason is not None:
            for number in _SIGNALS:
                signal.signal(number, self._on_signal)
            _say(
                f"job {self.job.id} cannot be requeued ({reason}): submit the same line again to "
                "go on, with --requeue to have that done"
            )
            return status
        _say(f"job {self.job.id} is requeued and goes on from its newest checkpoint")
        return TRY_AGAIN

    def _give_up(self, in_vain: int, status: int) -> int:
        _say(
            f"{in_vain} starts in a row brought no new checkpoint, and {MAX_RESTARTS} is "
            f"{self._most}: job {self.job.id} ends; read this log and {self.folder}/logs, then "
            "submit again"
        )
        return status

    def _show(self, end: End) -> None:
        """Who failed, and the end of its log where that is another file than this."""
        if end.status == TRY_AGAIN or end.rank is None:
            return
        _say(f"rank {end.rank} failed first: {end.words}")
        if end.rank == 0 or self.folder is None:
            return
        path = rank_log(self.folder / "logs", end.rank)
        for line in _tail(path):
            print(f"  {path.name}: {line}", file=sys.stderr, flush=True)

    def _name(self) -> str:
        return self._told.name if self._told else "a signal"


def _say(line: str) -> None:
    print(f"slurm: {line}", file=sys.stderr, flush=True)


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError as error:
        return [f"(cannot be read: {error.strerror})"]
    of_this_start = text.rpartition(f"\n{HEADER}")[2]
    return of_this_start.splitlines()[-_TAIL_LINES:]


def _setting(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, str(default))
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(f"{name} is {text!r}; it must be a number, 0 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(run_cli(main))
