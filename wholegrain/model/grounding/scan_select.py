"""ScanFormer's selection: which patches of the next finer scale are read.

Each patch of a scale speaks for its four children at the next. Training keeps all tokens and
replaces those that are left out by a constant one, so that a gate's gradient is known even where
the gate is shut: ``dLoss/dz = <dLoss/d(z e + (1 - z) c), e - c>``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Selector(nn.Module):
    """Logits of a patch's four children: Linear, GELU, Linear.

    The states inside a pre-norm transformer grow from block to block; they are normed here without
    weights.

    Args:
        width: D, channels of a patch.
        hidden: channels between.
        bias: of the logits at the start.
    """

    def __init__(self, width: int, hidden: int, bias: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.four = nn.Linear(hidden, 4)
        nn.init.normal_(self.four.weight, std=0.02)
        nn.init.constant_(self.four.bias, bias)

    def forward(self, states: Tensor) -> Tensor:
        """Logits (..., 4) of states (..., D), single precision at least.

        Children stand row by row: upper left, upper right, lower left, lower right.
        """
        normed = F.layer_norm(states, states.shape[-1:])
        logits: Tensor = self.four(F.gelu(self.hidden(normed)))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def of_children(values: Tensor, side: int) -> Tensor:
    """Four values a parent (T, side^2, 4) as one value a child (T, 4 side^2), row by row.

    Child (2i + a, 2j + b) has the value (2a + b) of parent (i, j).
    """
    blocks = values.unflatten(2, (2, 2)).unflatten(1, (side, side))
    return blocks.transpose(2, 3).flatten(1)


def of_parents(values: Tensor, side: int) -> Tensor:
    """A value a parent (T, side^2) as the same value for its four children (T, 4 side^2)."""
    return of_children(values[..., None].expand(-1, -1, 4), side)


def straight_through(logits: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """Gates of exactly 0 or 1 that learn as if they were soft (binary concrete, Maddison 2017).

    Forward ``[s >= 1/2]``, backward ``ds``, with ``s = sigmoid((logit + noise) / temperature)``.
    """
    soft = soft_gate(logits, temperature, noise)
    # The difference is exactly 0, so that no gate is off by a rounding.
    return (soft >= 0.5).to(soft.dtype) + (soft - soft.detach())


def soft_gate(logits: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """``sigmoid((logit + noise) / temperature)``."""
    moved = logits if noise is None else logits + noise
    return (moved / temperature).sigmoid()


def logistic_noise(logits: Tensor) -> Tensor:
    """Standard logistic noise of the logits' shape: a gate is then 1 with its own probability."""
    least = torch.finfo(logits.dtype).eps
    uniform = torch.rand_like(logits).clamp(least, 1 - least)
    return uniform.log() - (-uniform).log1p()


def training_gates(logits: Tensor, temperature: float, noise: bool, mix: bool) -> Tensor:
    """Gates of a training step.

    Args:
        logits: (T, n).
        temperature: of the soft gate.
        noise: whether gates are drawn rather than thresholded.
        mix: whether half of them, at random, are soft in the forward pass, too.
    """
    drawn = logistic_noise(logits) if noise else None
    gates = straight_through(logits, temperature, drawn)
    if not mix:
        return gates
    return torch.where(torch.rand_like(logits) < 0.5, soft_gate(logits, temperature, drawn), gates)
