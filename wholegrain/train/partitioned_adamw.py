"""AdamW over whole parameters, or over the pieces of them that ZeRO leaves to a rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

Limits = tuple[float, float]


@dataclass(frozen=True)
class Piece:
    """Where part of a parameter lies in a flat partition."""

    name: str
    """Of the parameter."""
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    """First element of the flattened parameter."""
    place: int
    """Where that element lies in the partition."""
    count: int
    """Elements, at least one."""

    def of(self, flat: Tensor) -> Tensor:
        """The piece (count,) of a tensor that is laid out like the partition."""
        return flat.narrow(0, self.place, self.count)


class PartitionedAdamW(torch.optim.AdamW):
    """torch's fused AdamW, for DeepSpeed too.

    ZeRO lays the parameters of a group end to end, cuts the result into one flat partition a rank,
    and hands those to the optimizer. AdamW's arithmetic is the same there, but its count of updates
    is a parameter's own, and a parameter that takes no part in an update must stay as it is. So
    here a partition is updated piece by piece, in the one fused call that whole parameters have.
    What aligns the pieces is never touched.

    `grad_scale` and `found_inf` are read as in torch's: the gradients are divided by the one, and
    where the other is not 0 nothing changes.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(groups, fused=True, **settings)
        self.pieces: dict[Tensor, Sequence[Piece]] = {}
        """By flat partition; parameters that are no key are whole."""
        self.limits: dict[Tensor | str, Limits] = {}
        """Bounds that values are cut to after each update, by whole parameter and
        by name of pieces."""
        self.left_out: frozenset[str] = frozenset()
        """Names of pieces that take no part in the next update."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates what has a gradient."""
        flats = [flat for group in self.param_groups for flat in group["params"]]
        if not any(flat in self.pieces for flat in flats):
            super().step(closure)
            for whole in flats:
                if whole in self.limits:
                    whole.clamp_(*self.limits[whole])
            return
        for group in self.param_groups:
            for flat in group["params"]:
                self._update(flat, group)

    def moments(self, flat: Tensor) -> dict[str, Tensor]:
        """A partition's moments, laid out like it, and its pieces' counts of updates (P,)."""
        state: dict[str, Tensor] = self.state[flat]
        if not state:
            # Before the first update of an engine that has loaded nothing.
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(flat), torch.zeros_like(flat)
            state["steps"] = torch.zeros(len(self.pieces[flat]), device=flat.device)
        return state

    def _update(self, flat: Tensor, group: Mapping[str, Any]) -> None:
        state = self.moments(flat)
        kept = [
            (number, piece)
            for number, piece in enumerate(self.pieces[flat])
            if piece.name not in self.left_out
        ]
        steps = state["steps"].unbind()
        adamw(
            *([piece.of(values) for _, piece in kept] for values in (flat, flat.grad)),  # type: ignore[arg-type, misc]
            *([piece.of(state[name]) for _, piece in kept] for name in ("exp_avg", "exp_avg_sq")),
            max_exp_avg_sqs=[],
            state_steps=[steps[number] for number, _ in kept],
            fused=True,
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for _, piece in kept:
            if piece.name in self.limits:
                piece.of(flat).clamp_(*self.limits[piece.name])
