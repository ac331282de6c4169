"""The cross encoder: BERT's upper layers, each with cross-attention to visual concepts."""

from __future__ import annotations

from torch import Tensor, nn

from wholegrain.model.attention import Attention, Residual
from wholegrain.model.concepts import VisualConcepts
from wholegrain.model.config import TextConfig
from wholegrain.model.indexing import take
from wholegrain.model.memory import Memory
from wholegrain.model.packing import Chosen, Packing
from wholegrain.model.reading import Reader, reader_of
from wholegrain.model.text import Reads, TextLayer


class CrossLayer(TextLayer):
    """Self-attention, cross-attention to the image, feed-forward."""

    def __init__(self, config: TextConfig, vision_width: int) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.cross_attention = Attention(
            width, vision_width, config.heads, config.attention_dropout
        )
        self.cross_residual = Residual(width, config.norm_eps, config.dropout)

    def fuse(
        self,
        states: Tensor,
        texts: Packing,
        reader: Reader,
        layer: int,
        reads: Reads | None = None,
    ) -> Tensor:
        """One layer over packed states; `layer` counts cross layers from 0.

        With `reads`, only those places' new states (K, D), from all places' old ones.
        """
        return self.look(self.attend(states, texts, reads), reader, layer)

    def look(self, states: Tensor, reader: Reader, layer: int) -> Tensor:
        """What follows self-attention: cross-attention and feed-forward."""
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

    def steps(self) -> list[tuple[CrossLayer, str]]:
        """The layers' methods that `forward` calls, in its order.

        Where there are several layers, the halves of the first are two steps: the one runs once a
        text, the other once a row.
        """
        first, *others = self._layers()
        if not others:
            return [(first, "fuse")]
        return [(first, "attend"), (first, "look"), *((layer, "fuse") for layer in others)]

    def memory(self, concepts: VisualConcepts) -> Memory:
        """Projects concepts for every layer, once."""
        attentions = [layer.cross_attention for layer in self._layers()]
        return Memory(
            cls=[attention.project(concepts.cls) for attention in attentions],
            patches=[attention.project(concepts.patches) for attention in attentions],
            patch_row=concepts.patch_row,
            mask=concepts.mask,
            visible=concepts.visible,
        )

    def forward(
        self,
        states: Tensor,
        texts: Packing,
        memory: Memory,
        rows: Tensor,
        reads: Reads | None = None,
        chosen: Chosen | None = None,
    ) -> Tensor:
        """Fuses texts with concepts.

        Args:
            states: (T, D) from the text encoder.
            texts: R texts.
            memory: of `memory`.
            rows: (R,) which concept each text is fused with.
            reads: the places whose fused states are wanted; None wants all. The last layer is
                computed at these alone: its other states nobody sees.
            chosen: which of the texts are fused, in any order and any number of times; `rows` and
                `reads` then speak of these. The first self-attention has not seen a concept yet
                and is computed once a text, its dropout included.

        Returns:
            Fused states (T, D), or (K, D) of `reads`.
        """
        first, *others = self._layers()
        if chosen is not None:
            # One layer alone is the last one as well, which starts from what is read.
            if others:
                states = first.attend(states, texts)
            states, texts = take(states, chosen.tokens), chosen.texts
        attention = first.cross_attention
        reader = reader_of(memory, rows, texts, attention)
        last_reader = reader if reads is None else reader_of(memory, rows, reads.packing, attention)
        if not others:
            return first.fuse(states, texts, last_reader, 0, reads)
        if chosen is None:
            states = first.attend(states, texts)
        states = first.look(states, reader, 0)
        *most, last = others
        for index, layer in enumerate(most, start=1):
            states = layer.fuse(states, texts, reader, index)
        return last.fuse(states, texts, last_reader, len(others), reads)
