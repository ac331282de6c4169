"""Matching: does this text belong to this concept? Negatives are the hard ones of the batch.

X-VLM's ITM (Li et al. 2021, ALBEF): for each text a concept, and for each concept a text, is drawn
in proportion to ``softmax(similarity / tau) + 1e-5``, never its own partner.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from wholegrain.objectives.gather import GatheredConcepts, Summed, gather_concepts

_FLOOR = 1e-5  # keeps a draw possible when the softmax underflows

Scope = Literal["rank", "global"]


class Negatives(NamedTuple):
    """Hard negatives of C pairs."""

    image: Tensor
    """(C,) a concept that does not belong to text i: a row of this rank, or, drawn from all ranks,
    a gathered index (`wholegrain.objectives.gather`)."""
    text: Tensor
    """(C,) a text that does not belong to concept i, likewise."""
    valid: Tensor
    """bool (C,): False where the batch offers no negative; those rows name themselves and count for
    nothing."""


def negative_weights(similarity: Tensor, blocked: Tensor) -> Tensor:
    """Unnormalised probabilities (R, N) of drawing column j as the negative of row i.

    A row with a NaN or an infinite similarity has no softmax: all that is not blocked is then
    equally likely.

    Args:
        similarity: (R, N) similarities over temperature, in fp32.
        blocked: bool (R, N), True where j is no negative of i.
    """
    weights = similarity.softmax(dim=1).nan_to_num(nan=1.0)
    return (weights + _FLOOR).masked_fill(blocked, 0.0)


def draw_negatives(
    image: Tensor,
    text: Tensor,
    temperature: Tensor,
    image_key: Tensor | None = None,
    text_key: Tensor | None = None,
    *,
    scope: Scope = "rank",
    capacity: int | None = None,
    everyone: GatheredConcepts | None = None,
    chunk: int | None = None,
) -> Negatives:
    """Draws negatives on the device, without a look at the host.

    Nothing that the vectors hold makes it fail: rows with NaN or infinite similarities draw evenly
    (`negative_weights`), and the NaN shows in the losses, which read the same vectors. A pair for
    which nothing is left (a batch of one pair, all keys equal) names itself, as not `valid`.

    Args:
        image, text: unit vectors (C, E).
        temperature: scalar.
        image_key, text_key: (C,) equal where two concepts are of one image, or two texts are one;
            those are no negatives of each other.
        scope: `rank` draws from these C pairs, as X-VLM does; `global` from the pairs of all ranks.
            What is drawn from there is a gathered index, for `fetch_rows`.
        capacity: of the global scope, at least the largest C of any rank; None is this rank alone.
        everyone: of the global scope, what `gather_concepts` gave for these vectors and keys;
            `capacity` and the keys are then not read. None gathers.
        chunk: similarities of at most so many rows are held at a time; None holds those of all.
    """
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        if scope == "rank":
            everyone = gather_concepts(image, text, image_key, text_key)
        elif everyone is None:
            everyone = gather_concepts(image, text, image_key, text_key, capacity)
        own = everyone.first + torch.arange(len(image), device=image.device)
        dtype = everyone.image.dtype
        scaled = [each.to(dtype) / temperature.to(dtype) for each in (text, image)]
        sides = zip(scaled, (everyone.image, everyone.text), strict=True)
        if not len(own):
            return Negatives(own, own, own.bool())
        # All images first, then all texts: X-VLM's order.
        (foreign_image, valid), (foreign_text, _) = (
            _draw(rows, columns, own, everyone, chunk) for rows, columns in sides
        )
        return Negatives(
            image=torch.where(valid, foreign_image, own),
            text=torch.where(valid, foreign_text, own),
            valid=valid,
        )


def _draw(
    rows: Tensor, columns: Tensor, own: Tensor, everyone: GatheredConcepts, chunk: int | None
) -> tuple[Tensor, Tensor]:
    """A column of (N, E) for each row (C, E) of gathered index `own`, and whether there is one."""
    drawn, valid = [], []
    for part, index in zip(_parts(rows, chunk), _parts(own, chunk), strict=True):
        similarity = part @ columns.T
        if everyone.valid is not None:  # padding is no part of the softmax either
            similarity.masked_fill_(~everyone.valid, float("-inf"))
        weights = negative_weights(similarity, everyone.blocked(index, partner=True))
        # Of exponential variables with these rates, the first to ring: a draw in proportion. It is
        # what `torch.multinomial` does after checks that raise, or on a GPU end the program.
        times = torch.empty_like(weights).exponential_()
        times.clamp_(min=torch.finfo(times.dtype).tiny)  # 0 / 0 would win, though blocked
        drawn.append((weights / times).argmax(dim=1))
        valid.append((weights > 0).any(dim=1))
    return torch.cat(drawn), torch.cat(valid)


def _parts(rows: Tensor, chunk: int | None) -> tuple[Tensor, ...]:
    return (rows,) if chunk is None else rows.split(chunk)


def matching_sum(logits: Tensor, valid: Tensor | None = None) -> Summed:
    """Sum of the cross entropies, how many count, and the terms (3 C,).

    C positives, then C pairs with a foreign image, then C with a foreign text.

    Args:
        logits: (3 C, 2) in that order; class 1 is a match.
        valid: bool (C,), whose negatives count; None counts all.
    """
    count = len(logits) // 3
    labels = torch.zeros(3 * count, dtype=torch.long, device=logits.device)
    labels[:count] = 1
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(precise, labels, reduction="none")
    if valid is None:
        number = torch.full((), 3 * count, dtype=torch.long, device=logits.device)
        return Summed(losses.sum(), number, losses.detach())
    counted = torch.cat([torch.ones_like(valid), valid, valid])
    return Summed((losses * counted).sum(), counted.sum(), losses.detach(), counted)


def matching_loss(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """The mean of `matching_sum`: binary matching over what counts.

    Where no negative is valid (a batch of one pair), the positives alone are left: finite, though
    no more than an urge to say yes.
    """
    total, count, _, _ = matching_sum(logits, valid)
    return total / torch.as_tensor(count).clamp(min=1)
