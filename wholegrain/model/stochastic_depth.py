"""Stochastic depth whose rate is data: blocks of different rates share one compiled form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wholegrain.model.indexing import take


class StochasticDepth(nn.Module):
    """Leaves out a branch for some samples of a batch: ``x m / (1 - p)``, m ~ Bernoulli(1 - p).

    The same as timm's ``DropPath``, which holds p as a Python number: a compiler then makes one
    program a block instead of one a kind of block.
    """

    keep: Tensor
    skips = True
    """Whether the branch may see fewer samples; not where they must meet something else."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_prob = float(rate)
        self.register_buffer("keep", torch.tensor(1.0 - rate), persistent=False)

    def forward(self, update: Tensor) -> Tensor:
        """The branch's output (B, ...), zero for the samples that go without it."""
        if not self.training:
            return update
        return update * self._weights(update)

    def add(self, states: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """``states + self(branch(states))`` for states (B, ...), with the same draws.

        On a CPU, where counting costs nothing, samples that go without the branch do not enter it.
        """
        if not self.training:
            return states + branch(states)
        weights = self._weights(states)
        if self.skips and states.device.type == "cpu" and not torch.compiler.is_compiling():
            rows = weights.flatten().nonzero().squeeze(1)
            scale = 1 / (1 - self.drop_prob)
            if len(rows) == len(states):
                return torch.add(states, branch(states), alpha=scale)
            # If all go without it, its weights still need a gradient, of zeros.
            if len(rows):
                return states.index_add(0, rows, branch(take(states, rows)), alpha=scale)
        return states + branch(states) * weights

    def _weights(self, states: Tensor) -> Tensor:
        """(B, 1, ...): 0, or ``1 / (1 - p)``."""
        shape = (len(states),) + (1,) * (states.ndim - 1)
        kept = torch.rand(shape, device=states.device) < self.keep
        return (kept / self.keep).to(states.dtype)


def share_stochastic_depth(backbone: nn.Module) -> None:
    """Puts `StochasticDepth` in the place of timm's ``DropPath`` everywhere in a backbone."""
    from timm.layers import DropPath

    for module in list(backbone.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, DropPath):
                setattr(module, name, StochasticDepth(child.drop_prob))
