"""How texts read images in cross-attention: row by row, all texts of an image or of a concept."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from wholegrain.model import kernels
from wholegrain.model.attention import Attention
from wholegrain.model.indexing import take
from wholegrain.model.memory import Memory
from wholegrain.model.packing import Packing


class Reader(Protocol):
    """Cross-attention of one set of packed texts to their concepts, for any layer."""

    def read(self, attention: Attention, states: Tensor, layer: int) -> Tensor:
        """The attention's update (T, D) of states (T, D)."""
        ...


def reader_of(memory: Memory, rows: Tensor, texts: Packing, attention: Attention) -> Reader:
    """The reader that suits the device and the precision.

    Args:
        memory: of the concepts.
        rows: (R,) concept of each text.
        texts: R texts, or the places read of them.
        attention: one of those that will read; they are all alike.
    """
    key = memory.patches[0][0]
    if not texts.total:  # the others have nothing to sort
        return RowReader(memory, rows, texts)
    if key.device.type == "cpu":
        return ImageReader(memory, rows, texts)
    if memory.visible is not None and attention.segments_suit(key):
        return ConceptReader(memory, rows, texts, memory.visible)
    return RowReader(memory, rows, texts)


class RowReader:
    """Each text has keys and values of its own: the slow reference, with shapes the host knows."""

    def __init__(self, memory: Memory, rows: Tensor, texts: Packing) -> None:
        self.memory, self.rows, self.texts = memory, rows, texts
        self.seen = memory.seen(rows)

    def read(self, attention: Attention, states: Tensor, layer: int) -> Tensor:
        """See `Reader`."""
        key, value = self.memory.rows(layer, self.rows)
        return attention.over(attention.query(states), self.texts, key, value, self.seen)


class ConceptReader:
    """The tokens of all texts that read one concept are one segment, and so is what it shows.

    A region's segment holds its own vector and the patches inside its box, and no others. Sorting
    and gathering have shapes that the host knows; it never waits.

    Args:
        memory, rows, texts: as for `reader_of`.
        visible: entries of the memory's mask that are True.
    """

    def __init__(self, memory: Memory, rows: Tensor, texts: Packing, visible: int) -> None:
        self.memory, self.texts = memory, texts
        concepts, patches = memory.mask.shape
        order = torch.argsort(rows, stable=True)
        self.tokens, _ = texts.choose(order, texts.slots[order], texts.total)
        self.restore = torch.empty_like(self.tokens)
        self.restore[self.tokens] = torch.arange(texts.total, device=rows.device)
        asked = torch.zeros(concepts, dtype=torch.long, device=rows.device)
        self.query_bounds = _bounds(asked.index_add(0, rows, texts.slots))
        # The k-th True of the rows [own vector, patches], counted over all concepts.
        shown = torch.cat([memory.mask.new_ones(concepts, 1), memory.mask], dim=1)
        nth = torch.arange(1, concepts + visible + 1, device=rows.device)
        place = torch.searchsorted(shown.flatten().cumsum(0), nth)
        concept, column = place // (1 + patches), place % (1 + patches)
        of_patch = concepts + memory.patch_row[concept] * patches + column - 1
        self.keys = torch.where(column == 0, concept, of_patch)
        self.key_bounds = _bounds(shown.sum(1))
        self.longest = (texts.total, 1 + patches)

    def read(self, attention: Attention, states: Tensor, layer: int) -> Tensor:
        """See `Reader`."""
        heads = (attention.heads, -1)
        key, value = (
            take(torch.cat([cls, patches.flatten(0, 1)]), self.keys).unflatten(1, heads)
            for cls, patches in zip(self.memory.cls[layer], self.memory.patches[layer], strict=True)
        )
        query = take(attention.query(states), self.tokens).unflatten(1, heads)
        attended = kernels.segments(
            query, key, value, self.query_bounds, self.key_bounds, self.longest
        )
        update: Tensor = attention.output(take(attended.flatten(1), self.restore))
        return update


class ImageReader:
    """The tokens of all texts that read one image form one long query against its patches.

    Patches are then neither copied once a text nor read once a text. An image's keys are its
    concepts' own vectors followed by its patches; a mask lets each token see its own concept alone.
    Counting asks the device, so this is the form for the CPU.
    """

    def __init__(self, memory: Memory, rows: Tensor, texts: Packing) -> None:
        self.memory, self.texts = memory, texts
        images = memory.images
        own, self.own_valid = _table(memory.patch_row, images)
        self.own = own  # (N, K) concepts of each image
        concept = rows[texts.row]  # (T,)
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
        attended = kernels.rectangle(
            attention.split(take(attention.query(states), self.tokens)),
            attention.split(key),
            attention.split(value),
            self.visible,
            attention.active_dropout,
        )
        found = take(attended.transpose(1, 2).flatten(2).flatten(0, 1), self.places)
        update: Tensor = attention.output(take(found, self.restore))
        return update


def _bounds(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).int()


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
