"""MMA's pairs (Yang et al., CVPR 2024): two bottlenecks, one a modality, joined by one map.

At a place of modality m with input x the host's output becomes ``y + alpha A_m(x)``,

    A_m(x) = U_m relu(S relu(D_m x)),

with D_m: d_m to r, S: r to r and U_m: r to d_m, all with bias. S belongs to both modalities. It is
the only thing that they share: in the forward pass no feature of one meets one of the other, so
that images and texts can still be encoded apart; in the backward pass both teach S.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from wholegrain.model.adapters.base import Adapter


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(states: Tensor, factor: float) -> Tensor:
    """The states themselves, whose gradient is multiplied by `factor` on its way back."""
    result: Tensor = _ScaledGradient.apply(states, factor)
    return result


class Side(nn.Module):
    """One modality's part of a pair: D_m and U_m."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)


class Pair(nn.Module):
    """S and the sides that go through it.

    Weights start Kaiming-normal over the fan-out (gain sqrt 2), biases at zero, as in the authors'
    release; the outputs' weights too, so that a fresh pair moves its host by ``alpha O(1)``.

    Args:
        widths: d_m, channels of each side's states, by the side's name.
        rank: r.
        zero_up: whether U starts at zero instead, so that a fresh pair leaves the host as it is.
    """

    def __init__(self, widths: Mapping[str, int], rank: int, zero_up: bool = False) -> None:
        super().__init__()
        self.shared = nn.Linear(rank, rank)
        self.sides = nn.ModuleDict({name: Side(width, rank) for name, width in widths.items()})
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(part.bias)
        if zero_up:
            for name in widths:
                nn.init.zeros_(self.side(name).up.weight)

    def side(self, name: str) -> Side:
        """The part of one modality."""
        side = self.sides[name]
        assert isinstance(side, Side)
        return side

    def forward(self, name: str, states: Tensor) -> Tensor:
        """``A_m(x)`` (..., d_m) of states x (..., d_m), for the side of that name."""
        side = self.side(name)
        update: Tensor = side.up(F.relu(self.shared(F.relu(side.down(states)))))
        return update


def pair_parameters(widths: Mapping[str, int], rank: int) -> int:
    """Weights and biases of a pair: ``sum_m (2 r d_m + d_m + r) + r^2 + r``."""
    sides = sum(2 * rank * width + width + rank for width in widths.values())
    return sides + rank * rank + rank


def side_macs(width: int, rank: int) -> int:
    """Multiplications a token at one place: ``2 d_m r + r^2``."""
    return 2 * width * rank + rank * rank


@dataclass(frozen=True)
class _Branch:
    """What is added at one site."""

    pair: Pair
    side: str
    norm: nn.Module | None
    """The host's own norm that the pair reads through; None where it reads the block's input."""


class PairedAdapter(Adapter):
    """Pairs and the sites of a host that they add to.

    Attributes:
        alpha: how much of a pair's output is added; may be changed after training, and is kept in
            releases made after that. At 0 the host's
            values are its own, while the pairs still take part in the backward pass, with zero
            gradients.
        gradient_trick: whether the gradient is multiplied by 1 / alpha where it enters a pair and
            by alpha where it leaves: the pair's weights then get 1 / alpha times their true
            gradient, its input the true one. It stands for a rate 1 / alpha times as large, so it
            matters to SGD and hardly to AdamW. Without effect where alpha is 0.
        pairs: in the order of the configuration.
    """

    kind: ClassVar[str] = "mma"
    needs_text: ClassVar[bool] = False
    tokenwise: ClassVar[bool] = True

    def __init__(self, alpha: float, gradient_trick: bool) -> None:
        super().__init__()
        self.alpha, self.gradient_trick = alpha, gradient_trick
        self.pairs = nn.ModuleList()
        self._branches: dict[str, _Branch] = {}
        self._handles: list[RemovableHandle] = []

    @property
    def active(self) -> bool:
        """Whether a pass is added to."""
        return self.enabled and (self.alpha != 0 or torch.is_grad_enabled())

    @property
    def setting(self) -> tuple[float, bool, bool]:
        """What an output depends on besides the weights."""
        return self.alpha, self.enabled, bool(self._handles)

    def add_at(self, site: str, states: Tensor, output: Tensor) -> Tensor:
        """``y + alpha A(norm(x))`` at a site, what its hook makes of the host's output.

        For those that run a host's blocks by themselves, so that no hook is called.

        Args:
            site: name, such as ``vision.block.7``.
            states: x (..., d), the input of the block.
            output: y (..., d), to which is added, in its own precision.
        """
        if not self.active:
            return output
        branch = self._branches[site]
        # The norm is computed again rather than taken from the host's pass: a value kept between
        # two hooks would go astray where blocks are computed anew in the backward pass, and where
        # samples without a branch (stochastic depth) do not enter the norm.
        inputs = states if branch.norm is None else branch.norm(states)
        if self.gradient_trick and self.alpha:
            inputs = scale_gradient(inputs, self.alpha)
        update: Tensor = branch.pair(branch.side, inputs)
        if self.gradient_trick and self.alpha:
            update = scale_gradient(update, 1 / self.alpha)
        return torch.add(output, update, alpha=self.alpha).to(output.dtype)

    def sites(self) -> tuple[str, ...]:
        """The names of the sites that are added to."""
        return tuple(self._branches)

    def remove(self) -> None:
        """Takes the hooks out of the host, for good."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _beside(
        self, site: str, pair: Pair, side: str, module: nn.Module, norm: nn.Module | None
    ) -> None:
        """Adds to the output of a module whose first argument is the pair's input."""
        self._branches[site] = _Branch(pair, side, norm)
        # First among the module's hooks: one that records outputs then sees the sum.
        hook = _Beside(self, site)
        self._handles.append(module.register_forward_hook(hook, prepend=True))

    def _within(self, site: str, pair: Pair, side: str, entry: nn.Module, norm: nn.Module) -> None:
        """Adds to what a post-norm block's last norm reads.

        Args:
            entry: a module inside the block whose first argument is the pair's input.
            norm: the last norm.
        """
        self._branches[site] = _Branch(pair, side, None)
        hook = _Within(self, site)
        self._handles.append(entry.register_forward_pre_hook(hook.enter))
        self._handles.append(norm.register_forward_pre_hook(hook.leave))


class _Beside:
    """Forward hook of a block."""

    def __init__(self, adapter: PairedAdapter, site: str) -> None:
        self.adapter, self.site = adapter, site

    def __call__(self, _: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not self.adapter.active:
            return None
        return self.adapter.add_at(self.site, given[0], output)


class _Within:
    """Two hooks inside a post-norm block: the pair's input is noted, then added before the norm.

    Both modules lie within what is computed anew as one in the backward pass, in this order, so a
    note is never older than the pass that reads it. Every thread has notes of its own.
    """

    def __init__(self, adapter: PairedAdapter, site: str) -> None:
        self.adapter, self.site = adapter, site
        self.noted = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"adapter": self.adapter, "site": self.site}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.noted = threading.local()

    def enter(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        if self.adapter.active:
            self.noted.states = given[0]

    def leave(self, _: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor] | None:
        if not self.adapter.active:
            return None
        states: Tensor = self.noted.states
        self.noted.states = None
        return (self.adapter.add_at(self.site, states, given[0]),)
