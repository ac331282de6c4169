"""A CA2M layer (arXiv 2204.09957): image and text attend to each other in turn, the image first."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.model import kernels
from wholegrain.model.attention import Residual
from wholegrain.model.indexing import take

_EPS = 1e-5


class CrossHalf(nn.Module):
    """Half of a layer: one modality asks the other, then a feed-forward; post-norm.

    ``x* = LN(x + MHCA(x, s))`` and ``x' = LN(x* + W2 relu(W1 x*))``, with
    ``MHCA(x, s) = Wo softmax((Wq x)(Wk s)^T / sqrt(d)) Wv s`` in heads of d channels. The asking
    modality does not attend to itself.

    Args:
        width: C, channels of both modalities.
        heads: attention heads.
        feed_forward: hidden channels of the feed-forward.
        dropout: of the two updates and of the attention weights, as in BERT.
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.attention_residual = Residual(width, _EPS, dropout)
        self.up = nn.Linear(width, feed_forward)
        self.down = nn.Linear(feed_forward, width)
        self.feed_forward_residual = Residual(width, _EPS, dropout)

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self, states: Tensor, query: Tensor, keyed: Tensor, valued: Tensor, seen: Tensor | None
    ) -> Tensor:
        """States after attention and feed-forward (B, M, C).

        Args:
            states: (B, M, C) of the asking modality.
            query: (B, M, C), already projected.
            keyed: (B, N, C) of the other one, as keys are made of it.
            valued: (B, N, C), as values are made of it.
            seen: bool (B, N), at least one True a row; None where all may be seen.
        """
        attended = kernels.rectangle(
            self._split(query),
            self._split(self.key(keyed)),
            self._split(self.value(valued)),
            None if seen is None else seen[:, None, None],
            self.dropout if self.training else 0.0,
        )
        update = self.output(attended.transpose(1, 2).flatten(2))
        states = self.attention_residual(states, update)
        result: Tensor = self.feed_forward_residual(states, self.down(F.relu(self.up(states))))
        return result


class Ca2mLayer(nn.Module):
    """Places of the image ask the words; then the words ask the places as these have become.

    ``v' = half_v(v, l)`` and ``l' = half_l(l, v')``, the halves sharing no weight. Positions enter
    where places are queries or keys and nowhere else; words have none here, they carry those of the
    text encoder.

    Args: as of `CrossHalf`, for both halves.
    """

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.visual = CrossHalf(width, heads, feed_forward, dropout)
        self.textual = CrossHalf(width, heads, feed_forward, dropout)
        start_xavier(self)

    def forward(
        self,
        places: Tensor,
        words: Tensor,
        positions: Tensor,
        word_mask: Tensor,
        place_mask: Tensor | None = None,
        image: Tensor | None = None,
        first_only: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Places (T, N, C) and words (T, L, C) of T texts.

        Args:
            places: (T, N, C); (I, N, C), one row an image, where `image` is given.
            words: (T, L, C).
            positions: (N, C).
            word_mask: bool (T, L), True at tokens.
            place_mask: bool (T, N), True at photo; None where nothing is padded.
            image: (T,) row of `places` that each text reads. Queries are then projected once an
                image, the last step that no text takes part in.
            first_only: gives of the words the first alone, (T, 1, C), for less work.
        """
        query = self.visual.query(places + positions)
        if image is not None:
            places, query = take(places, image), take(query, image)
        places = self.visual(places, query, words, words, word_mask)
        asking = words[:, :1] if first_only else words
        query = self.textual.query(asking)
        return places, self.textual(asking, query, places + positions, places, place_mask)


def start_xavier(module: nn.Module) -> None:
    """Uniform Xavier matrices and zero biases for every projection inside."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def layer_macs(places: int, words: int, width: int, feed_forward: int) -> int:
    """Multiply-adds of a layer for one text: ``(4n + 4l) C^2 + 4 n l C + 2 (n + l) C F``.

    Args:
        places: n.
        words: l, padding counted.
        width: C.
        feed_forward: F.
    """
    both = places + words
    return 4 * both * width**2 + 4 * places * words * width + 2 * both * width * feed_forward
