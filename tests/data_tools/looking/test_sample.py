from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_tools.looking.filters import RecordFilter, TextQuery
from data_tools.looking.sample import Reading, draw, nothing_found, read_matching
from wholegrain.data.decode import ImageError
from wholegrain.data.record import Record
from wholegrain.data.storage import StorageGone
from wholegrain.errors import DataError, RecordError


class Billion:
    """A corpus too large to go through; every tenth record speaks of a dog, some are bad."""

    path = Path("billion")

    def __init__(self, bad: set[int] | range = range(0)) -> None:
        self.bad, self.asked = bad, 0

    def __len__(self) -> int:
        return 10**9

    def record(self, i: int) -> Record:
        self.asked += 1
        if i in self.bad:
            raise RecordError("shard.tar: sample", f"regions[{i}].box", "x", "mend it")
        text = "a dog" if i % 10 == 0 else "a cat"
        return Record(f"b/{i}", f"source {i % 3}", "train", 8, 8, captions=(text,))


def read(corpus: Any, positions: Any, wanted: RecordFilter | None = None) -> Any:
    reading = Reading(total=len(corpus))
    return list(read_matching(corpus, positions, wanted or RecordFilter(), reading)), reading


def test_the_seed_decides_what_is_drawn() -> None:
    assert draw(10**9, 50, 3) == draw(10**9, 50, 3) != draw(10**9, 50, 4)
    assert sorted(draw(20, 50, 3)) == list(range(20))


def test_a_draw_is_fair() -> None:
    # 2,000 draws of 5 among 20: each position 500 times, standard deviation 19.
    counts = Counter(p for seed in range(2000) for p in draw(20, 5, seed))
    assert len(counts) == 20 and all(abs(count - 500) < 5 * 19.4 for count in counts.values())
    # What comes first is a sample, too: not the least of those drawn.
    first = Counter(draw(20, 5, seed)[0] for seed in range(2000))
    assert len(first) == 20 and all(abs(count - 100) < 5 * 9.8 for count in first.values())


def test_no_more_is_read_than_was_drawn() -> None:
    corpus = Billion()
    found, reading = read(corpus, draw(len(corpus), 300, 1), RecordFilter(text=TextQuery("dog")))
    assert corpus.asked == reading.read == 300
    assert len(found) == reading.matched
    assert all(position % 10 == 0 and record.captions == ("a dog",) for position, record in found)
    assert reading.sources.total() == 300 and len(reading.sources) == 3
    assert not reading.complete


def test_bad_records_are_counted_by_cause() -> None:
    found, reading = read(Billion(bad={3, 4, 7}), range(20))
    assert [position for position, _ in found] == [p for p in range(20) if p not in {3, 4, 7}]
    assert reading.bad == {"record: regions[].box": 3}
    assert len(reading.faults) == 3 and "regions[3].box" in reading.faults[0]
    assert reading.told() == "record: regions[].box (3)"


def test_photos_keep_their_own_cause() -> None:
    reading = Reading(total=1)
    reading.add_fault(ImageError("x.tar", "truncated", "ends early"))
    reading.add_fault(DataError("gone"))
    assert reading.bad == {"truncated": 1, "unreadable": 1}


def test_few_messages_are_kept() -> None:
    _, reading = read(Billion(bad=range(90)), range(200))
    assert reading.bad.total() == 90 and len(reading.faults) == 5


def test_a_corpus_of_bad_records_alone_is_refused_soon() -> None:
    corpus = Billion(bad=range(10**9))
    with pytest.raises(DataError, match=r"none of the 100 records read is sound.*regions\[0\].box"):
        read(corpus, range(10**6))
    assert corpus.asked == 100
    with pytest.raises(DataError, match="none of the 3 records"):
        read(Billion(bad=range(3)), range(3))


def test_storage_that_is_gone_is_no_bad_record() -> None:
    corpus: Any = Billion()

    def gone(i: int) -> Record:
        raise StorageGone("s3://b: does not answer")

    corpus.record = gone
    with pytest.raises(StorageGone):
        read(corpus, range(9))


def test_what_was_there_is_told_where_nothing_matches() -> None:
    wanted = RecordFilter(source="source 9", grain="image", text=TextQuery("dog"))
    corpus: Any = Billion()
    found, reading = read(corpus, range(30), wanted)
    assert not found
    told = str(nothing_found(corpus, wanted, reading, "raise --read"))
    assert "none of the 30 records read (of 1,000,000,000)" in told
    assert "source source 9, grain image, text dog" in told
    assert "source 0 (10)" in told and told.endswith("raise --read")


def test_a_source_for_each_record_fills_no_memory() -> None:
    reading = Reading(total=10**9)
    corpus: Any = Billion()
    corpus.record = lambda i: Record(f"b/{i}", f"s{i}", "train", 8, 8, captions=("words",))
    list(read_matching(corpus, range(500), RecordFilter(), reading))
    assert len(reading.sources) == 9 and reading.sources.total() == 500
