"""Checkpoints: a folder that exists only when it is whole.

``checkpoints/step_000500/`` holds ``model.safetensors``, ``optimizer.pt``, ``state.json`` and the
files that a release needs. It is written aside, flushed, marked ``COMPLETE``, renamed, and only then
are older ones removed. Everything else of a resume is arithmetic: order, augmentation and dropout
are functions of the step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wholegrain.errors import CheckpointError

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
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"{self.folder}/optimizer.pt does not fit this run ({error}); resume with the "
                "config it was started with"
            ) from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads safetensors into a model, every name accounted for.

    Raises:
        CheckpointError: names the file and what is missing, left over or of another shape.
    """
    try:
        tensors = load_file(path)
    except Exception as error:  # the library raises its own type for damage, OSError for absence
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - tensors), sorted(tensors.keys() - expected)
    if missing or unexpected:
        raise CheckpointError(
            f"{path}: the model's configuration asks for {missing[:3]} (and {len(missing)} names "
            f"in all) that the file lacks; it has {unexpected[:3]} ({len(unexpected)} in all) "
            "besides; use the config stored beside it"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, the model's is "
                f"{tuple(expected[name].shape)}; use the config stored beside it"
            )
    model.load_state_dict(tensors)


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
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    save_file(tensors, aside / "model.safetensors")
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
