"""Every text of every box is one expression, and batches are cut by the data alone."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.samples import Expression, corpus_expressions, expressions_of, plan_batches
from wholegrain.data.corpus import Corpus
from wholegrain.data.record import Record, Region
from wholegrain.errors import DataError


@dataclass
class Shelf:
    """A corpus view that holds records only."""

    records: list[Record]

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int, /) -> Record:
        return self.records[index]

    def image_bytes(self, index: int, /) -> bytes:
        raise AssertionError("no image is needed to list expressions")


def _expressions(images: list[int]) -> list[Expression]:
    """`images[i]` expressions about image i."""
    box = (0.0, 0.0, 1.0, 1.0)
    return [
        Expression(f"{i}/0/{t}", i, str(i), "x", box, (box,), 9, 9, "val")
        for i, count in enumerate(images)
        for t in range(count)
    ]


def test_each_text_is_an_expression_once(corpus: Corpus) -> None:
    found = corpus_expressions(corpus)
    texts = [
        text
        for i in range(len(corpus))
        for region in corpus.record(i).regions
        if region.grain == "region"
        for text in region.texts
    ]
    assert [one.text for one in found] == texts
    assert len({one.id for one in found}) == len(found)


def test_reference_gives_split_and_ids(corpus: Corpus) -> None:
    men = [one for one in corpus_expressions(corpus) if one.text == "man"]
    assert [(one.ref_id, one.sent_id, one.split) for one in men] == [
        (77, 500, "testA"),
        (77, 501, "testA"),
    ]
    others = [one for one in corpus_expressions(corpus) if one.text != "man"]
    assert {(one.ref_id, one.sent_id, one.split) for one in others} == {(None, None, "val")}


def test_several_boxes_and_their_hull(corpus: Corpus) -> None:
    (cups,) = [one for one in corpus_expressions(corpus) if one.text == "two cups"]
    assert cups.boxes == ((0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 10.0, 10.0))
    assert cups.box == (0.0, 0.0, 30.0, 10.0)


def test_kinds_are_those_of_flickr30k_entities() -> None:
    """Attributes of other sets are adjectives, and none of them a kind."""
    attributes = (("people", "clothing"), ("red", "other"), ())
    regions = [Region("region", (0, 0, 1, 1), ("x",), attributes=names) for names in attributes]
    record = Record("a", "s", "val", 9, 9, regions=tuple(regions))
    assert [one.kinds for one in expressions_of(record, 0)] == [("people", "clothing"), (), ()]


def test_grain_is_chosen(corpus: Corpus) -> None:
    record = corpus.record(0)
    assert {one.text for one in expressions_of(record, 0, ("object",))} == {"sky"}
    both = expressions_of(record, 0, ("region", "object"))
    assert len(both) == len(expressions_of(record, 0)) + 1


def test_nothing_to_evaluate_is_an_error() -> None:
    caption_only = Record("a", "s", "val", 9, 9, captions=("words",))
    with pytest.raises(DataError, match="no text for a box of grain region in its 1 records"):
        corpus_expressions(Shelf([caption_only]))


def test_a_corpus_without_expressions_is_named(corpus_folder: Path) -> None:
    val = Corpus.open(corpus_folder).select("val")
    val.record = lambda i: Record(str(i), "s", "val", 9, 9)  # type: ignore[method-assign]
    with pytest.raises(DataError) as caught:
        corpus_expressions(val)
    assert str(caught.value).startswith(f"{corpus_folder}, split 'val', has no text for a box")


def test_two_records_of_one_id_are_an_error() -> None:
    record = Record("a", "s", "val", 9, 9, regions=(Region("region", (0, 0, 1, 1), ("x",)),))
    with pytest.raises(DataError, match=r"records 0 and 1 share the id 'a'"):
        corpus_expressions(Shelf([record, record]))


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 5), st.integers(1, 7))
def test_plan_keeps_everything_in_order_within_limits(
    images: list[int], max_images: int, max_expressions: int
) -> None:
    expressions = _expressions(images)
    plan = plan_batches(expressions, max_images, max_expressions)
    assert [one for batch in plan for one in batch] == expressions
    for batch in plan:
        assert 1 <= len(batch) <= max_expressions
        assert len({one.record for one in batch}) <= max_images


def test_plan_splits_an_image_only_where_it_must() -> None:
    plan = plan_batches(_expressions([3, 3, 9]), max_images=8, max_expressions=4)
    assert [len(batch) for batch in plan] == [3, 3, 4, 4, 1]
    with pytest.raises(ValueError, match="max_images=0"):
        plan_batches([], max_images=0)
