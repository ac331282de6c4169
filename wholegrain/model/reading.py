"""How texts read images in cross-attention: row by row, or all texts of an image together."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from wholegrain.model.attention import Attention, Layout
from wholegrain.model.indexing import take
from wholegrain.model.memory import Memory


class Reader(Protocol):
    """Cross-attention of one set of texts to their concepts, for any layer."""

    def read(self, attention: Attention, states: Tensor, layer: int) -> Tensor:
        """The attention's update of states, both as the texts' layout holds them."""
        ...


class RowReader:
    """Each text has keys and values of its own: the slow reference, and the form of static shapes.

    Args:
        memory: of the concepts.
        rows: (R,) concept of each text.
        layout: of the texts.
    """

    def __init__(self, memory: Memory, rows: Tensor, layout: Layout) -> None:
        self.memory, self.rows, self.layout = memory, rows, layout
        self.visible = memory.visible(rows)

    def read(self, attention: Attention, states: Tensor, layer: int) -> Tensor:
        """See `Reader`."""
        key, value = self.memory.rows(layer, self.rows)
        update: Tensor = attention(states, key, value, self.visible, self.layout)
        return update


class GroupedReader:
    """The tokens of all texts that read one image form one long query against its patches.

    Patches are then neither copied once a text nor read once a text. An image's keys are its
    concepts' own vectors followed by its patches; a mask lets each token see its own concept alone.

    Args:
        memory, rows: as for `RowReader`.
        layout: packed.
    """

    def __init__(self, memory: Memory, rows: Tensor, layout: Layout) -> None:
        self.memory = memory
        images = memory.images
        own, self.own_valid = _table(memory.patch_row, images)
        self.own = own  # (N, K) concepts of each image
        row = layout.places // layout.mask.shape[1]  # (T,) text of each token
        concept = rows[row]
        self.tokens, valid = _table(memory.patch_row[concept], images)  # (N, S) tokens that read it
        self.places = valid.flatten().nonzero().squeeze(1)
        order = self.tokens.flatten()[self.places]  # which token lies at each place
        self.restore = torch.empty_like(order)
        self.restore[order] = torch.arange(len(order), device=order.device)
        asked = concept[self.tokens]  # (N, S)
        sees_vector = (own[:, None, :] == asked[:, :, None]) & self.own_valid[:, None, :]
        self.visible = torch.cat([sees_vector, memory.mask[asked]], dim=2)[:, None]

    def read(self, attention: Attention, states: Tensor, layer: int) -> Tensor:
        """See `Reader`."""
        key, value = (
            torch.cat([take(cls, self.own), patches], dim=1)
            for cls, patches in zip(self.memory.cls[layer], self.memory.patches[layer], strict=True)
        )
        attended = F.scaled_dot_product_attention(
            attention.split(take(attention.query(states), self.tokens)),
            attention.split(key),
            attention.split(value),
            attn_mask=self.visible,
            dropout_p=attention.dropout if attention.training else 0.0,
        )
        found = take(attended.transpose(1, 2).flatten(2).flatten(0, 1), self.places)
        update: Tensor = attention.output(take(found, self.restore))
        return update


def _table(group: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Members of each group: (N, K) indices into `group` (M,), and bool (N, K), True where real."""
    order = torch.argsort(group, stable=True)
    sizes = torch.bincount(group, minlength=count)
    widest = max(1, int(sizes.max())) if len(sizes) else 1
    column = torch.arange(widest, device=group.device)
    valid = column < sizes[:, None]
    first = sizes.cumsum(0) - sizes
    place = (first[:, None] + column).clamp(max=max(0, len(group) - 1))
    return torch.where(valid, order[place], 0), valid
