"""Slow reference of the text and cross encoder: padded, explicit, every row by itself.

X-VLM's way of computing, written to be read: no packing, no shared keys and values, no fused
kernel. Each function takes a model's own modules for their weights alone, so that every faster way
of running them can be compared with it, forward and backward.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.model.config import TextConfig

_HIDDEN = -10_000.0  # X-VLM's score of a key that may not be seen; its weight is exactly 0


def encode_text(encoder: nn.Module, config: TextConfig, ids: Tensor, mask: Tensor) -> Tensor:
    """BERT's embeddings and the layers below `fusion_layer`.

    Args:
        encoder: the model's `text`; drops out where it is in training mode.
        config: of the texts.
        ids: (B, L) token ids.
        mask: bool (B, L), True at tokens.

    Returns:
        States (B, L, D); those at padding are meaningless.
    """
    parts: Any = encoder
    embeddings = parts.embeddings
    places = torch.arange(ids.shape[1], device=ids.device)
    states = embeddings.word(ids) + embeddings.token_type.weight[0] + embeddings.position(places)
    states = F.dropout(embeddings.norm(states), config.dropout, encoder.training)
    for layer in parts.layers:
        states = _self_attention(layer, config, states, mask)
        states = _feed_forward(layer, config, states)
    return states


def fuse(
    encoder: nn.Module,
    config: TextConfig,
    states: Tensor,
    mask: Tensor,
    images: Tensor,
    visible: Tensor,
) -> Tensor:
    """The layers from `fusion_layer` on, all of them at all places.

    Args:
        encoder: the model's `cross`; drops out where it is in training mode.
        config: of the texts.
        states: (B, L, D) from `encode_text`.
        mask: bool (B, L), True at tokens.
        images: (B, 1 + P, Dv), each row's own image sequence; keys and values are projected from it
            row by row, in every layer of every call.
        visible: bool (B, 1 + P), True where the row may look.

    Returns:
        Fused states (B, L, D); those at padding are meaningless.
    """
    parts: Any = encoder
    for layer in parts.layers:
        states = _self_attention(layer, config, states, mask)
        update = _attention(layer.cross_attention, config, states, images, visible)
        states = _residual(layer.cross_residual, config, states, update)
        states = _feed_forward(layer, config, states)
    return states


def _self_attention(layer: Any, config: TextConfig, states: Tensor, mask: Tensor) -> Tensor:
    update = _attention(layer.attention, config, states, states, mask)
    return _residual(layer.attention_residual, config, states, update)


def _feed_forward(layer: Any, config: TextConfig, states: Tensor) -> Tensor:
    update = layer.feed_forward.down(F.gelu(layer.feed_forward.up(states)))
    return _residual(layer.feed_forward_residual, config, states, update)


def _residual(residual: Any, config: TextConfig, states: Tensor, update: Tensor) -> Tensor:
    normed: Tensor = residual.norm(states + F.dropout(update, config.dropout, residual.training))
    return normed


def _attention(
    attention: Any, config: TextConfig, states: Tensor, source: Tensor, visible: Tensor
) -> Tensor:
    """``softmax(Q K' / sqrt(d) + mask) V``, projected; states (B, L, D), source (B, M, Ds)."""
    query, key, value = (
        projected.unflatten(-1, (config.heads, -1)).transpose(1, 2)  # (B, heads, L or M, d)
        for projected in (
            attention.query(states),
            attention.key(source),
            attention.value(source),
        )
    )
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
    scores = scores + _HIDDEN * (~visible[:, None, None, :]).to(scores.dtype)
    weights = F.dropout(scores.softmax(dim=-1), config.attention_dropout, attention.training)
    attended = weights @ value
    output: Tensor = attention.output(attended.transpose(1, 2).flatten(2))
    return output
