"""From one stored sample to one `Sample` of a batch: choose, decode, crop, resize, encode, mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
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
from wholegrain.data.storage import StorageGone
from wholegrain.data.views import Corners, View, corners_of
from wholegrain.errors import DataError, TextError
from wholegrain.text import Tokenizer

T = TypeVar("T")


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
class Job:
    """A sample to prepare.

    Attributes:
        rng: source of all chance; None takes the first texts, the whole image and its own colours.
        masking_rng: for masking alone; None takes `rng`.
        part: which corpus of the mixture.
    """

    corpus: SampleReader
    index: int
    sampling: ConceptSampling
    rng: np.random.Generator | None
    masking_rng: np.random.Generator | None = None
    part: int = 0


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What is drawn before the image is looked at.

    `usable` are positions of regions, `corners` parallel to them. `anchor` is the row of the one
    that the crop was made for.
    """

    record: Record
    where: str
    usable: list[int]
    corners: list[Corners]
    anchor: int | None
    view: View


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
        """Prepares one sample; the arguments are those of `Job`.

        Raises:
            DataError: the record or the image is bad, or nothing of it is left to learn from.
        """
        (outcome,) = self.prepare([Job(corpus, index, sampling, rng, masking_rng, part)])
        if isinstance(outcome, DataError):
            raise outcome
        return outcome

    def prepare(self, jobs: Sequence[Job]) -> list[Sample | DataError]:
        """Prepares samples, each as if it were alone; a bad one gives way to its error.

        Each step is made for all of them before the next. Decoding sweeps a core's caches, and
        between two photos the same Python runs at half its speed.

        Raises:
            StorageGone: remote storage gives no more bytes.
        """
        chosen = [_attempt(self._choose, job) for job in jobs]
        side = self.augment.config.resolution
        # One memory for all, which `collate` takes as it is.
        images = torch.empty(len(jobs), 3, side, side, dtype=torch.uint8)
        seen = [
            _attempt(partial(self._see, images[row]), job, choice)
            for row, (job, choice) in enumerate(zip(jobs, chosen, strict=True))
        ]
        triples = zip(jobs, chosen, seen, strict=True)
        return [_attempt(self._finish, *triple) for triple in triples]

    def _choose(self, job: Job) -> _Chosen:
        """Reads the record and draws the view."""
        record, rng = job.corpus.record(job.index), job.rng
        where = f"{getattr(job.corpus, 'path', 'corpus')}: sample {job.index} ({record.id})"
        usable = usable_regions(record, job.sampling)
        corners = [corners_of(record.regions[i].box) for i in usable]
        if rng is None:
            view = View(0, 0, record.width, record.height)
            return _Chosen(record, where, usable, corners, None, view)
        anchor = int(rng.random() * len(usable)) if usable else None
        keep = None if anchor is None else corners[anchor]
        may_flip = self.augment.may_flip(_all_texts(record))
        view = self.augment.choose_view(record.width, record.height, keep, may_flip, rng)
        return _Chosen(record, where, usable, corners, anchor, view)

    def _see(self, image: Tensor, job: Job, chosen: _Chosen) -> tuple[Tensor, View]:
        """Decodes the image, cuts the view out of it and augments it, into `image`."""
        width, height = chosen.record.width, chosen.record.height
        least = chosen.view.min_side(width, height, self.augment.config.resolution)
        data = job.corpus.image_bytes(job.index)
        decoded = decode_image(data, chosen.where, least)
        check_size(decoded, width, height, chosen.where)
        keep = None if chosen.anchor is None else chosen.corners[chosen.anchor]
        has_boxes, least_share = bool(chosen.usable), job.sampling.min_area_kept
        arguments = decoded, chosen.view, job.rng, has_boxes, keep, least_share
        _, shown = self.augment.render(*arguments, out=image.numpy())
        return image, shown

    def _finish(self, job: Job, chosen: _Chosen, seen: tuple[Tensor, View]) -> Sample:
        """Makes the concepts."""
        (image, shown), rng, sampling, record = seen, job.rng, job.sampling, chosen.record
        anchor = None if chosen.anchor is None else chosen.usable[chosen.anchor]
        placed, shares = shown.place(chosen.corners)
        boxes = dict(zip(chosen.usable, placed, strict=True))
        candidates = [
            *caption_candidates(record, sampling, rng),
            *region_candidates(record, chosen.usable, shares, anchor, sampling, rng),
        ][: sampling.max_concepts]
        swap = shown.flipped and self.augment.config.flip == "swap"
        masking_rng = rng if job.masking_rng is None else job.masking_rng
        concepts = []
        for candidate in candidates:
            text = swap_directions(candidate.text) if swap else candidate.text
            box = WHOLE_IMAGE if candidate.region < 0 else boxes[candidate.region]
            concept = self._concept(candidate, text, box, sampling.max_tokens, masking_rng)
            if concept is not None:
                concepts.append(concept)
        if not concepts:
            raise ImageError(chosen.where, "no text", _nothing_left(record, sampling))
        size = (record.width, record.height)
        return Sample(record.id, image, concepts, job.index, job.part, size)

    def _concept(
        self,
        candidate: Candidate,
        text: str,
        box: tuple[float, float, float, float],
        max_tokens: int,
        rng: np.random.Generator | None,
    ) -> Concept | None:
        """None for a text that holds no word, such as "???" or a zero-width space."""
        try:
            ids = self.tokenizer.encode(text, max_tokens)
        except TextError:
            return None
        if len(ids) < 2:  # [CLS] alone
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


def _attempt(step: Callable[..., T], job: Job, *earlier: Any) -> T | DataError:
    """The step's result, or its error, or the error of an earlier step."""
    for result in earlier:
        if isinstance(result, DataError):
            return result
    try:
        return step(job, *earlier)
    except StorageGone:
        raise  # the sample is not to blame, and the others lie there too
    except DataError as error:
        return error


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
