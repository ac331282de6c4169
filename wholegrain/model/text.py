"""The text encoder: BERT's embeddings and its lower layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.model.attention import Attention, FeedForward, Residual
from wholegrain.model.config import TextConfig
from wholegrain.model.indexing import take
from wholegrain.model.packing import Packing


@dataclass(frozen=True)
class Reads:
    """The places of a packing whose last states somebody reads; the others need no last states."""

    tokens: Tensor
    """(K,) which of a packing's tokens, text by text."""
    packing: Packing
    """Where the places read of each text lie among the K; a text may have none."""

    @classmethod
    def first(cls, texts: Packing) -> Reads:
        """The [CLS] of each text."""
        count = len(texts)
        own = torch.arange(count, device=texts.starts.device)
        return cls(texts.starts, Packing(own, torch.ones_like(own), count, 1))

    def of(self, states: Tensor) -> Tensor:
        """(K, D) of states (T, D)."""
        return take(states, self.tokens)


class TextEmbeddings(nn.Module):
    """Word, position and type embeddings, normed."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_positions, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.dropout = config.dropout

    def forward(self, ids: Tensor, places: Tensor) -> Tensor:
        """Ids (T,) at places (T,) of their texts to states (T, D)."""
        states = self.word(ids) + self.token_type.weight[0] + self.position(places)
        return F.dropout(self.norm(states), self.dropout, self.training)


class TextLayer(nn.Module):
    """Self-attention and feed-forward."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention = Attention(width, width, config.heads, config.attention_dropout)
        self.attention_residual = Residual(width, config.norm_eps, config.dropout)
        self.feed_forward = FeedForward(width, config.intermediate_size)
        self.feed_forward_residual = Residual(width, config.norm_eps, config.dropout)

    def attend(self, states: Tensor, texts: Packing, reads: Reads | None = None) -> Tensor:
        """The self-attention half, of all tokens or of those that are read alone."""
        asked, asking = (states, texts) if reads is None else (reads.of(states), reads.packing)
        update = self.attention.within(asked, asking, states, texts)
        result: Tensor = self.attention_residual(asked, update)
        return result

    def feed(self, states: Tensor) -> Tensor:
        """The feed-forward half."""
        result: Tensor = self.feed_forward_residual(states, self.feed_forward(states))
        return result

    def forward(self, states: Tensor, texts: Packing) -> Tensor:
        return self.feed(self.attend(states, texts))


class TextEncoder(nn.Module):
    """Embeddings and the layers below `fusion_layer`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.fusion_layer))

    def forward(self, tokens: Tensor, texts: Packing) -> Tensor:
        """Encodes packed texts.

        Args:
            tokens: (T,) token ids.
            texts: where each text lies.

        Returns:
            States (T, D).

        Raises:
            ValueError: a text has more tokens than there are positions.
        """
        return self.layer_states(tokens, texts)[-1]

    def layer_states(self, tokens: Tensor, texts: Packing) -> list[Tensor]:
        """States (T, D) after each layer, first to last; arguments and errors as of `forward`."""
        positions = self.embeddings.position.num_embeddings
        if texts.longest > positions:
            raise ValueError(
                f"a text of {texts.longest} tokens exceeds the {positions} positions of the model "
                "(text.max_positions); cut texts at data.max_tokens"
            )
        states = self.embeddings(tokens, texts.column)
        found = []
        for layer in self.layers:
            states = layer(states, texts)
            found.append(states)
        return found


class MaskedLanguageHead(nn.Module):
    """BERT's prediction head; its output matrix is the word embedding."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """Logits (..., V) of states (..., D), given the embedding matrix (V, D)."""
        return F.linear(self.norm(F.gelu(self.dense(states))), word_embeddings, self.bias)
