"""How often a job was started again without having come further."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "restarts.json"
_STEP = re.compile(r"step_(\d+)", re.ASCII)


def newest_step(run: Path) -> int:
    """Step of the newest complete checkpoint of a run folder; -1 without one.

    Reads names alone: a supervisor needs no torch.
    """
    steps = (
        int(found[1])
        for marker in run.glob("checkpoints/step_*/COMPLETE")
        if (found := _STEP.fullmatch(marker.parent.name))
    )
    return max(steps, default=-1)


@dataclass
class Restarts:
    """The account of one job, kept in its run folder across the job's starts."""

    run: Path
    job: str
    step: int
    """Of the newest checkpoint when this start began."""
    in_vain: int
    """Starts in a row before this one that brought no checkpoint."""

    @classmethod
    def begin(cls, run: Path, job: str, restarts: int) -> Restarts:
        """Opens the account at a start.

        A start that ended without a word, because its node died for instance, is judged here.

        Args:
            run: the run folder.
            job: Slurm's number of the job. Another one is another submission: its user wants it.
            restarts: how often Slurm has requeued it.
        """
        step, in_vain = newest_step(run), 0
        before = _read(run / FILE)
        if before.get("job") == job and restarts > 0:
            idle = step <= int(before["step"])
            in_vain = int(before["in_vain"]) + (not before["interrupted"]) if idle else 0
        account = cls(run, job, step, in_vain)
        account.write()
        return account

    def failed(self) -> int:
        """Starts in a row without a new checkpoint, this one counted; 0 where it brought one."""
        return 0 if newest_step(self.run) > self.step else self.in_vain + 1

    def write(self, interrupted: bool = False) -> None:
        """Stores the account.

        Args:
            interrupted: others end this start, so that it does not count as one in vain.
        """
        self.run.mkdir(parents=True, exist_ok=True)
        entries = {"job": self.job, "step": self.step, "in_vain": self.in_vain}
        aside = self.run / f"{FILE}.partial"
        aside.write_text(json.dumps({**entries, "interrupted": interrupted}), encoding="utf-8")
        aside.replace(self.run / FILE)


def _read(path: Path) -> dict[str, Any]:
    """Nothing of a file that is absent or damaged: the count then begins anew."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        types = {"job": str, "step": int, "in_vain": int, "interrupted": bool}
        if all(isinstance(entries[name], kind) for name, kind in types.items()):
            return dict(entries)
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return {}
