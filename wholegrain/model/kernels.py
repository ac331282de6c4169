"""Attention kernels behind two forms: over a padded rectangle, and over segments of a row."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

_HALF = (torch.bfloat16, torch.float16)
_log = logging.getLogger(__name__)


def rectangle(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """Softmax attention over padded rows.

    Args:
        query: (B, H, M, d).
        key, value: (B, H, N, d).
        mask: bool, broadcast over (B, H, M, N), True where a key may be seen; None shows all.
        dropout: of the weights; 0 outside training.

    Returns:
        (B, H, M, d).
    """
    if not query.numel():  # which not every kernel takes
        return query @ key.transpose(-2, -1) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    longest: tuple[int, int],
) -> Tensor:
    """Softmax attention of each segment of queries over the segment of keys of the same number.

    Args:
        query: (Tq, H, d).
        key, value: (Tk, H, d).
        query_bounds, key_bounds: int32 (S + 1,), segment s is ``bounds[s] .. bounds[s + 1] - 1``.
            A segment may be empty; queries without keys give zeros.
        longest: at least the longest segment of queries, and of keys.

    Returns:
        (Tq, H, d).
    """
    if not len(query):
        asked, seen, given = (each.transpose(0, 1) for each in (query, key, value))
        return rectangle(asked, seen, given, None, 0.0).transpose(0, 1)
    if query.device.type != "cpu":
        from torch.nn.attention.varlen import varlen_attn

        most_asked, most_seen = longest
        attended = varlen_attn(query, key, value, query_bounds, key_bounds, most_asked, most_seen)
        assert isinstance(attended, Tensor)  # a pair only where the log-sums are asked for too
        return attended
    return _segments_one_by_one(query, key, value, query_bounds, key_bounds)


def segments_suit(states: Tensor, width: int, dropout: float) -> bool:
    """Whether `segments` is the faster form: there is a kernel, and no dropout, which it lacks.

    Args:
        states: projected queries or keys; their device and precision count.
        width: channels of a head.
        dropout: of the weights now.
    """
    if not states.is_cuda or states.dtype not in _HALF or dropout:
        return False
    return _segments_work(states.device, states.dtype, width)


def _segments_one_by_one(
    query: Tensor, key: Tensor, value: Tensor, query_bounds: Tensor, key_bounds: Tensor
) -> Tensor:
    """The slow reference."""
    parts = []
    asked, seen = query_bounds.tolist(), key_bounds.tolist()
    for number in range(len(asked) - 1):
        q = query[asked[number] : asked[number + 1]].transpose(0, 1)
        k = key[seen[number] : seen[number + 1]].transpose(0, 1)
        v = value[seen[number] : seen[number + 1]].transpose(0, 1)
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        parts.append((weights @ v).transpose(0, 1))
    return torch.cat(parts)


@lru_cache
def _segments_work(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Tries the kernel once: values and gradients, empty segments among them.

    A card or a build without it, or one that treats empty segments otherwise, takes the rectangle.
    """
    generator = torch.Generator().manual_seed(0)
    bounds = torch.tensor([0, 5, 5, 9, 24, 24]).int()
    seen = torch.tensor([0, 7, 12, 12 + 1, 24, 24]).int()
    results = []
    try:
        # Autocast off, gradients on: the trial may happen inside an evaluation. Or inside a
        # recomputed block, which must not count what the trial saves: it is not tried twice.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
            torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is),
        ):
            query, key, value = torch.randn(3, 24, 2, width, generator=generator).to(dtype)
            for place, precision in ((torch.device("cpu"), torch.float32), (device, dtype)):
                inputs = [
                    each.to(place, precision, copy=True).requires_grad_()
                    for each in (query, key, value)
                ]
                q, k, v = inputs
                found = segments(q, k, v, bounds.to(place), seen.to(place), (15, 11))
                found.float().square().sum().backward()
                gradients = [each.grad for each in inputs if each.grad is not None]
                results.append([each.float().cpu() for each in (found.detach(), *gradients)])
        agree = all(
            torch.allclose(ours, theirs, rtol=0.05, atol=0.05)
            for ours, theirs in zip(*results, strict=True)
        )
    except (ImportError, RuntimeError, NotImplementedError) as error:
        _log.warning("attention over unequal lengths is not to be had here (%s)", error)
        return False
    if not agree:
        _log.warning("attention over unequal lengths gives other values here; it is not used")
    return agree


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
