"""Attention and feed-forward of BERT: post-norm blocks whose arithmetic is Hugging Face's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.model.indexing import take


class Layout:
    """How texts of unequal length lie in memory between attentions.

    Packed, states are (T, D) without padding: projections, norms and feed-forwards then cost what
    the real tokens cost, and only attention itself sees the padded rectangle (R, L). Unpacked,
    states are the rectangle throughout: the slow reference, and the form for devices where asking
    for T would make the host wait.

    Args:
        mask: bool (R, L), True at tokens.
        packed: None packs on the CPU alone.
    """

    def __init__(self, mask: Tensor, packed: bool | None = None) -> None:
        self.mask = mask
        self.packed = not mask.is_cuda if packed is None else packed
        if self.packed:
            self.places = mask.flatten().nonzero().squeeze(1)  # (T,) of the rectangle, row-major
            ordinal = mask.flatten().cumsum(0).sub(1).clamp(min=0)
            self.source = ordinal.view_as(mask)  # (R, L) into T; padding repeats a neighbour

    def pack(self, states: Tensor) -> Tensor:
        """(R, L, D) to the form between attentions."""
        return take(states.flatten(0, 1), self.places) if self.packed else states

    def unpack(self, states: Tensor) -> Tensor:
        """The form between attentions to (R, L, D); padding holds a neighbour's values."""
        return take(states, self.source) if self.packed else states


class Attention(nn.Module):
    """Multi-head attention of queries over keys and values (B, M, D).

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

    def forward(
        self, states: Tensor, key: Tensor, value: Tensor, mask: Tensor, layout: Layout
    ) -> Tensor:
        """Attends; the output projection included, dropout of the output not.

        Args:
            states: the queries, as `layout` holds them.
            key, value: (B, M, D) from `project`.
            mask: bool (B, M), True where a key may be seen.
            layout: of the queries.
        """
        attended = F.scaled_dot_product_attention(
            self.split(layout.unpack(self.query(states))),
            self.split(key),
            self.split(value),
            attn_mask=mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        output: Tensor = self.output(layout.pack(attended.transpose(1, 2).flatten(2)))
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
