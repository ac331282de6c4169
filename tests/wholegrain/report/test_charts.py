"""Curves: what is read from metrics.jsonl and how it is drawn."""

import json
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from wholegrain.report.charts import line_chart, nice_ticks, thin, value_range
from wholegrain.report.metrics import in_groups, parse_curves, read_curves
from wholegrain.report.numbers import aligned, figure, short


def lines(*entries: dict[str, object]) -> list[str]:
    return [json.dumps(entry) for entry in entries]


def test_series_by_name_and_split() -> None:
    curves = parse_curves(
        lines(
            {"step": 1, "split": "train", "loss": 2.0, "time": 9.0},
            {"step": 2, "split": "train", "loss": 1.0},
            {"step": 2, "split": "val", "loss": 1.5, "r1": 0.1},
        )
    )
    assert curves.series == {
        "loss": {"train": {1: 2.0, 2: 1.0}, "val": {2: 1.5}},
        "r1": {"val": {2: 0.1}},
    }
    assert curves.last_step == 2


def test_a_resumed_run_overwrites_what_it_repeats() -> None:
    curves = parse_curves(
        lines({"step": 5, "a": 1.0}, {"step": 6, "a": 2.0}, {"step": 5, "a": 3.0})
    )
    assert curves.series["a"]["train"] == {5: 3.0, 6: 2.0}


def test_what_cannot_be_drawn_is_counted() -> None:
    text = ['{"step": 1, "a": NaN, "b": 1}', '{"step": 2, "a": Infin', "[1]", '{"a": 1}', ""]
    curves = parse_curves(text)
    assert curves.series == {"b": {"train": {1: 1.0}}}
    assert (curves.non_finite, curves.unread_lines) == (1, 3)


def test_no_file_is_no_curves(tmp_path: Path) -> None:
    assert read_curves(None).series == read_curves(tmp_path / "none").series == {}


def test_thinning_keeps_mean_and_extremes() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    line = thin({step: float(value) for step, value in enumerate(values)}, bins=50)
    assert len(line.mean) == 50
    assert line.low.min() == values.min() and line.high.max() == values.max()
    assert line.mean == pytest.approx(values.reshape(50, 20).mean(axis=1))


def test_one_spike_does_not_flatten_the_rest() -> None:
    series = {step: 1.0 + step % 2 for step in range(1000)}
    series[500] = 1e6
    assert value_range([thin(series)])[1] > 1e4, "a bin's mean is always shown"
    few = thin({step: value for step, value in series.items() if step != 500} | {500: 12.0})
    assert value_range([few])[1] < 3


@pytest.mark.parametrize(
    "values", [[0.0], [3.0], [-2.0, -2.0], [1e-12, 2e-12], [1e9, 1e9 + 1], [0, 1]]
)
def test_any_values_give_a_sound_drawing(values: list[float]) -> None:
    drawn = line_chart("m", {"train": dict(enumerate(values))}, len(values) - 1)
    ElementTree.fromstring(drawn)
    assert "nan" not in drawn.split(">", 1)[1] and "inf" not in drawn.split(">", 1)[1]


def test_points_lie_inside_the_frame_and_ends_are_told() -> None:
    series = {10: 4.0, 500: 2.0, 1000: 1.0}
    drawn = line_chart("loss", {"val": series}, 1000)
    root = ElementTree.fromstring(drawn)
    assert root.attrib["aria-label"] == "loss: val from 4.000 at step 10 to 1.000 at step 1000"
    dots = root.findall(".//circle")
    assert len(dots) == 3
    xs, ys = ([float(dot.attrib[key]) for dot in dots] for key in ("cx", "cy"))
    assert xs == sorted(xs) and ys == sorted(ys), "a falling loss falls"
    assert min(xs) > 38 and max(xs) <= 272 and min(ys) >= 8 and max(ys) <= 130


def test_the_name_is_escaped() -> None:
    drawn = line_chart('a"><script>', {"train": {1: 1.0}}, 1)
    assert "<script" not in drawn
    ElementTree.fromstring(drawn)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 6000), (-3, 7), (1e-5, 9e-5), (99, 101)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    assert len({round(b - a, 9) for a, b in pairwise(ticks)}) <= 1
    assert all(len(re.sub(r"[-.]", "", short(tick))) <= 5 for tick in ticks)


def test_figures_as_people_write_them() -> None:
    assert [figure(v) for v in (0.7123, 31.24, 1e-4, 1204.4, 0.0)] == [
        "0.712", "31.2", "1.00e-04", "1,204", "0"
    ]  # fmt: skip
    assert [short(v) for v in (0, 0.25, 500, 1500, 20000, 3e6, 2e-5)] == [
        "0", "0.25", "500", "1.5k", "20k", "3M", "2e-5"
    ]  # fmt: skip
    assert aligned([0.423, 0.05]) == ["0.423", "0.050"]
    assert aligned([42.31, 5.2, 0.0]) == ["42.3", "5.2", "0.0"]
    assert aligned([42.31, 0.051]) == ["42.3", "0.0510"], "unlike figures keep their digits"


def test_groups_stay_together() -> None:
    assert in_groups(["loss/a", "lr", "loss/b", "r1"]) == ["loss/a", "loss/b", "lr", "r1"]
