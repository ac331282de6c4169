"""Attention whose keys have counts, over keys and values that earlier passes have left.

N equal tokens in a transformer stay equal in every layer, since norms, projections and feed-forward
act token by token. So one of them can stand for all: for any query with scores a_j,

    sum_j e^(a_j) v_j + N e^(a_u) v_u = sum_j e^(a_j) v_j + e^(a_u + log N) v_u,

numerator and denominator alike (ScanFormer, Su et al., CVPR 2024). The count enters as log N, added
to the score of the one key; padding has the count 0 and so the bias -inf.

This holds only where nothing but its value tells one of the N tokens from another: no relative
positions, no windows, no dropout, no stochastic depth; see `scan_body`.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Form = Literal["bias", "dimensions"]

# In place of -inf where a bias becomes a factor, which must be finite: e^-1e4 is 0 all the same.
_HIDDEN = -1e4
_ALIGNED = 8  # widths of a head that fused kernels take are its multiples


class KeyValues(NamedTuple):
    """What one block's attention reads of the tokens so far."""

    key: Tensor
    """(T, H, M, d)."""
    value: Tensor
    """(T, H, M, d)."""

    def then(self, later: KeyValues) -> KeyValues:
        """These and, after them, those of later tokens."""
        key = torch.cat([self.key, later.key], dim=2)
        return KeyValues(key, torch.cat([self.value, later.value], dim=2))

    def take(self, rows: Tensor) -> KeyValues:
        """Of the texts `rows` (R,)."""
        return KeyValues(self.key[rows], self.value[rows])


def log_counts(counts: Tensor) -> Tensor:
    """The bias (T, M) of keys that stand for `counts` (T, M) tokens; -inf where that is none."""
    return counts.log()


def attend(query: Tensor, seen: KeyValues, bias: Tensor, form: Form = "bias") -> Tensor:
    """``softmax_j(q_i k_j / sqrt(d) + b_j) v_j``.

    Args:
        query: (T, H, N, d).
        seen: of M tokens.
        bias: (T, M), of single precision at least; one finite entry a row at least.
        form: how the bias reaches the kernel: added to the scores, or as further dimensions of
            queries and keys, for kernels that take no bias. Queries of half precision on an
            accelerator always take the latter: kernels there want a bias of the queries' type,
            which has not the bits for log N, and not all of them refuse another.

    Returns:
        (T, H, N, d).
    """
    width = query.shape[-1]
    half = query.dtype in (torch.bfloat16, torch.float16) and query.device.type != "cpu"
    if form == "dimensions" or half:
        query, seen = with_dimensions(query, seen, bias)
        mask = None
    else:
        mask = bias[:, None, None, :]
    with _as_given(query.device.type):
        found = F.scaled_dot_product_attention(
            query, seen.key, seen.value, attn_mask=mask, scale=width**-0.5
        )
    return found[..., :width]


def _as_given(device: str) -> AbstractContextManager[object]:
    """A block without autocast, which would round the bias to half precision, log N with it."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def with_dimensions(
    query: Tensor, seen: KeyValues, bias: Tensor, parts: int = 3
) -> tuple[Tensor, KeyValues]:
    """Queries and keys with further dimensions, whose product is the bias.

    A query gets p, a key ``b sqrt(d) / p``, so that ``(q k + p b sqrt(d) / p) / sqrt(d)`` is
    ``q k / sqrt(d) + b``. p is the power of two next to sqrt(d), which no format rounds; b is split
    into `parts`, each what the ones before it lack, since half precision has only 8 bits for log N:
    one part alone distorts a key's weight by up to 1.6 %, two by 3e-5, three by less than 1e-6.

    Args:
        query: (T, H, N, d).
        seen: of M tokens.
        bias: (T, M).
        parts: dimensions that share the bias.

    Returns:
        Queries, keys and values of the same width, a multiple of 8; the values' further dimensions
        are zeros.
    """
    heads, width = query.shape[1], query.shape[-1]
    factor = 2.0 ** round(math.log2(width) / 2)
    rest = bias.clamp(min=_HIDDEN) * (math.sqrt(width) / factor)
    split = []
    for _ in range(parts):
        part = rest.to(query.dtype)
        split.append(part)
        rest = rest - part.to(rest.dtype)
    added = torch.stack(split, dim=-1)[:, None].expand(-1, heads, -1, -1)
    fill = -(width + parts) % _ALIGNED
    factors = query.new_full((*query.shape[:-1], parts), factor)
    longer_query = F.pad(torch.cat([query, factors], dim=-1), (0, fill))
    longer_key = F.pad(torch.cat([seen.key, added], dim=-1), (0, fill))
    return longer_query, KeyValues(longer_key, F.pad(seen.value, (0, parts + fill)))


def run_block(
    block: Any,  # timm carries no types
    states: Tensor,
    before: KeyValues | None,
    bias: Tensor,
    form: Form = "bias",
) -> tuple[Tensor, KeyValues]:
    """A pre-norm ViT block of timm over tokens that also see earlier ones.

    The block's parts are called as modules, in the block's own order, so that hooks on its
    projections and norms work; those on the block itself are the caller's affair, as it is not
    called.

    Args:
        block: of a timm ``VisionTransformer``.
        states: (T, N, D).
        before: keys and values of E earlier tokens in this block; None where there are none.
        bias: (T, E + N), see `log_counts`.
        form: see `attend`.

    Returns:
        The new states (T, N, D), and keys and values of all E + N tokens.
    """
    attention = block.attn
    projected = attention.qkv(block.norm1(states)).unflatten(2, (3, attention.num_heads, -1))
    query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
    own = KeyValues(attention.k_norm(key), value)
    seen = own if before is None else before.then(own)
    found = attend(attention.q_norm(query), seen, bias, form).transpose(1, 2).flatten(2)
    states = states + block.ls1(attention.proj(attention.norm(found)))
    states = states + block.ls2(block.mlp(block.norm2(states)))
    return states, seen
