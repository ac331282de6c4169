"""A batch is a list of visual concepts.

Images stand in it once. A concept is (image, box, text, grain): the caption is the concept whose
box is the whole image. Texts are packed without padding; `ConceptBatch.padded` gives the padded
form, which is the slow reference of every packed path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

IMAGE, REGION, OBJECT = 0, 1, 2
"""Values of `ConceptBatch.grain`."""

GRAINS = ("image", "region", "object")
"""Names of the grains, by value."""

WHOLE_IMAGE = (0.5, 0.5, 1.0, 1.0)
"""The box of an image concept: cxcywh of the unit square."""

IGNORED = -100
"""Label of a token that was not masked; `torch.nn.functional.cross_entropy` skips it."""


@dataclass(frozen=True, slots=True)
class Concept:
    """One text about one box of one image.

    Attributes:
        grain: `IMAGE`, `REGION` or `OBJECT`.
        box: cxcywh in 0..1 of the image that the model sees (after crop, flip and resize).
        text: the words as they were before encoding.
        ids: token ids, ``[CLS]`` first.
        masked_ids: `ids` after masking; equal to `ids` where nothing is masked.
        labels: the original id where a token was masked, `IGNORED` elsewhere.
        region: position in the record's `regions`; -1 for a caption.
        text_index: position among the region's texts, or among the captions.
    """

    grain: int
    box: tuple[float, float, float, float]
    text: str
    ids: Sequence[int]
    masked_ids: Sequence[int]
    labels: Sequence[int]
    region: int = -1
    text_index: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with the concepts chosen for it, ready to be put into a batch.

    Attributes:
        id: the record's id.
        image: uint8 (3, R, R).
        concepts: may be empty: the image is then encoded for nothing, but nothing breaks.
        index: position of the record in its corpus.
        part: which corpus of the mixture.
        size: (width, height) of the stored image in pixels.
    """

    id: str
    image: Tensor
    concepts: Sequence[Concept]
    index: int = 0
    part: int = 0
    size: tuple[int, int] = (0, 0)


@dataclass
class ConceptBatch:
    """I images and C concepts on them, with T tokens of packed text.

    Attributes:
        images: uint8 (I, 3, R, R); the model normalises them on its device.
        concept_image: long (C,), row of `images`; never decreases.
        concept_box: float (C, 4), cxcywh in 0..1 of the R x R image.
        grain: long (C,), `IMAGE`, `REGION` or `OBJECT`.
        tokens: long (T,), each text's ids in a row, ``[CLS]`` first in each.
        cu_seqlens: int32 (C + 1,), text c is ``tokens[cu_seqlens[c]:cu_seqlens[c + 1]]``.
        masked_tokens: long (T,), tokens with masking applied.
        masked_labels: long (T,), the original id at masked places, -100 elsewhere.
        sample_ids: the records' ids, one an image.
        max_length: tokens of the longest text. On the host, so that `padded` needs no look at the
            device.
        pad_id: the id that `padded` fills up with.
        extras: what else a task or its evaluation needs. `collate` puts in ``index`` and ``part``
            long (I,), ``size`` long (I, 2) as width and height of the stored image, ``region`` and
            ``text_index`` long (C,), and ``texts``, a list of C strings. `Stream` adds ``step``.
    """

    images: Tensor
    concept_image: Tensor
    concept_box: Tensor
    grain: Tensor
    tokens: Tensor
    cu_seqlens: Tensor
    masked_tokens: Tensor
    masked_labels: Tensor
    sample_ids: list[str]
    max_length: int
    pad_id: int = 0
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """I."""
        return self.images.shape[0]

    @property
    def num_concepts(self) -> int:
        """C."""
        return self.grain.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.images.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ConceptBatch:
        """The same batch on `device`; tensors among `extras` move too."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ConceptBatch:
        """The same batch in page-locked memory; the torch loader calls this by name."""
        return self._map(lambda tensor: tensor.pin_memory())

    def padded(self, length: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The texts as rectangles.

        Args:
            length: L; None takes the longest text of the batch. Longer texts are cut.

        Returns:
            ids (C, L) long, mask (C, L) bool with True at tokens, masked ids (C, L) long,
            labels (C, L) long. Padding holds `pad_id` in both ids and -100 in the labels. No
            value is read back from the device.
        """
        length = self.max_length if length is None else length
        starts = self.cu_seqlens[:-1].long()
        lengths = self.cu_seqlens[1:].long() - starts
        column = torch.arange(length, device=self.device)
        mask = column < lengths[:, None]
        source = torch.where(mask, starts[:, None] + column, 0)
        if not self.tokens.numel():  # nothing to gather from
            blank = torch.full_like(source, self.pad_id)
            return blank, mask, blank.clone(), torch.full_like(source, IGNORED)
        return (
            self.tokens[source].masked_fill(~mask, self.pad_id),
            mask,
            self.masked_tokens[source].masked_fill(~mask, self.pad_id),
            self.masked_labels[source].masked_fill(~mask, IGNORED),
        )

    def _map(self, move: Callable[[Tensor], Tensor]) -> ConceptBatch:
        extras = {k: move(v) if isinstance(v, Tensor) else v for k, v in self.extras.items()}
        return replace(
            self,
            images=move(self.images),
            concept_image=move(self.concept_image),
            concept_box=move(self.concept_box),
            grain=move(self.grain),
            tokens=move(self.tokens),
            cu_seqlens=move(self.cu_seqlens),
            masked_tokens=move(self.masked_tokens),
            masked_labels=move(self.masked_labels),
            extras=extras,
        )


