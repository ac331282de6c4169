"""What the objectives read of a batch, and what of it is counted on the host beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.config import ObjectiveConfig
from wholegrain.boxes import box_mask
from wholegrain.data.batch import IGNORED, IMAGE, ConceptBatch
from wholegrain.data.permutation import stable_key
from wholegrain.model.concepts import Shown
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.packing import Packing


class Hidden(NamedTuple):
    """The K hidden tokens of C texts, text by text."""

    row: Tensor
    """(K,) the text of each."""
    column: Tensor
    """(K,) its place in the text."""
    label: Tensor
    """(K,) the id that was hidden."""
    counts: Tensor
    """(C,) hidden tokens of each text."""
    most: int
    """At least the largest of them, on the host."""


@dataclass
class ConceptInputs:
    """What the objectives read of a batch: C concepts on I images, T tokens of text."""

    images: Tensor
    """(I, 3, R, R) normalised."""
    image: Tensor
    """(C,) the image of each concept."""
    mask: Tensor
    """bool (C, P) the patches that its box touches."""
    box: Tensor
    """(C, 4) cxcywh in the unit square."""
    tokens: Tensor
    """(T,) token ids, text behind text."""
    masked_tokens: Tensor
    """(T,) token ids with words hidden."""
    texts: Packing
    """C texts without gaps."""
    hidden: Hidden
    """The hidden tokens."""
    boxed: Tensor | None
    """(B,) the concepts that the box loss is asked of; None leaves the box head out."""
    boxed_tokens: int = 0
    """How many tokens their texts have together."""
    shown: Shown | None = None
    """What the host knows of `mask`; without it a ViT with local blocks asks the device."""
    image_key: Tensor | None = None
    """(C,) tells images apart across ranks; None lets all be each other's negatives."""
    text_key: Tensor | None = None
    """(C,) tells texts apart as the model does, by their tokens."""


def inputs_of(
    batch: ConceptBatch, model: MultiGrainModel, options: ObjectiveConfig
) -> ConceptInputs:
    """Reads a batch; `mark_hidden` must have seen it."""
    extras = batch.extras
    keyed = not options.all_others_are_negatives
    starts = batch.cu_seqlens.long()
    longest, total = batch.max_length, len(batch.tokens)
    return ConceptInputs(
        images=model.normalise_images(batch.images),
        image=batch.concept_image,
        mask=box_mask(batch.concept_box, model.vision.grid),
        box=batch.concept_box,
        tokens=batch.tokens,
        masked_tokens=batch.masked_tokens,
        texts=Packing(starts[:-1], starts[1:] - starts[:-1], total, longest),
        hidden=Hidden(
            extras["hidden_row"],
            extras["hidden_column"],
            extras["hidden_label"],
            extras["hidden_counts"],
            extras["most_hidden"],
        ),
        boxed=extras["boxed"],
        boxed_tokens=extras["boxed_tokens"],
        shown=Shown(extras["visible"], extras["regional"], extras["regional_visible"])
        if "visible" in extras
        else None,
        image_key=extras["image_key"] if keyed else None,
        text_key=extras["text_key"] if keyed else None,
    )


def mark_hidden(
    batch: ConceptBatch, grid: tuple[int, int] | None = None, boxes: bool = True
) -> ConceptBatch:
    """Lists, on the host, what would otherwise have to be looked for or counted on the device.

    Args:
        batch: still on the host.
        grid: the model's patch grid; None leaves out what the masks show.
        boxes: False for a batch without regions by construction: its update leaves the box head
            alone (X-VLM's image updates).
    """
    starts = batch.cu_seqlens.long()
    lengths = starts[1:] - starts[:-1]
    place = (batch.masked_labels != IGNORED).nonzero().squeeze(1)
    row = torch.searchsorted(starts, place, right=True) - 1
    counts = torch.bincount(row, minlength=len(lengths))
    boxed = (batch.grain != IMAGE).nonzero().squeeze(1)
    images = [stable_key(name) for name in batch.sample_ids]
    extras = {
        **batch.extras,
        "hidden_row": row,
        "hidden_column": place - starts[row],
        "hidden_label": batch.masked_labels[place],
        "hidden_counts": counts,
        "most_hidden": int(counts.max()) if len(counts) else 0,
        "boxed": boxed if boxes else None,
        "boxed_tokens": int(lengths[boxed].sum()) if boxes else 0,
        "image_key": _keys(images)[batch.concept_image],
        "text_key": _keys(_text_keys(batch.tokens, batch.cu_seqlens)),
    }
    if grid is not None:
        mask = box_mask(batch.concept_box, grid)
        shown = Shown.of(mask)
        # No tensor: it stays on the host when the batch leaves it.
        extras["patches_seen"] = mask.sum(dim=1).numpy()
        extras["visible"], extras["regional"] = shown.visible, shown.regional
        extras["regional_visible"] = shown.regional_visible
    batch.extras = extras
    return batch


def _text_keys(tokens: Tensor, cu_seqlens: Tensor) -> list[int]:
    """A key of each text's own tokens, before any is hidden: the same on every machine.

    Not of its words: the model sees them in lower case, without punctuation and cut, and texts that
    are one to it must not be each other's negatives.
    """
    ids = tokens.numpy().astype("<i8")
    return [
        int.from_bytes(hashlib.blake2b(ids[start:end], digest_size=8).digest(), "little")
        for start, end in pairwise(cu_seqlens.tolist())
    ]


def _keys(numbers: Iterable[int]) -> Tensor:
    """Positive int64; 0 is no one's."""
    return torch.tensor([1 + number % 2**62 for number in numbers], dtype=torch.long)
