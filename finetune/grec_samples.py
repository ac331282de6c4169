"""The expressions of generalized grounding: about one thing, about several, or about nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.predictions import corners_of
from finetune.protocols import Corners
from finetune.samples import CorpusView, expressions_of
from wholegrain.data.record import Record
from wholegrain.errors import DataError


@dataclass(frozen=True, slots=True)
class SetExpression:
    """One text and the boxes of all that it means."""

    id: str
    """``record/region/text`` as of `finetune.samples`; ``record/absent0/text`` without a box."""
    image: str
    text: str
    split: str
    width: int
    height: int
    truths: tuple[Corners, ...]
    """xyxy pixels of the stored image; empty where the photo shows nothing of the kind."""
    ref_id: int | None = None
    sent_id: int | None = None


def set_expressions(corpus: CorpusView) -> list[SetExpression]:
    """All phrases of a corpus view and all absent expressions, in its order.

    Raises:
        DataError: there are none, or two share an id (two records have the same id).
    """
    found: list[SetExpression] = []
    first_of: dict[str, int] = {}
    for index in range(len(corpus)):
        record = corpus.record(index)
        if (first := first_of.setdefault(record.id, index)) != index:
            raise DataError(
                f"records {first} and {index} share the id {record.id!r}, so their expressions "
                "cannot be told apart; evaluate one split at a time"
            )
        found += _present(record, index)
        found += _absent(record)
    if not found:
        raise DataError(
            f"the corpus of {len(corpus)} records has no expression; choose another split or "
            "convert with region annotations"
        )
    return found


def _present(record: Record, index: int) -> list[SetExpression]:
    return [
        SetExpression(
            id=one.id,
            image=one.image,
            text=one.text,
            split=one.split,
            width=one.width,
            height=one.height,
            truths=tuple(map(corners_of, one.boxes)),
            ref_id=one.ref_id,
            sent_id=one.sent_id,
        )
        for one in expressions_of(record, index)
    ]


def _absent(record: Record) -> list[SetExpression]:
    found = []
    for place, absent in enumerate(record.absent):
        reference = absent.ref
        sent_ids: Sequence[int | None] = reference.sent_ids if reference else ()
        if len(sent_ids) != len(absent.texts):
            sent_ids = [None] * len(absent.texts)
        for position, (text, sent_id) in enumerate(zip(absent.texts, sent_ids, strict=True)):
            found.append(
                SetExpression(
                    id=f"{record.id}/absent{place}/{position}",
                    image=record.id,
                    text=text,
                    split=reference.split if reference else record.split,
                    width=record.width,
                    height=record.height,
                    truths=(),
                    ref_id=reference.ref_id if reference else None,
                    sent_id=sent_id,
                )
            )
    return found