def collate(samples: Sequence[Sample], pad_id: int = 0) -> ConceptBatch:
    """Puts samples into one batch, in their order.

    Args:
        samples: at least one, all images of the same size.
        pad_id: the tokenizer's padding id.

    Raises:
        ValueError: no sample at all.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    concepts = [concept for sample in samples for concept in sample.concepts]
    rows = [row for row, sample in enumerate(samples) for _ in sample.concepts]
    lengths = [len(concept.ids) for concept in concepts]
    return ConceptBatch(
        images=_stacked([sample.image for sample in samples]),
        concept_image=torch.tensor(rows, dtype=torch.long),
        concept_box=torch.tensor([c.box for c in concepts], dtype=torch.float32).view(-1, 4),
        grain=torch.tensor([c.grain for c in concepts], dtype=torch.long),
        tokens=_packed([c.ids for c in concepts]),
        cu_seqlens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        masked_tokens=_packed([c.masked_ids for c in concepts]),
        masked_labels=_packed([c.labels for c in concepts]),
        sample_ids=[sample.id for sample in samples],
        max_length=max(lengths, default=1),
        pad_id=pad_id,
        extras={
            "index": torch.tensor([s.index for s in samples], dtype=torch.long),
            "part": torch.tensor([s.part for s in samples], dtype=torch.long),
            "size": torch.tensor([s.size for s in samples], dtype=torch.long).view(-1, 2),
            "region": torch.tensor([c.region for c in concepts], dtype=torch.long),
            "text_index": torch.tensor([c.text_index for c in concepts], dtype=torch.long),
            "texts": [c.text for c in concepts],
        },
    )


def _stacked(images: Sequence[Tensor]) -> Tensor:
    """The images as one tensor; those that lie in a row in one memory are not copied."""
    first, count = images[0], len(images)
    size = first.numel() * first.element_size()
    starts = range(first.data_ptr(), first.data_ptr() + count * size, size)
    shared = first.untyped_storage()
    room = shared.data_ptr() + shared.nbytes() - first.data_ptr()
    if room < count * size or any(
        image.data_ptr() != start or not image.is_contiguous() or image.shape != first.shape
        for image, start in zip(images, starts, strict=True)
    ):
        return torch.stack(list(images))
    return first.as_strided((count, *first.shape), (first.numel(), *first.stride()))


def _packed(texts: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([token for text in texts for token in text], dtype=torch.long)
