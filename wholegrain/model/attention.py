"""Attention and feed-forward of BERT: post-norm blocks whose arithmetic is Hugging Face's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention of queries (B, L, D) over keys and values (B, M, D).

    Keys and values come projected (`project`), so that what does not depend on the query is
    computed once and shared.
    """

    def __init__(self, width: int, source_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)
        self.output = nn.Linear(width, width)

    def split(self, states: Tensor) -> Tensor:
        """(B, M, D) to (B, heads, M, D / heads)."""
        return states.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, M, D) of a source (B, M, source_width)."""
        return self.key(source), self.value(source)

    def forward(self, states: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attends; the output projection included, dropout of the output not.

        Args:
            states: (B, L, D).
            key, value: (B, M, D) from `project`.
            mask: bool (B, M), True where a key may be seen; None sees all.
        """
        attended = F.scaled_dot_product_attention(
            self.split(self.query(states)),
            self.split(key),
            self.split(value),
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(attended.transpose(1, 2).flatten(2))


class Residual(nn.Module):
    """``LayerNorm(states + dropout(update))``: the post-norm of BERT."""

    def __init__(self, width: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.dropout = dropout

    def forward(self, states: Tensor, update: Tensor) -> Tensor:
        return self.norm(states + F.dropout(update, self.dropout, self.training))


class FeedForward(nn.Module):
    """``W2 gelu(W1 x)`` with the exact (erf) GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, states: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(states)))


class PredictionHead(nn.Sequential):
    """Linear, LayerNorm, GELU, Linear: X-VLM's head for matching and for boxes."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(
            nn.Linear(width, 2 * width),
            nn.LayerNorm(2 * width),
            nn.GELU(),
            nn.Linear(2 * width, out),
        )


def init_bert(module: nn.Module, std: float = 0.02) -> None:
    """BERT's initialisation: normal(0.02) for matrices, zero biases, unit norms."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.LayerNorm):
            torch.nn.init.ones_(part.weight)
            torch.nn.init.zeros_(part.bias)
