"""Expressions about one thing, about several and about nothing, each with a name of its own."""

from pathlib import Path

import pytest

from finetune.grec_samples import set_expressions
from finetune.samples import corpus_expressions
from wholegrain.data.corpus import Corpus
from wholegrain.data.record import Record, Region
from wholegrain.errors import DataError


def test_every_text_is_an_expression_once(grec_folder: Path) -> None:
    corpus = Corpus.open(grec_folder)
    found = set_expressions(corpus)
    assert len(found) == 4 * 3 + 3 * 3
    assert len({one.id for one in found}) == len(found)
    assert [len(one.truths) for one in found[:9]] == [1, 2, 2, 1, 2, 2, 0, 0, 0]
    both = found[1]
    assert both.truths == ((5.0, 5.0, 25.0, 15.0), (30.0, 30.0, 40.0, 50.0))
    assert (both.text, both.ref_id, both.sent_id, both.split) == ("both cups", 10, 10, "val")


def test_those_about_something_are_named_as_in_plain_grounding(grec_folder: Path) -> None:
    corpus = Corpus.open(grec_folder)
    named = [one.id for one in set_expressions(corpus) if one.truths]
    assert named == [one.id for one in corpus_expressions(corpus)]


def test_absent_expressions_keep_their_reference(grec_folder: Path) -> None:
    giraffe, man, bus = set_expressions(Corpus.open(grec_folder))[6:9]
    assert giraffe.id == "grefcoco-unc/val/1/absent0/0"
    assert (giraffe.text, giraffe.ref_id, giraffe.sent_id) == ("a giraffe", 120, 120)
    assert (man.ref_id, man.sent_id) == (120, 121)
    assert bus.id == "grefcoco-unc/val/1/absent1/0"
    assert (bus.ref_id, bus.sent_id, bus.split) == (None, None, "val")


class Shelf(list[Record]):
    """A corpus view that holds records only."""

    def record(self, index: int, /) -> Record:
        return self[index]

    def image_bytes(self, index: int, /) -> bytes:
        raise AssertionError("no image is needed to list expressions")


def test_nothing_and_ambiguous_records_are_errors() -> None:
    record = Record("a", "s", "val", 9, 9, regions=(Region("region", (0, 0, 1, 1), ("x",)),))
    with pytest.raises(DataError, match="records 0 and 1 share the id 'a'"):
        set_expressions(Shelf([record, record]))
    with pytest.raises(DataError, match="has no expression"):
        set_expressions(Shelf([Record("a", "s", "val", 9, 9, captions=("words",))]))
