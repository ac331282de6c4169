"""Which folders of reference numbers there are, and what one says."""

from __future__ import annotations

import glob
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

SHIPPED = Path(__file__).parents[3] / "shared" / "fixtures" / "xvlm"
FACTS = "fixture.json"


def within(entry: str) -> list[Path]:
    """Folders with a ``fixture.json``: `entry` itself, or up to two levels below; or a pattern."""
    places = [Path(found) for found in sorted(glob.glob(os.path.expanduser(entry)))]
    found = []
    for place in places:
        for pattern in (FACTS, f"*/{FACTS}", f"*/*/{FACTS}"):
            found += [path.parent.resolve() for path in sorted(place.glob(pattern))]
    return found


def named() -> list[str]:
    """The entries of $XVLM_FIXTURES, which separates them as $PATH does."""
    return [entry for entry in os.environ.get("XVLM_FIXTURES", "").split(os.pathsep) if entry]


def given_folders() -> list[Path]:
    """Every folder of $XVLM_FIXTURES, then those next to the working tree; each once."""
    found = [folder for entry in [*named(), str(SHIPPED)] for folder in within(entry)]
    return list(dict.fromkeys(found))


class Folder:
    """One folder of reference numbers; large files are read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = json.loads((path / FACTS).read_text())
        self.text: dict[str, Any] = self.facts["text_config"]
        self.config: dict[str, Any] = self.facts.get("config", {})
        self.vision: dict[str, Any] = self.facts.get("vision_config") or {}
        self._batch = load_file(path / "batch.safetensors")

    @cached_property
    def _expected(self) -> dict[str, Tensor]:
        return load_file(self.path / "expected.safetensors")

    def kinds(self) -> list[str]:
        """``image`` and ``region``, as far as there are batches of them."""
        return [kind for kind in ("image", "region") if f"{kind}.text_ids" in self._batch]

    def batch(self, kind: str) -> dict[str, Tensor]:
        """A batch's tensors by their names without its kind; what counts or points is long."""
        tensors = _of(kind, self._batch)
        return {n: t if t.is_floating_point() else t.long() for n, t in tensors.items()}

    def expected(self, kind: str) -> dict[str, Tensor]:
        """The reference's answers to a batch."""
        return _of(kind, self._expected)

    def gradients(self, kind: str) -> dict[str, Tensor]:
        """The reference's gradients of a batch's summed losses, by parameter."""
        with safe_open(self.path / "gradients.safetensors", framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(f"{kind}.")]  # noqa: SIM118
            return _of(kind, {name: file.get_tensor(name) for name in names})

    def checkpoint(self) -> Path:
        """The file in the published layout."""
        return self.path / "checkpoint.th"

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the checkpoint's tensors."""
        content = torch.load(self.checkpoint(), weights_only=True, mmap=True)
        return {name: tensor.shape for name, tensor in content.get("model", content).items()}


def _of(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{kind}."
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
