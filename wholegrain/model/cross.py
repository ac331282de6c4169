"""The cross encoder: BERT's upper layers, each with cross-attention to visual concepts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wholegrain.model.attention import Attention, Layout, Residual
from wholegrain.model.concepts import VisualConcepts
from wholegrain.model.config import TextConfig
from wholegrain.model.text import TextLayer


@dataclass
class Memory:
    """Keys and values of every cross layer over a set of visual concepts.

    Patches are projected once an image, however many concepts and passes read them.
    """

    cls: list[tuple[Tensor, Tensor]]
    """For each layer, key and value (M, D) of the concepts' own vectors."""
    patches: list[tuple[Tensor, Tensor]]
    """For each layer, key and value (N, P, D) of the images' patches."""
    patch_row: Tensor
    """Row (M,) of `patches` that each concept reads."""
    mask: Tensor
    """bool (M, P): patches inside the concept's box."""

    def rows(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value (R, 1 + P, D) of concepts `rows` (R,)."""
        image = self.patch_row[rows]
        key, value = (
            torch.cat([cls[rows, None], patches[image]], dim=1)
            for cls, patches in zip(self.cls[layer], self.patches[layer], strict=True)
        )
        return key, value

    def visible(self, rows: Tensor) -> Tensor:
        """bool (R, 1 + P): the concept's vector is always visible."""
        mask = self.mask[rows]
        return torch.cat([mask.new_ones(len(rows), 1), mask], dim=1)


class CrossLayer(TextLayer):
    """Self-attention, cross-attention to the image, feed-forward."""

    def __init__(self, config: TextConfig, vision_width: int) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.cross_attention = Attention(width, vision_width, config.heads, config.attention_dropout)
        self.cross_residual = Residual(width, config.norm_eps, config.dropout)

    def fuse(
        self, states: Tensor, layout: Layout, key: Tensor, value: Tensor, visible: Tensor
    ) -> Tensor:
        """key and value (R, 1 + P, D), visible bool (R, 1 + P); states as `layout` holds them."""
        states = self.attend(states, layout)
        update = self.cross_attention(states, key, value, visible, layout)
        return self.feed(self.cross_residual(states, update))


class CrossEncoder(nn.Module):
    """The layers from `fusion_layer` on."""

    def __init__(self, config: TextConfig, vision_width: int) -> None:
        super().__init__()
        count = config.layers - config.fusion_layer
        self.layers = nn.ModuleList(CrossLayer(config, vision_width) for _ in range(count))

    def memory(self, concepts: VisualConcepts) -> Memory:
        """Projects concepts for every layer, once."""
        attentions = [layer.cross_attention for layer in self.layers]
        return Memory(
            cls=[attention.project(concepts.cls) for attention in attentions],
            patches=[attention.project(concepts.patches) for attention in attentions],
            patch_row=concepts.patch_row,
            mask=concepts.mask,
        )

    def forward(self, states: Tensor, mask: Tensor, memory: Memory, rows: Tensor) -> Tensor:
        """Fuses texts with concepts.

        Args:
            states: (R, L, D) from the text encoder.
            mask: bool (R, L), True at tokens.
            memory: of `memory`.
            rows: (R,) which concept each text is fused with.

        Returns:
            Fused states (R, L, D).
        """
        visible = memory.visible(rows)
        layout = Layout(mask)
        states = layout.pack(states)
        for index, layer in enumerate(self.layers):
            key, value = memory.rows(index, rows)
            states = layer.fuse(states, layout, key, value, visible)
        return layout.unpack(states)
