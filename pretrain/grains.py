"""Losses by grain: what whole images, regions and objects cost, each for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from wholegrain.data.batch import GRAINS, OBJECT, REGION
from wholegrain.objectives.gather import Summed, world

BOXED = (GRAINS[REGION], GRAINS[OBJECT])
"""The grains whose concepts are asked for their boxes."""


class Terms(NamedTuple):
    """The N terms of a loss, each of which belongs to a concept; without gradient."""

    values: Tensor
    """(N,)."""
    concept: Tensor
    """(N,) the concept of each."""
    counted: Tensor | None = None
    """bool (N,), False at terms that are left out; None takes them all."""
    grains: tuple[str, ...] = GRAINS
    """The grains that have such a loss at all."""

    @classmethod
    def of(cls, summed: Summed, concept: Tensor, grains: tuple[str, ...] = GRAINS) -> Terms:
        """The terms of a sum."""
        return cls(summed.terms, concept, summed.counted, grains)


def grain_means(terms: Mapping[str, Terms], grain: Tensor, *, across: bool) -> dict[str, Tensor]:
    """The mean of each loss's terms by grain: ``contrastive/image``, ``matching/region``, ...

    A figure is over the terms of all ranks, the same on each of them, so that it stays what it is
    when means over ranks are taken. Weighted by their numbers of terms, the figures of a loss have
    its mean over all terms as their mean. NaN where no rank has a term of that grain, or where one
    of them is not finite; the other grains do not see it.

    No value is looked at, and no gradient asked for. Sums and counts of all figures travel in one
    collective, in double precision.

    Args:
        terms: of the losses by name, the same names on all ranks.
        grain: (C,) of the concepts.
        across: False leaves other ranks out of it.
    """
    if not terms:
        return {}
    kinds, values, counted = len(GRAINS), [], []
    for number, each in enumerate(terms.values()):
        place = grain[each.concept] + number * kinds
        counted.append(place if each.counted is None else place.masked_fill(~each.counted, -1))
        values.append(each.values.double())
    places = torch.arange(kinds * len(terms), device=grain.device)
    # (figures, terms): a sum in a fixed order, and what is not finite stays in its own figure.
    chosen = torch.cat(counted) == places[:, None]
    sums = torch.where(chosen, torch.cat(values), 0.0).sum(dim=1)
    both = torch.stack([sums, chosen.sum(dim=1).double()])
    if across and world()[1] > 1:
        dist.all_reduce(both)
    means = (both[0] / both[1]).unbind()
    names = [(name, kind) for name in terms for kind in GRAINS]
    return {
        f"{name}/{kind}": mean
        for (name, kind), mean in zip(names, means, strict=True)
        if kind in terms[name].grains
    }
