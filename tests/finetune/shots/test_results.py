"""Tables: means over seeds and sets, harmonic means, and the published ones checked."""

import pytest

from finetune.shots.layouts import DOMAINS, ELEVEN
from finetune.shots.learn import Score
from finetune.shots.published import disagreements, published
from finetune.shots.results import Table, harmonic_mean, render


def scores(*correct: int) -> list[Score]:
    return [Score(each, 200) for each in correct]


HALVES = {
    "a": {"base": scores(160, 170), "novel": scores(100, 100)},
    "b": {"base": scores(40, 40), "novel": scores(20, 60)},
}


def test_the_published_mean_row() -> None:
    assert round(harmonic_mean(83.20, 76.80), 2) == 79.87
    row = published("mma", "base_to_novel")["mean"]
    assert row == {"base": 83.20, "novel": 76.80, "hm": 79.87}
    assert (
        round(harmonic_mean(69.34, 74.22), 2)
        == 71.70
        == published("clip", "base_to_novel")["mean"]["hm"]
    )
    assert harmonic_mean(0.0, 0.0) == 0.0


def test_the_published_tables_disagree_in_one_row() -> None:
    table = published("mma", "base_to_novel")
    assert tuple(table) == (*ELEVEN, "mean")
    assert disagreements(table) == [
        "ucf101: hm is 82.20, but its row gives 83.01",
        "mean: novel is 76.80, but its column gives 76.94",
    ]
    # One other digit in that row settles both.
    table["ucf101"]["novel"] = 78.53
    assert disagreements(table) == []
    table["dtd"]["hm"] += 0.02
    assert disagreements(table) == ["dtd: hm is 73.40, but its row gives 73.38"]


def test_the_other_published_tables_agree() -> None:
    cross, domain = (
        published("mma", protocol) for protocol in ("cross_dataset", "domain_generalisation")
    )
    assert tuple(cross) == (*ELEVEN, "mean")
    assert tuple(domain) == ("imagenet", *DOMAINS, "mean")
    assert disagreements(cross, "imagenet") == disagreements(domain, "imagenet") == []
    # The set that is learnt from does not count into the mean.
    assert disagreements(cross) == ["mean: all is 66.61, but its column gives 67.00"]
    assert published("mma", "nothing") == {}


def test_means_over_seeds_and_sets() -> None:
    table = Table.of(HALVES)
    base = table.rows["a"]["base"]
    assert (base.mean, base.seeds, base.count) == (82.5, (80.0, 85.0), 200)
    assert base.std == pytest.approx(12.5**0.5)
    assert {part: each.mean for part, each in table.mean.items()} == {"base": 51.25, "novel": 35.0}
    plain = table.to_dict()
    assert plain["sets"]["a"]["hm"] == pytest.approx(2 * 82.5 * 50 / 132.5)
    # The harmonic mean of the means is not the mean of the harmonic means.
    assert plain["mean"]["hm"] == pytest.approx(2 * 51.25 * 35 / 86.25)
    assert plain["mean"]["mean_of_hm"] == pytest.approx(
        (2 * 82.5 * 50 / 132.5 + 2 * 20 * 20 / 40) / 2
    )
    assert plain["mean"]["hm"] != pytest.approx(plain["mean"]["mean_of_hm"], abs=0.1)


def test_a_source_does_not_count_into_the_mean() -> None:
    every = {"s": {"all": scores(200)}, "t": {"all": scores(100)}, "u": {"all": scores(50)}}
    table = Table.of(every, source="s")
    assert table.mean["all"].mean == 37.5
    assert table.rows["t"]["all"].std is None
    assert "hm" not in table.to_dict()["mean"]
    # A run on its source alone has no mean.
    assert Table.of({"s": {"all": scores(200)}}, source="s").mean == {}


def test_tables_for_people() -> None:
    text = render({"zero_shot": Table.of(HALVES), "mma": Table.of(HALVES)}, {"a": "SetA"})
    lines = text.splitlines()
    assert lines[0].split() == ["zero_shot", "base", "novel", "HM"]
    assert lines[1].split() == ["SetA", "82.50", "+-", "3.54", "50.00", "+-", "0.00", "62.26"]
    assert lines[3].split() == ["mean", "51.25", "35.00", "41.59"]
    assert lines[5].split()[0] == "mma"
    assert len({len(line) for line in lines[:4]}) == 1
