"""Figures of the comparison: means, paired differences, and both kinds of intervals."""

import csv
import io
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.grounding_cells import Kept
from benchmarks.grounding_picture import Axis, picture
from benchmarks.grounding_recipes import PRETRAINED, SCRATCH, Cell, Recipes
from benchmarks.grounding_tables import (
    _T,
    METRICS,
    csv_of,
    mean_sheet,
    over_seeds,
    rows_of,
    sheet_of,
    table,
)
from finetune.predictions import Prediction, write_predictions
from finetune.results import evaluate_predictions
from wholegrain.errors import DataError

RECIPES = Recipes.read()
TRUTH = (10.0, 10.0, 50.0, 50.0)
MISS = (60.0, 60.0, 90.0, 90.0)
PHOTOS, EACH = 12, 5


def kept(
    folder: Path, method: str, start: str, seed: int, hits: np.ndarray, host: str = "residual"
) -> Kept:
    """A run whose answers are right where `hits` (photos, expressions) says so."""
    answers = [
        Prediction(
            id=f"{photo}/{number}",
            image=f"photo {photo}",
            text="the thing",
            split="val",
            width=100,
            height=100,
            truth=TRUTH,
            truths=(TRUTH,),
            box=TRUTH if hits[photo, number] else MISS,
        )
        for photo in range(PHOTOS)
        for number in range(EACH)
    ]
    file = folder / f"{host}.{method}.{start}.{seed}.jsonl"
    evaluation = evaluate_predictions(answers, resamples=50)
    write_predictions(file, answers, *(evaluation.iou[p].tolist() for p in ("merged", "any")))
    figures = evaluation.to_dict()["merged"]["all"]
    cell = Cell("scenes", host, method, start, seed)
    return Kept(cell, "", figures, figures, file, folder, 1.0)


@pytest.fixture
def runs(tmp_path: Path) -> list[Kept]:
    """Seeds that differ widely, and a method that is right once a photo more in each of them."""
    made = []
    for seed, right in enumerate((1, 2, 3)):
        hits = np.zeros((PHOTOS, EACH), dtype=bool)
        hits[:, :right] = True
        made.append(kept(tmp_path, "cross", PRETRAINED, seed, hits))
        hits = hits.copy()
        hits[:, right] = True
        made.append(kept(tmp_path, "mmca", PRETRAINED, seed, hits))
    return made


def cost(milliseconds: float) -> dict[str, object]:
    return {
        "parameters": 100,
        "parameters_used": 90,
        "macs": {"1": 2_000_000, "16": 1_000_000},
        "seconds": {"1": milliseconds / 1000, "16": 8 * milliseconds / 1000},
        "kept": None,
        "memory": {"start": 2**20, "peak": 3 * 2**20},
    }


def test_the_interval_over_seeds_is_students() -> None:
    found = over_seeds([0.1, 0.2, 0.3])
    assert (found["mean"], found["min"], found["max"]) == (pytest.approx(0.2), 0.1, 0.3)
    half = 4.302653 * 0.1 / math.sqrt(3)  # t quantile of two degrees of freedom
    assert found["t_95"] == pytest.approx([0.2 - half, 0.2 + half], rel=1e-3)
    assert over_seeds([0.4])["t_95"] is None


def test_the_quantiles_are_those_of_students_t() -> None:
    x = np.linspace(0, 1, 200_001)
    for degrees, quantile in enumerate(_T, start=1):
        log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
        scale = math.exp(log_scale) / math.sqrt(degrees * math.pi)
        density = scale * (1 + (x * quantile) ** 2 / degrees) ** (-(degrees + 1) / 2)
        inside = 2 * float(np.trapezoid(density, x * quantile))
        assert inside == pytest.approx(0.95, abs=1e-4), degrees


def test_differences_are_paired(runs: list[Kept]) -> None:
    cross, mmca = rows_of(runs, RECIPES, {}, resamples=100)
    assert (cross["method"], mmca["method"]) == ("cross", "mmca")
    assert cross["figures"]["acc@0.5"]["mean"] == pytest.approx(0.4)
    low, high = cross["figures"]["acc@0.5"]["t_95"]
    assert high - low > 0.9  # seeds differ widely
    gain = mmca["against"]["cross"]["acc@0.5"]
    assert gain["mean"] == pytest.approx(0.2)
    # In each seed, and in each photo, the same: no doubt is left.
    assert gain["t_95"] == pytest.approx([0.2, 0.2])
    assert gain["photos_95"] == pytest.approx([0.2, 0.2])
    assert cross["against"] == {}


