"""What a model that reads scale by scale has read, and where it stopped."""

from __future__ import annotations

import dataclasses

import torch
from rich.table import Table
from torch import Tensor

from wholegrain.errors import ConfigError
from wholegrain.model.grounding.fusion import Fused
from wholegrain.model.grounding.scan import ScanFormer
from wholegrain.model.multigrain import MultiGrainModel


class ScalesRead:
    """Shares over all expressions that were answered; called with each batch's fused texts."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._answers: list[Tensor] = []

    def __call__(self, fused: Fused) -> None:
        """Takes note of a batch."""
        if fused.kept is None:
            return
        kept = fused.kept.detach().float().cpu()
        last = torch.full((len(kept),), kept.shape[1] - 1)
        self._kept.append(kept)
        self._answers.append(last if fused.answers is None else fused.answers.cpu())

    def __bool__(self) -> bool:
        return bool(self._kept)

    def shares(self) -> list[tuple[float, float]]:
        """For each scale, coarse to fine: the mean share of its patches that an expression read,
        and the share of the expressions that were answered there.
        """
        kept, answers = torch.cat(self._kept), torch.cat(self._answers)
        return [
            (float(kept[:, scale].mean()), float((answers == scale).float().mean()))
            for scale in range(kept.shape[1])
        ]

    def table(self) -> Table:
        """The same, to be printed."""
        table = Table("scale", "patches read, %", "expressions answered, %")
        for number, (read, answered) in enumerate(self.shares(), start=1):
            table.add_row(str(number), f"{100 * read:.1f}", f"{100 * answered:.1f}")
        return table


def stop_at(model: MultiGrainModel, quality: float) -> None:
    """Has prediction stop at the scale whose expected IoU reaches `quality` (0 to 1).

    Raises:
        ConfigError: the model does not read scale by scale, or the value cannot be.
    """
    if not isinstance(model.fusion, ScanFormer):
        raise ConfigError(
            f"the model's fusion is `{model.config.fusion.kind}`, which reads all at once; an exit "
            "needs `scan` (ScanFormer)"
        )
    if not 0 <= quality <= 1:
        raise ConfigError(f"the expected IoU to stop at is {quality}; give 0 to 1")
    model.fusion.config = dataclasses.replace(model.fusion.config, exit_quality=quality)
