"""The text encoder: BERT's embeddings and its lower layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.model.attention import Attention, FeedForward, Layout, Residual
from wholegrain.model.config import TextConfig


class TextEmbeddings(nn.Module):
    """Word, position and type embeddings, normed."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_positions, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.dropout = config.dropout

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, L) to states (B, L, D)."""
        places = torch.arange(ids.shape[1], device=ids.device)
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

    def attend(self, states: Tensor, layout: Layout) -> Tensor:
        """The self-attention half."""
        key, value = (layout.unpack(each) for each in self.attention.project(states))
        update = self.attention(states, key, value, layout.mask, layout)
        result: Tensor = self.attention_residual(states, update)
        return result

    def feed(self, states: Tensor) -> Tensor:
        """The feed-forward half."""
        result: Tensor = self.feed_forward_residual(states, self.feed_forward(states))
        return result

    def forward(self, states: Tensor, layout: Layout) -> Tensor:
        return self.feed(self.attend(states, layout))


class TextEncoder(nn.Module):
    """Embeddings and the layers below `fusion_layer`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.fusion_layer))

    def forward(self, ids: Tensor, mask: Tensor, packed: bool | None = None) -> Tensor:
        """Encodes texts.

        Args:
            ids: (B, L) token ids.
            mask: bool (B, L), True at tokens, False at padding.
            packed: False takes the slow reference; None the form that suits the device.

        Returns:
            States (B, L, D); those at padding are meaningless.
        """
        layout = Layout(mask, packed)
        states = layout.pack(self.embeddings(ids))
        for layer in self.layers:
            states = layer(states, layout)
        return layout.unpack(states)


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
