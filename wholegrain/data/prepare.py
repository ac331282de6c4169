"""From one stored sample to one `Sample` of a batch: choose, decode, crop, resize, encode, mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from wholegrain.data.augment import Augment, AugmentConfig
from wholegrain.data.batch import IGNORED, WHOLE_IMAGE, Concept, Sample
from wholegrain.data.decode import ImageError, check_size, decode_image
from wholegrain.data.directions import swap_directions
from wholegrain.data.masking import MaskingConfig, Vocabulary, mask_tokens
from wholegrain.data.record import Record
from wholegrain.data.sampling import (
    Candidate,
    ConceptSampling,
    caption_candidates,
    region_candidates,
    usable_regions,
)
from wholegrain.data.views import View, corners_of
from wholegrain.errors import TextError
from wholegrain.text import Tokenizer


class SampleReader(Protocol):
    """What a stream needs of a corpus; `wholegrain.data.corpus.Corpus` is one."""

    fingerprint: str

    def __len__(self) -> int:
        """Number of samples."""

    def record(self, i: int, /) -> Record:
        """Record of sample `i`."""

    def image_bytes(self, i: int, /) -> bytes:
        """Image file of sample `i`."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What became of an image: (3, R, R), and where its regions lie in it.

    `boxes` goes by region and is cxcywh in 0..1; `shares` is parallel to the usable regions and
    says how much of each box is seen; `anchor` is the region that the crop was made for.
    """

    image: Tensor
    boxes: dict[int, tuple[float, float, float, float]]
    shares: list[float]
    flipped: bool
    anchor: int | None


class Preparer:
    """Makes batch samples; holds no state but its settings, so any worker makes the same ones.

    Args:
        tokenizer: encodes the texts.
        augment: how the image becomes a square.
        masking: None hides no token.
    """

    def __init__(
        self, tokenizer: Tokenizer, augment: AugmentConfig, masking: MaskingConfig | None
    ) -> None:
        self.tokenizer, self.masking = tokenizer, masking
        self.augment = Augment(augment)
        self._vocabulary = Vocabulary(tokenizer.mask_id, tokenizer.vocab_size)

    def __call__(
        self,
        corpus: SampleReader,
        index: int,
        sampling: ConceptSampling,
        rng: np.random.Generator | None,
        masking_rng: np.random.Generator | None = None,
        part: int = 0,
    ) -> Sample:
        """Prepares one sample.

        Args:
            rng: source of all chance; None takes the first texts, the whole image and its own
                colours.
            masking_rng: for masking alone; None takes `rng`.

        Raises:
            DataError: the record or the image is bad, or nothing of it is left to learn from.
        """
        record = corpus.record(index)
        where = f"{getattr(corpus, 'path', 'corpus')}: sample {index} ({record.id})"
        usable = usable_regions(record, sampling)
        image = corpus.image_bytes(index)
        seen = self._see(image, record, usable, where, rng, sampling.min_area_kept)
        candidates = [
            *caption_candidates(record, sampling, rng),
            *region_candidates(record, usable, seen.shares, seen.anchor, sampling, rng),
        ][: sampling.max_concepts]
        swap = seen.flipped and self.augment.config.flip == "swap"
        masking_rng = rng if masking_rng is None else masking_rng
        concepts = []
        for candidate in candidates:
            text = swap_directions(candidate.text) if swap else candidate.text
            box = WHOLE_IMAGE if candidate.region < 0 else seen.boxes[candidate.region]
            concept = self._concept(candidate, text, box, sampling.max_tokens, masking_rng)
            if concept is not None:
                concepts.append(concept)
        if not concepts:
            raise ImageError(where, "no text", _nothing_left(record, sampling))
        size = (record.width, record.height)
        return Sample(record.id, seen.image, concepts, index, part, size)

    def _see(
        self,
        data: bytes,
        record: Record,
        usable: Sequence[int],
        where: str,
        rng: np.random.Generator | None,
        least_share: float,
    ) -> _Seen:
        augment, width, height = self.augment, record.width, record.height
        corners = [corners_of(record.regions[i].box) for i in usable]
        anchor, keep, view = None, None, View(0, 0, width, height)
        if rng is not None:
            if usable:
                row = int(rng.random() * len(usable))
                anchor, keep = usable[row], corners[row]
            may_flip = augment.may_flip(_all_texts(record))
            view = augment.choose_view(width, height, keep, may_flip, rng)
        least = view.min_side(width, height, augment.config.resolution)
        decoded = decode_image(data, where, least)
        check_size(decoded, width, height, where)
        image, shown = augment.render(decoded, view, rng, bool(usable), keep, least_share)
        placed, shares = shown.place(corners)
        boxes = dict(zip(usable, placed, strict=True))
        return _Seen(image, boxes, shares, view.flipped, anchor)

    def _concept(
        self,
        candidate: Candidate,
        text: str,
        box: tuple[float, float, float, float],
        max_tokens: int,
        rng: np.random.Generator | None,
    ) -> Concept | None:
        """None for a text that holds no word, such as "???"."""
        try:
            ids = self.tokenizer.encode(text, max_tokens)
        except TextError:
            return None
        if self.masking is not None and rng is not None:
            starts = self.tokenizer.word_starts(ids)
            masked, labels = mask_tokens(ids, starts, self._vocabulary, self.masking, rng)
        else:
            masked, labels = list(ids), [IGNORED] * len(ids)
        return Concept(
            grain=candidate.grain,
            box=box,
            text=text,
            ids=ids,
            masked_ids=masked,
            labels=labels,
            region=candidate.region,
            text_index=candidate.text_index,
        )


def _all_texts(record: Record) -> Iterable[str]:
    yield from record.captions
    for region in record.regions:
        yield from region.texts
        yield from region.attributes


def _nothing_left(record: Record, sampling: ConceptSampling) -> str:
    if sampling.reference is not None and not usable_regions(record, sampling):
        return (
            f"the record has no expression of {sampling.reference!r}; check the name of the "
            "reference set and its split, or select the corpus's split"
        )
    return (
        f"none of the record's {len(record.captions)} captions and {len(record.regions)} regions "
        "gives a text with a word in it; clean the texts, or allow captions, regions or objects "
        "in the sampling"
    )
