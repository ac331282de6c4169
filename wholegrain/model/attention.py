"""Attention and feed-forward of BERT: post-norm blocks whose arithmetic is Hugging Face's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.model import kernels
from wholegrain.model.packing import Packing


class Attention(nn.Module):
    """Multi-head attention of packed queries over keys and values.

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

    @property
    def active_dropout(self) -> float:
        """Dropout of the weights now: none in evaluation."""
        return self.dropout if self.training else 0.0

    def segments_suit(self, states: Tensor) -> bool:
        """Whether queries or keys (..., D) like these are best attended to segment by segment."""
        return kernels.segments_suit(states, states.shape[-1] // self.heads, self.active_dropout)

    def split(self, states: Tensor) -> Tensor:
        """(B, M, D) to (B, heads, M, D / heads)."""
        return states.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (..., D) of a source (..., source_width)."""
        return self.key(source), self.value(source)

    def within(self, asked: Tensor, asking: Packing, states: Tensor, texts: Packing) -> Tensor:
        """Self-attention: the update (Tq, D) of those states that are asked for.

        Args:
            asked: (Tq, D), row r of `asking` being of text r; `states` itself for all of them.
            asking: of the asked states.
            states: (T, D), the tokens that are attended to.
            texts: of `states`.
        """
        query = self.query(asked)
        key, value = self.project(states)
        if asking is texts and self.segments_suit(query):
            heads = (self.heads, -1)
            attended = kernels.segments(
                query.unflatten(1, heads),
                key.unflatten(1, heads),
                value.unflatten(1, heads),
                texts.bounds,
                texts.bounds,
                (texts.longest, texts.longest),
            ).flatten(1)
            output: Tensor = self.output(attended)
            return output
        return self.over(query, asking, texts.unpack(key), texts.unpack(value), texts.mask)

    def over(
        self, query: Tensor, asking: Packing, key: Tensor, value: Tensor, mask: Tensor
    ) -> Tensor:
        """Attention of each row of packed queries over keys of its own.

        Args:
            query: (Tq, D), projected.
            asking: R rows.
            key, value: (R, N, D).
            mask: bool (R, N), True where a key may be seen.
        """
        attended = kernels.rectangle(
            self.split(asking.unpack(query)),
            self.split(key),
            self.split(value),
            mask[:, None, None, :],
            self.active_dropout,
        )
        output: Tensor = self.output(asking.pack(attended.transpose(1, 2).flatten(2)))
        return output


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
