import pytest

from data_tools.looking.collect import Stats
from wholegrain.data.record import Absent, Record, Reference, Region


def record(split: str = "train") -> Record:
    phrases = Region("region", (0.0, 0.0, 5.0, 10.0), ("A dog", "the brown dog", "a dog"))
    ref = Reference("refcoco-unc", 1, (1,), "train")
    expression = Region("region", (0.0, 0.0, 10.0, 20.0), ("left one",), ref=ref)
    thing = Region("object", (2.0, 2.0, 4.0, 1.0), ("dog",))
    absent = Absent(("the cow", "no cat"))
    regions = (phrases, expression, thing)
    return Record("i", "s", split, 10, 20, ("one two three",), regions, absent=(absent,))


def values(stats: Stats, name: str) -> dict[int, int]:
    return dict(stats.all().values[name].cells)


def test_all_of_a_record_is_counted() -> None:
    stats = Stats()
    stats.add(record())
    assert stats.summary(9)["splits"]["train"] == {
        "images": 1,
        "captions": 1,
        "regions": 2,
        "phrases": 4,
        "objects": 1,
        "expressions": 3,
    }
    assert values(stats, "caption words") == {3: 1}
    assert values(stats, "phrase words") == {2: 3, 3: 1}
    assert values(stats, "boxes in an image") == {3: 1}
    everything = stats.all().values
    assert (everything["region % of image"].least, everything["region % of image"].greatest) == (
        25.0,
        100.0,
    )
    assert everything["object width/height"].mean == 4.0
    assert everything["image width/height"].mean == 0.5
    assert stats.texts["phrases"].most_common(1) == [("a dog", 2)]
    assert stats.texts["objects"].most_common(2) == [("dog", 1)]


@pytest.mark.parametrize(
    ("grain", "counts"),
    [
        ("image", {"images": 1, "captions": 1}),
        ("region", {"images": 1, "regions": 2, "phrases": 4, "expressions": 3}),
        ("object", {"images": 1, "objects": 1}),
    ],
)
def test_a_grain_is_counted_alone(grain: str, counts: dict[str, int]) -> None:
    stats = Stats(grain)
    stats.add(record())
    assert stats.summary(9)["splits"]["train"] == counts
    assert stats.summary(9)["sources"]["s"] == counts
    boxes = {"image": None, "region": {2: 1}, "object": {1: 1}}[grain]
    found = stats.all().values.get("boxes in an image")
    assert (None if found is None else dict(found.cells)) == boxes


def test_splits_are_kept_apart_and_add_up() -> None:
    stats = Stats()
    for split in ("train", "val", "train"):
        stats.add(record(split))
    row = stats.summary(9)
    assert {split: counts["images"] for split, counts in row["splits"].items()} == {
        "train": 2,
        "val": 1,
    }
    assert row["quantities"]["phrase words"]["count"] == 12
    assert row["quantities_by_split"]["val"]["phrase words"]["count"] == 4


def test_tokens_over_the_limit() -> None:
    stats = Stats(count_tokens=lambda text: 1 + len(text.split()), max_tokens=3)
    stats.add(record())
    assert values(stats, "caption tokens") == {4: 1}
    assert values(stats, "phrase tokens") == {3: 3, 4: 1}
    assert stats.text_summary("captions")["too_long_share"] == 1
    assert stats.text_summary("phrases")["too_long_share"] == 0.25


def test_tokens_that_nobody_counts() -> None:
    stats = Stats()
    stats.add(record())
    assert stats.text_summary("captions")["too_long_share"] is None
    assert "caption tokens" not in stats.all().values


def test_a_corpus_without_boxes_has_no_number_of_boxes() -> None:
    stats = Stats()
    stats.add(Record("i", "s", "train", 10, 20, ("words",)))
    assert "boxes in an image" not in stats.all().values


def test_a_source_for_each_record_fills_no_memory() -> None:
    stats = Stats()
    for n in range(3000):
        stats.add(Record(f"i/{n}", f"s{n}", "train", 10, 20, ("words",)))
    assert len(stats.sources) <= 1001
    assert sum(counts["images"] for counts in stats.sources.values()) == 3000