def test_photos_that_differ_widen_the_interval_over_photos(tmp_path: Path) -> None:
    hits = np.zeros((PHOTOS, EACH), dtype=bool)
    hits[: PHOTOS // 2] = True
    (row,) = rows_of([kept(tmp_path, "cross", SCRATCH, 0, hits)], RECIPES, {}, resamples=500)
    low, high = row["figures"]["acc@0.5"]["photos_95"]
    # Photos are right or wrong as a whole: a mean of 12 coins, not of 60.
    assert high - low > 3 * 1.4 * math.sqrt(0.25 / (PHOTOS * EACH))
    assert row["figures"]["acc@0.5"]["t_95"] is None


def test_the_mean_of_sheets_is_that_of_their_marks(runs: list[Kept], tmp_path: Path) -> None:
    sheets = [sheet_of(one.predictions) for one in runs[::2]]
    marks = mean_sheet(sheets).marks["merged"]["acc@0.5"].reshape(PHOTOS, EACH)
    assert marks[0] == pytest.approx([1, 2 / 3, 1 / 3, 0, 0])
    text = runs[0].predictions.read_text(encoding="utf-8")
    other = tmp_path / "other.jsonl"
    other.write_text(text.replace('"0/0"', '"another"'), encoding="utf-8")
    with pytest.raises(DataError, match="different questions"):
        mean_sheet([sheets[0], sheet_of(other)])


def test_seeds_that_only_one_has_are_not_compared(runs: list[Kept]) -> None:
    cross, mmca = rows_of([runs[0], runs[3], runs[5]], RECIPES, {}, resamples=10)
    assert (cross["seeds"], mmca["seeds"]) == ([0], [1, 2])
    assert mmca["against"] == {}


def test_csv_and_table_have_a_line_a_row(runs: list[Kept]) -> None:
    costs = {"residual.cross": cost(10.0), "residual.mmca": {**cost(20.0), "parameters": 130}}
    rows = rows_of(runs, RECIPES, costs, resamples=10)
    lines = list(csv.DictReader(io.StringIO(csv_of(rows))))
    assert [line["method"] for line in lines] == ["cross", "mmca"]
    assert float(lines[1]["acc@0.5 less cross"]) == pytest.approx(0.2)
    assert lines[0]["acc@0.5 less cross"] == ""
    assert lines[1]["parameters_added"] == "30"
    assert float(lines[1]["seconds of 16"]) == pytest.approx(0.16)
    untrained = {"best constant box": runs[0].figures, "whole photo": runs[0].figures}
    assert table(rows, untrained, "scenes").row_count == 4


def test_the_picture_shows_what_is_better_farther_right(runs: list[Kept]) -> None:
    costs = {"residual.cross": cost(10.0), "residual.mmca": cost(100.0)}
    rows = rows_of(runs, RECIPES, costs, resamples=10)
    constant = dict.fromkeys(METRICS, 0.1)
    report = {"rows": rows, "title": "a < b", "baselines": {"best constant box": constant}}
    drawn = ElementTree.fromstring(picture(report))
    name = "{http://www.w3.org/2000/svg}"
    words = [text.text for text in drawn.iter(f"{name}text")]
    for row in rows:
        assert row["title"] in words
    assert "Grounding methods on a < b" in words
    means = [
        float(list(group.iter(f"{name}path"))[1].attrib["d"].split()[0][1:])
        for group in drawn.iter(f"{name}g")
    ]
    assert means[0] < means[1]
    height = float(drawn.attrib["height"])
    assert all(0 < float(t.attrib["y"]) < height for t in drawn.iter(f"{name}text"))


def test_axes() -> None:
    plain = Axis(100, 200, 0, 50)
    assert [plain.x(value) for value in (0, 25, 50, 70, -1)] == [100, 150, 200, 200, 100]
    decades = Axis(0, 100, 1, 100, log=True)
    assert decades.x(10) == pytest.approx(50)
    assert decades.ticks() == [1, 10, 100]
