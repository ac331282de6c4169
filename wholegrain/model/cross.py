"""The cross encoder: BERT's upper layers, each with cross-attention to visual concepts."""

from __future__ import annotations

from torch import Tensor, nn

from wholegrain.model.attention import Attention, Layout, Residual
from wholegrain.model.concepts import VisualConcepts
from wholegrain.model.config import TextConfig
from wholegrain.model.memory import Memory
from wholegrain.model.reading import GroupedReader, Reader, RowReader
from wholegrain.model.text import TextLayer


class CrossLayer(TextLayer):
    """Self-attention, cross-attention to the image, feed-forward."""

    def __init__(self, config: TextConfig, vision_width: int) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.cross_attention = Attention(
            width, vision_width, config.heads, config.attention_dropout
        )
        self.cross_residual = Residual(width, config.norm_eps, config.dropout)

    def fuse(self, states: Tensor, layout: Layout, reader: Reader, layer: int) -> Tensor:
        """One layer over states as `layout` holds them; `layer` counts cross layers from 0."""
        states = self.attend(states, layout)
        update = reader.read(self.cross_attention, states, layer)
        return self.feed(self.cross_residual(states, update))


class CrossEncoder(nn.Module):
    """The layers from `fusion_layer` on."""

    def __init__(self, config: TextConfig, vision_width: int) -> None:
        super().__init__()
        count = config.layers - config.fusion_layer
        self.layers = nn.ModuleList(CrossLayer(config, vision_width) for _ in range(count))

    def _layers(self) -> list[CrossLayer]:
        return [layer for layer in self.layers if isinstance(layer, CrossLayer)]

    def memory(self, concepts: VisualConcepts) -> Memory:
        """Projects concepts for every layer, once."""
        attentions = [layer.cross_attention for layer in self._layers()]
        return Memory(
            cls=[attention.project(concepts.cls) for attention in attentions],
            patches=[attention.project(concepts.patches) for attention in attentions],
            patch_row=concepts.patch_row,
            mask=concepts.mask,
        )

    def forward(
        self,
        states: Tensor,
        mask: Tensor,
        memory: Memory,
        rows: Tensor,
        packed: bool | None = None,
    ) -> Tensor:
        """Fuses texts with concepts.

        Args:
            states: (R, L, D) from the text encoder.
            mask: bool (R, L), True at tokens.
            memory: of `memory`.
            rows: (R,) which concept each text is fused with.
            packed: False takes the slow reference; None the form that suits the device.

        Returns:
            Fused states (R, L, D).
        """
        if not len(rows):
            return states
        layout = Layout(mask, packed)
        reader: Reader = (GroupedReader if layout.packed else RowReader)(memory, rows, layout)
        states = layout.pack(states)
        for index, layer in enumerate(self._layers()):
            states = layer.fuse(states, layout, reader, index)
        return layout.unpack(states)
