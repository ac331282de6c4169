"""Checkpoints: a folder that exists only when it is whole.

``checkpoints/step_000500/`` holds ``model.safetensors``, ``optimizer.pt``, ``state.json`` and the
files that a release needs. It is written aside, flushed, marked ``COMPLETE``, renamed, and only
then are older ones removed. Everything else of a resume is arithmetic: order, augmentation and
dropout are functions of the step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from wholegrain.errors import CheckpointError
from wholegrain.model.weights import load_weights, save_weights

MARKER = "COMPLETE"
_NAME = re.compile(r"step_(\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        match = _NAME.search(self.folder.name)
        return int(match.group(1)) if match else 0

    @property
    def weights(self) -> Path:
        """The weights, as safetensors."""
        return self.folder / "model.safetensors"

    def state(self) -> dict[str, Any]:
        """What was stored beside the tensors."""
        try:
            state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder}/state.json: cannot be read ({error}); remove the folder to fall "
                "back to the checkpoint before it"
            ) from error
        return dict(state)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Loads weights and, where given, the optimizer's state; nothing is executed.

        Raises:
            CheckpointError: a name is missing or left over, or a file is damaged.
        """
        load_weights(model, self.weights)
        if optimizer is None:
            return
        try:
            state = torch.load(self.folder / "optimizer.pt", weights_only=True, map_location="cpu")
            optimizer.load_state_dict(state)
        except (OSError, EOFError, ValueError, RuntimeError, KeyError, UnpicklingError) as error:
            raise CheckpointError(
                f"{self.folder}/optimizer.pt is damaged or of another config ({error}); resume "
                "with the config of the run, or remove the folder to fall back to the one before"
            ) from error


def save(
    run: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    keep: int,
    extra_files: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Writes the checkpoint of a step and removes those beyond the newest `keep`.

    Args:
        run: the run folder.
        step: optimizer steps done.
        model, optimizer: what to save.
        state: JSON-able facts, for instance the corpus fingerprint.
        keep: complete checkpoints to keep, this one included.
        extra_files: name to text of files that go along.
    """
    parent = run / "checkpoints"
    parent.mkdir(parents=True, exist_ok=True)
    final = parent / f"step_{step:06d}"
    aside = parent / f".{final.name}.partial-{os.getpid()}"
    for left_over in parent.glob(".step_*.partial-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    aside.mkdir()
    save_weights(model, aside / "model.safetensors")
    torch.save(optimizer.state_dict(), aside / "optimizer.pt")
    (aside / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
    for name, text in (extra_files or {}).items():
        (aside / name).write_text(text, encoding="utf-8")
    for path in aside.iterdir():
        _flush(path)
    (aside / MARKER).touch()
    _flush(aside / MARKER)
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    _flush(parent)
    for old in complete(run)[:-keep]:
        shutil.rmtree(old.folder)
    return Checkpoint(final)


def complete(run: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first."""
    found = [p.parent for p in (run / "checkpoints").glob(f"step_*/{MARKER}")]
    return sorted((Checkpoint(folder) for folder in found), key=lambda c: c.step)


def latest(run: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run."""
    found = complete(run)
    return found[-1] if found else None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
