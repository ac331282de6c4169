"""The expressions of a corpus: what a grounding benchmark counts.

The unit of the benchmarks is the expression: one text that is to be answered by one box. An image
owns many, and one annotated object owns several; each is evaluated exactly once, so each has a name
of its own that no other expression shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from finetune.slices import KINDS
from wholegrain.data.record import Box, Record
from wholegrain.errors import DataError


class CorpusView(Protocol):
    """What the evaluation needs of a corpus (`wholegrain.data.corpus.Corpus` or a view of one)."""

    def __len__(self) -> int: ...

    def record(self, index: int, /) -> Record: ...

    def image_bytes(self, index: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Expression:
    """One text and the box that answers it."""

    id: str
    """Stable name, ``record/region/text``: positions in the record, so it survives re-sharding."""
    record: int
    """Position of the record in the corpus view."""
    image: str
    """The record's id; expressions of one image share it."""
    text: str
    """As annotated; nothing is normalised here."""
    box: Box
    """xywh pixels of the stored image; of several boxes the one that encloses them all."""
    boxes: tuple[Box, ...]
    """All boxes of the phrase, xywh pixels; ``(box,)`` where there is one."""
    width: int
    height: int
    split: str
    """The reference's split where the data set splits by reference, else the record's."""
    ref_id: int | None = None
    sent_id: int | None = None
    kinds: tuple[str, ...] = ()
    """Annotated kinds of the thing, of `finetune.slices.KINDS`; often none."""


def expressions_of(
    record: Record, index: int, grains: Sequence[str] = ("region",)
) -> list[Expression]:
    """Every text of every region of the given grains, in the record's order, exactly once.

    A text that an annotator wrote twice is two expressions, as in the published counts.

    Args:
        record: the sample.
        index: its position in the corpus view.
        grains: ``region`` for phrases, ``object`` for category names, or both.
    """
    found = []
    for place, region in enumerate(record.regions):
        if region.grain not in grains:
            continue
        reference = region.ref
        sent_ids = list(reference.sent_ids) if reference else []
        # Attributes of other data sets are adjectives ("red"), among which "other" says nothing.
        annotated = all(name in KINDS for name in region.attributes)
        for position, text in enumerate(region.texts):
            found.append(
                Expression(
                    id=f"{record.id}/{place}/{position}",
                    record=index,
                    image=record.id,
                    text=text,
                    box=region.box,
                    boxes=region.boxes or (region.box,),
                    width=record.width,
                    height=record.height,
                    split=reference.split if reference else record.split,
                    ref_id=reference.ref_id if reference else None,
                    # Sentence ids belong to texts one by one; in another number they say nothing.
                    sent_id=sent_ids[position] if len(sent_ids) == len(region.texts) else None,
                    kinds=region.attributes if annotated else (),
                )
            )
    return found


def corpus_expressions(corpus: CorpusView, grains: Sequence[str] = ("region",)) -> list[Expression]:
    """All expressions of a corpus view, in its order.

    Args:
        corpus: the view.
        grains: as for `expressions_of`.

    Raises:
        DataError: there are none, or two share an id (two records have the same id).
    """
    found: list[Expression] = []
    first_of: dict[str, int] = {}
    for index in range(len(corpus)):
        record = corpus.record(index)
        if record.id in first_of:
            raise DataError(
                f"records {first_of[record.id]} and {index} share the id {record.id!r}, so their "
                "expressions cannot be told apart; evaluate one split at a time"
            )
        first_of[record.id] = index
        found += expressions_of(record, index, grains)
    if not found:
        raise DataError(
            f"{_place_of(corpus)} has no text for a box of grain {' or '.join(grains)} in its "
            f"{len(corpus)} records; choose another split or convert with region annotations"
        )
    return found


def _place_of(corpus: CorpusView) -> str:
    """Folder and split of a corpus, where the view has them."""
    path, split = getattr(corpus, "path", "the corpus"), getattr(corpus, "split", None)
    return f"{path}" if split is None else f"{path}, split {split!r},"


def plan_batches(
    expressions: Iterable[Expression], max_images: int = 32, max_expressions: int = 128
) -> list[list[Expression]]:
    """Cuts the expressions into fixed batches of whole, consecutive images.

    The cut depends on the data and the two limits alone, never on the number of processes: a
    batch's padding, and so the last bit of a prediction, is the same on 1 and on 64 GPUs. An image
    is split over batches only if its expressions fill more than one.

    Args:
        expressions: in corpus order.
        max_images: images in a batch, at most.
        max_expressions: expressions in a batch, at most.
    """
    if max_images < 1 or max_expressions < 1:
        raise ValueError(f"limits must be positive: {max_images=}, {max_expressions=}")
    by_image: dict[int, list[Expression]] = {}
    for expression in expressions:
        by_image.setdefault(expression.record, []).append(expression)

    batches: list[list[Expression]] = []
    room_images = room_expressions = 0
    for group in by_image.values():
        for start in range(0, len(group), max_expressions):
            part = group[start : start + max_expressions]
            if room_images == 0 or room_expressions < len(part):
                batches.append([])
                room_images, room_expressions = max_images, max_expressions
            batches[-1] += part
            room_images -= 1
            room_expressions -= len(part)
    return batches
