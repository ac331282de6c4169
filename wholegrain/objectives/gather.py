"""Rows of all ranks with the gradient that belongs to them, and means over ranks.

Ranks hold different numbers of concepts and need not tell each other how many: each sends a fixed
`capacity` of rows, the rest zeros. A row of rank r stands at ``r * capacity + row``; that number is
its *gathered index*. Nothing here makes the host wait for the device.

The gradient convention is that of data-parallel training, where the gradients of ranks are
averaged: if the loss of the whole batch is the mean over ranks of what they return, then so is its
gradient, because what every rank asks of a row is summed on the way back to the rank that owns it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Summed(NamedTuple):
    """A loss as a sum of terms; for `mean_over_ranks`."""

    total: Tensor
    """Scalar."""
    number: Tensor | int
    """How many terms it is a sum of."""
    terms: Tensor
    """(N,) the terms themselves, without gradient."""
    counted: Tensor | None = None
    """bool (N,), False at terms that are left out; None takes them all."""


def world() -> tuple[int, int]:
    """(rank, world size); (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_rows(rows: Tensor, capacity: int | None) -> Tensor:
    """Rows (W * capacity, ...) of all ranks by gathered index, differentiable.

    Memory: W * capacity rows, and as many of their gradients (in fp32 at least) in backward.

    Args:
        rows: (C, ...) of any type, C at most `capacity`.
        capacity: the same on all ranks; None, or one rank, gives `rows` themselves, unpadded.

    Raises:
        ValueError: there are more rows than `capacity`.
    """
    if capacity is None or world()[1] == 1:
        return rows
    padded = _padded(rows, capacity)
    if not padded.is_floating_point():
        return _all_gather(padded)
    gathered: Tensor = _Gather.apply(padded)
    return gathered


def fetch_rows(rows: Sequence[Tensor], index: Tensor, capacity: int | None) -> list[Tensor]:
    """What `gather_rows` of each of `rows` has at some gathered indices, differentiable.

    For what the cross encoder reads of negatives from other ranks: concept vectors, patch masks and
    padded text states go together with the concepts' indices; patch tokens (I, P, D) then with the
    images' indices, which came along with the concepts. Tensors of one type share a collective.

    Memory: W * capacity rows while the call lasts, and as many again (in fp32 at least) while its
    backward lasts; in between only the K rows that were asked for. So it grows with the number of
    ranks, though not what is kept; to ask owners for single rows, the host would have to wait for
    the indices.

    Args:
        rows: each (C, ...), C at most `capacity`; the same shapes but for C on all ranks.
        index: (K,) gathered indices; K may differ between ranks.
        capacity: as for `gather_rows`.

    Returns:
        (K, ...) of each of `rows`.
    """
    if capacity is None or world()[1] == 1:
        return [each.index_select(0, index) for each in rows]
    widths = [math.prod(each.shape[1:]) for each in rows]
    found: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(each.dtype for each in rows):
        places = [place for place, each in enumerate(rows) if each.dtype == dtype]
        flat = [rows[place].reshape(len(rows[place]), widths[place]) for place in places]
        packed = _padded(torch.cat(flat, dim=1), capacity)
        if dtype.is_floating_point:
            fetched: Tensor = _Fetch.apply(packed, index)
        else:
            fetched = _all_gather(packed).index_select(0, index)
        parts = fetched.split([widths[place] for place in places], dim=1)
        for place, part in zip(places, parts, strict=True):
            found[place] = part.reshape(len(index), *rows[place].shape[1:])
    return [found[place] for place in range(len(rows))]


def gathered_index(index: Tensor, capacity: int | None) -> Tensor:
    """Where this rank's rows `index` stand among those of all ranks."""
    return index if capacity is None else index + world()[0] * capacity


def mean_over_ranks(
    sums: Sequence[Tensor], counts: Sequence[Tensor | int], *, across: bool = True
) -> list[Tensor]:
    """Losses whose mean over ranks is the mean over all terms of all ranks: values and gradients.

    ``local sum * W / sum over ranks of the counts``; the counts travel in one collective. 0 where
    no rank has a term.

    Args:
        sums: this rank's sums, each a scalar.
        counts: how many terms (or how much weight) each is a sum of.
        across: False leaves other ranks out of it.
    """
    device = sums[0].device
    # A number of the host becomes a tensor by a fill: a copy would wait.
    totals = torch.stack(
        [
            each.detach().to(torch.float64)
            if isinstance(each, Tensor)
            else torch.full((), each, dtype=torch.float64, device=device)
            for each in counts
        ]
    )
    size = world()[1] if across else 1
    if size > 1:
        dist.all_reduce(totals)
    # Terms may carry fractional weights, so that only nothing at all is replaced.
    shares = size / totals.masked_fill(totals == 0, 1.0)
    return [each * share.to(each.dtype) for each, share in zip(sums, shares.unbind(), strict=True)]


def whole_of_shares(share: Tensor) -> Tensor:
    """The mean over ranks of what `mean_over_ranks` gave each, for functions of it that are not
    linear; its gradient is that of this rank's share.
    """
    size = world()[1]
    if size == 1:
        return share
    whole = share.detach().clone()
    dist.all_reduce(whole)
    return whole / size + (share - share.detach())


class GatheredConcepts(NamedTuple):
    """Unit vectors and keys of the concepts of all ranks, N by gathered index."""

    image: Tensor
    """(N, E) in fp32 at least, with gradient."""
    text: Tensor
    """(N, E) likewise."""
    valid: Tensor | None
    """bool (N,), False at padding; None where there is none."""
    image_key: Tensor | None
    """(N,) equal where concepts are of one image; None lets all be each other's negatives."""
    text_key: Tensor | None
    """(N,) equal where texts are one."""
    first: int
    """Gathered index of this rank's first concept."""
    ranks: int
    """How many ranks the concepts are of."""

    def total(self) -> Tensor:
        """Number of concepts, on the device."""
        if self.valid is None:
            return torch.full((), len(self.image), device=self.image.device)
        return self.valid.sum()

    def blocked(self, rows: Tensor, *, partner: bool) -> Tensor:
        """Which columns are no negatives of some rows: bool (R, N), or (1, N) where all are alike.

        Args:
            rows: (R,) gathered indices.
            partner: whether a row's own column is one of them.
        """
        blocked = rows.new_zeros(1, len(self.image), dtype=torch.bool)
        if self.valid is not None:
            blocked = ~self.valid[None]
        for key in (self.image_key, self.text_key):
            if key is not None:
                blocked = blocked | (key[rows, None] == key[None])
        if partner or self.image_key is not None or self.text_key is not None:
            blocked = blocked.expand(len(rows), -1).scatter(1, rows[:, None], partner)
        return blocked


def gather_concepts(
    image: Tensor,
    text: Tensor,
    image_key: Tensor | None = None,
    text_key: Tensor | None = None,
    capacity: int | None = None,
) -> GatheredConcepts:
    """Two collectives: vectors of both kinds, and keys together with what is padding.

    Args:
        image, text: (C, E); half precision is raised to fp32.
        image_key, text_key: (C,) int64. All ranks give them, or none does.
        capacity: at least the largest C of any rank; None takes this rank's concepts alone.
    """
    dtype = torch.promote_types(image.dtype, torch.float32)
    image, text = image.to(dtype), text.to(dtype)
    rank, size = world()
    if capacity is None or size == 1:
        return GatheredConcepts(image, text, None, image_key, text_key, 0, 1)
    vectors = gather_rows(torch.cat([image, text], dim=1), capacity)
    images, texts = vectors.chunk(2, dim=1)
    marks = [torch.ones(len(image), dtype=torch.long, device=image.device)]
    marks += [key for key in (image_key, text_key) if key is not None]
    valid, *keys = gather_rows(torch.stack(marks, dim=1), capacity).unbind(1)
    return GatheredConcepts(
        images,
        texts,
        valid > 0,
        None if image_key is None else keys.pop(0),
        None if text_key is None else keys.pop(0),
        rank * capacity,
        size,
    )


class _Gather(torch.autograd.Function):
    """Rows of all ranks; a row's gradient is the sum of what every rank asks of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _all_gather(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0]
        precise = torch.promote_types(gradient.dtype, torch.float32)
        return _own_sum(gradient.to(precise)).to(gradient.dtype)


class _Fetch(torch.autograd.Function):
    """Some rows of all ranks; keeps their indices alone, and adds gradients up in fp32 at least."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.capacity = len(rows)
        return _all_gather(rows).index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        gradient = gradients[0]
        precise = torch.promote_types(gradient.dtype, torch.float32)
        count = world()[1] * ctx.capacity
        asked = gradient.new_zeros(count, *gradient.shape[1:], dtype=precise)
        asked.index_add_(0, index, gradient.to(precise))
        return _own_sum(asked).to(gradient.dtype), None


def _padded(rows: Tensor, capacity: int) -> Tensor:
    if len(rows) > capacity:
        raise ValueError(
            f"{len(rows)} rows exceed the capacity of {capacity}; give the largest number that any "
            "rank can hold"
        )
    if len(rows) == capacity:
        return rows
    return torch.cat([rows, rows.new_zeros(capacity - len(rows), *rows.shape[1:])])


def _all_gather(rows: Tensor) -> Tensor:
    gathered = rows.new_empty(world()[1] * len(rows), *rows.shape[1:])
    dist.all_gather_single(gathered, rows.contiguous())
    return gathered


def _own_sum(gradient: Tensor) -> Tensor:
    """The sum over ranks of (W * C, ...), of which this rank's C rows."""
    rank, size = world()
    gradient = gradient.contiguous()
    if _scatters(gradient.device):
        own = gradient.new_empty(len(gradient) // size, *gradient.shape[1:])
        dist.reduce_scatter_single(own, gradient)
        return own
    gradient = gradient.clone()  # the caller's, which others may read
    dist.all_reduce(gradient)
    return gradient.chunk(size)[rank]


def _scatters(device: torch.device) -> bool:
    """Whether the backend of tensors on a device sends each rank its own sum only."""
    pairs = (pair.split(":") for pair in dist.get_backend_config().split(","))
    return any(kind == device.type and backend == "nccl" for kind, backend in pairs)
