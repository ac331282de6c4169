"""Stochastic depth whose rate is data: blocks of different rates share one compiled form."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Leaves out a branch for some samples of a batch: ``x m / (1 - p)``, m ~ Bernoulli(1 - p).

    The same as timm's ``DropPath``, which holds p as a Python number: a compiler then makes one
    program a block instead of one a kind of block.
    """

    keep: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_prob = float(rate)
        self.register_buffer("keep", torch.tensor(1.0 - rate), persistent=False)

    def forward(self, update: Tensor) -> Tensor:
        """The branch's output (B, ...), zero for the samples that go without it."""
        if not self.training:
            return update
        shape = (len(update),) + (1,) * (update.ndim - 1)
        kept = torch.rand(shape, device=update.device) < self.keep
        return update * (kept / self.keep).to(update.dtype)


def share_stochastic_depth(backbone: nn.Module) -> None:
    """Puts `StochasticDepth` in the place of timm's ``DropPath`` everywhere in a backbone."""
    from timm.layers import DropPath

    for module in list(backbone.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, DropPath):
                setattr(module, name, StochasticDepth(child.drop_prob))
