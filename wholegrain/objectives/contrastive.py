"""Contrastive loss between concepts and texts, over the batches of all ranks.

X-VLM's ITC: with unit vectors v, t and temperature tau, the mean of the cross entropies of
``v t' / tau`` row by row and ``t v' / tau`` row by row, the partner on the diagonal being the
class.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def world() -> tuple[int, int]:
    """(rank, world size); (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _Gather(torch.autograd.Function):
    """Rows of all ranks; a row's gradient is the sum of what every rank asks of it."""

    @staticmethod
    def forward(ctx: object, rows: Tensor) -> Tensor:
        _, size = world()
        gathered = rows.new_empty(size * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        rank, size = world()
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(size)[rank]


def gather_rows(rows: Tensor, capacity: int | None) -> Tensor:
    """Rows (W * capacity, ...) of all ranks, in rank order, differentiable.

    Args:
        rows: (C, ...), C at most `capacity`; the rest is filled with zeros, so that ranks with
            different numbers of concepts need not ask each other for them.
        capacity: the same on all ranks; None gives this rank's rows alone.
    """
    _, size = world()
    if size == 1 or capacity is None:
        return rows
    if len(rows) > capacity:
        raise ValueError(f"{len(rows)} concepts exceed the capacity of {capacity}")
    padding = rows.new_zeros(capacity - len(rows), *rows.shape[1:])
    padded = torch.cat([rows, padding])
    gathered: Tensor = _Gather.apply(padded) if padded.is_floating_point() else _plain(padded)
    return gathered


def _plain(rows: Tensor) -> Tensor:
    _, size = world()
    gathered = rows.new_empty(size * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(gathered, rows.contiguous())
    return gathered


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    temperature: Tensor,
    *,
    image_key: Tensor | None = None,
    text_key: Tensor | None = None,
    capacity: int | None = None,
) -> Tensor:
    """The mean loss of this rank's rows against the concepts of all ranks.

    Args:
        image, text: unit vectors (C, E), row i of one belongs to row i of the other; C >= 1.
        temperature: scalar, positive.
        image_key: (C,) int64 that tells images apart, positive. Concepts of one image are then not
            each other's negatives.
        text_key: (C,) int64 that tells texts apart, positive. Equal texts likewise.
        capacity: at least the largest C of any rank; None compares within this rank alone.

    Returns:
        Scalar. The mean over ranks is the loss of the whole batch where ranks hold equally many
        concepts; otherwise a row of a rank with few concepts weighs more in it.
    """
    rank, size = world() if capacity is not None else (0, 1)
    count = len(image)
    images, texts = gather_rows(image, capacity), gather_rows(text, capacity)
    valid = gather_rows(torch.ones(count, dtype=torch.long, device=image.device), capacity) > 0
    blocked = ~valid[None].expand(count, -1)
    for key in (image_key, text_key):
        if key is not None:
            blocked = blocked | (key[:, None] == gather_rows(key, capacity)[None])
    partner = rank * (len(images) // size) + torch.arange(count, device=image.device)
    # A row's own partner is never blocked, though it shares image and text with itself.
    blocked = blocked.scatter(1, partner[:, None], value=False)
    to_text = (image @ texts.T / temperature).masked_fill(blocked, float("-inf"))
    to_image = (text @ images.T / temperature).masked_fill(blocked, float("-inf"))
    return (F.cross_entropy(to_text, partner) + F.cross_entropy(to_image, partner)) / 2
