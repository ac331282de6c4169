"""Visual concepts as the cross encoder reads them: keys and values, projected once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Memory:
    """Keys and values of every cross layer over a set of visual concepts.

    Patches are projected once an image, however many concepts and passes read them.
    """

    cls: list[tuple[Tensor, Tensor]]
    """For each layer, key and value (M, D) of the concepts' own vectors."""
    patches: list[tuple[Tensor, Tensor]]
    """For each layer, key and value (N, P, D) of the images' patches."""
    patch_row: Tensor
    """Row (M,) of `patches` that each concept reads."""
    mask: Tensor
    """bool (M, P): patches inside the concept's box."""
    visible: int | None = None
    """How many entries of `mask` are True, where the host knows."""

    @property
    def images(self) -> int:
        """N."""
        return len(self.patches[0][0])

    def rows(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value (R, 1 + P, D) of concepts `rows` (R,)."""
        image = self.patch_row[rows]
        key, value = (
            torch.cat([cls[rows, None], patches[image]], dim=1)
            for cls, patches in zip(self.cls[layer], self.patches[layer], strict=True)
        )
        return key, value

    def seen(self, rows: Tensor) -> Tensor:
        """Bool (R, 1 + P): the concept's vector is always visible."""
        mask = self.mask[rows]
        return torch.cat([mask.new_ones(len(rows), 1), mask], dim=1)
