import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_tools import published
from data_tools.published import compare, published_counts
from wholegrain.data.assemble import COUNTED
from wholegrain.data.corpus import Corpus


def manifest(inputs: dict[str, Any] | None = None, **splits: dict[str, int]) -> dict[str, Any]:
    """Of a corpus with these counts by split."""
    whole = {split: dict.fromkeys(COUNTED, 0) | counts for split, counts in splits.items()}
    return {
        "source": {"inputs": inputs or {}, "skipped": {}, "left_out": {}},
        "counts": {name: sum(counts[name] for counts in whole.values()) for name in COUNTED},
        "split_counts": whole,
    }


def unc(split: str) -> dict[str, int]:
    """The counts of a split as published."""
    rows = published_counts()["refcoco-unc"]
    return {row.quantity: row.count for row in rows if row.split == split}


def test_the_table_is_sound() -> None:
    path = Path(published.__file__).with_name("published.csv")
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    keys = [(row["set"], row["split"], row["quantity"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert {quantity for _, _, quantity in keys} <= set(COUNTED)
    assert all(row["source"].strip() and int(row["count"]) > 0 for row in rows)


def test_totals_that_are_published_too_agree() -> None:
    def total(name: str, quantity: str) -> int:
        return sum(row.count for row in published_counts()[name] if row.quantity == quantity)

    # The halves of COCO were divided anew in 2017.
    for quantity in ("images", "captions", "objects"):
        assert total("coco2014", quantity) == total("coco2017", quantity)
    assert total("refcoco-unc", "references") == total("refcoco-google", "references") == 50_000
    assert total("refcoco+-unc", "expressions") == 141_564
    assert total("refcocog-umd", "references") == 49_822
    assert total("flickr30k_entities", "images") == 31_783
    assert total("flickr30k_entities", "captions") == 158_915


def test_as_published_is_no_line() -> None:
    splits = {name: unc(name) for name in ("train", "val", "testA", "testB")}
    assert compare("refcoco-unc", manifest({"split": None}, **splits), Counter()) == []
    assert compare("refcoco-unc", manifest({"split": "val"}, val=unc("val")), Counter()) == []


def test_each_split_and_quantity_that_differs_is_a_line() -> None:
    val, train = unc("val"), unc("train")
    val["expressions"] -= 34
    train["images"] += 1
    found = manifest({"split": None}, val=val, train=train, mine={"images": 5})
    assert compare("refcoco-unc", found, Counter()) == [
        "refcoco-unc train images: published 16,994, here 16,995, 1 more (0.01%); no reason is "
        "known",
        "refcoco-unc val expressions: published 10,834, here 10,800, missing 34 (0.31%); no reason "
        "is known",
        "refcoco-unc: no published counts for split mine",
        "refcoco-unc: nothing of split testA, testB, which the set should have",
    ]


def test_what_rules_left_out_accounts_for_a_difference() -> None:
    val = {"images": 5000, "objects": 36_781 - 446 - 2, "captions": 25_014}
    left_out = Counter({"crowd box": 446, "region: box outside": 2, "region: box clipped": 9})
    assert compare("coco2017", manifest(val=val), left_out) == []
    val["objects"] -= 1
    (line,) = compare("coco2017", manifest(val=val), left_out)
    assert line == (
        "coco2017 val objects: published 36,781, here 36,332, missing 449 (1.22%); 446 x crowd "
        "box; 2 x region: box outside"
    )


def test_what_is_left_out_is_counted_over_all_splits() -> None:
    val, train = unc("val"), unc("train")
    val["expressions"] -= 3
    train["expressions"] -= 4
    found = manifest({"split": "two"}, val=val, train=train)
    assert compare("refcoco-unc", found, Counter({"empty expression": 7})) == []
    lines = compare("refcoco-unc", found, Counter({"empty expression": 6}))
    assert len(lines) == 2
    assert all("; in all splits: 6 x empty expression" in line for line in lines)


def test_bad_and_excluded_samples_are_named() -> None:
    found = manifest({"split": "val"}, val=unc("val") | {"images": 1490, "references": 3800})
    found["source"]["skipped"] = {"image: missing": 4}
    left_out = Counter({"excluded: flickr30k": 6})
    found["source"]["left_out"] = dict(left_out)
    images, references = compare("refcoco-unc", found, left_out)
    assert images.endswith("missing 10 (0.67%); 6 x excluded: flickr30k; 4 bad samples skipped")
    assert references.endswith("missing 11 (0.29%); 4 bad samples skipped; 6 photos excluded")
    found["source"]["skipped"] = {}
    found["split_counts"]["val"] |= {"images": 1494, "references": 3811}
    assert compare("refcoco-unc", found, left_out) == []


def test_a_quantity_that_was_not_converted_is_not_compared() -> None:
    assert (
        compare("coco2014", manifest(val={"images": 40_504, "captions": 202_654}), Counter()) == []
    )


def test_rounded_figures_are_compared_as_such() -> None:
    whole = {"images": 108_077, "regions": 5_408_689, "objects": 3_802_374}
    assert compare("visual_genome", manifest({"split": "mine"}, mine=whole), Counter()) == []
    whole["regions"] = 5_200_000
    (line,) = compare("visual_genome", manifest(train=whole), Counter())
    assert "regions: published about 5,400,000, here 5,200,000, missing 200,000 (3.70%)" in line
    assert (
        compare("visual_genome", manifest(train=whole), Counter({"repeated region": 160_000})) == []
    )


def test_a_whole_is_compared_only_if_it_was_asked_for() -> None:
    part = {"images": 1, "expressions": 5}
    assert compare("grefcoco-unc", manifest({"split": "val"}, val=part), Counter()) == []
    lines = compare("grefcoco-unc", manifest({"split": None}, val=part), Counter())
    assert [line.split(":")[0] for line in lines] == [
        "grefcoco-unc expressions",
        "grefcoco-unc images",
    ]


def test_lists_of_addresses_say_why_photos_are_missing() -> None:
    (line,) = compare("cc3m", manifest(train={"images": 2_900_000}), Counter())
    assert "published 3,318,333, here 2,900,000, missing 418,333 (12.61%)" in line
    assert "some of the photos are gone" in line


def test_a_set_without_counts_is_named() -> None:
    assert compare("mine", manifest(train={}), Counter()) == ["no published counts for mine"]


def test_real_flickr30k_entities(
    real_data: Path, tmp_path: Path, data_tools: Callable[..., Any]
) -> None:
    root = real_data / "flickr30k_entities_8k"
    flags = ["--root", root, "--split", "val", "--out", tmp_path / "out"]
    ran = data_tools("convert", "flickr30k_entities", *flags)
    assert ran.status == 0, ran.err
    found = Corpus.open(tmp_path / "out").manifest
    assert found["split_counts"]["val"]["phrases"] == 3239
    lines = found["source"]["published"]["differences"]
    assert len(lines) == 3
    assert "val images: published 1,000, here 247, missing 753 (75.30%)" in lines[0]


@pytest.mark.parametrize("strict", [False, True])
def test_real_refer_layout(
    real_data: Path, tmp_path: Path, data_tools: Callable[..., Any], strict: bool
) -> None:
    root = real_data / "refcoco_native"
    flags = ["--root", root / "refer_format", "--images", root / "images", "--split-by", "unc"]
    more = ["--strict-counts"] if strict else []
    ran = data_tools("convert", "refcoco", *flags, "--out", tmp_path / "out", *more)
    assert ran.status == int(strict), ran.err
    # The expressions are real, their splits were made up.
    assert "counts: refcoco-unc train references: published 42,404, here " in ran.out
