"""From predictions to figures, protocols and slices."""

from dataclasses import replace

import pytest

from finetune.predictions import Prediction
from finetune.results import evaluate_predictions
from wholegrain.errors import DataError

LEFT, RIGHT, HULL = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (0.0, 0.0, 30.0, 10.0)


def _prediction(name: str, box: tuple[float, float, float, float] | None) -> Prediction:
    return Prediction(name, f"image {name}", "cups", "val", 100, 100, HULL, (LEFT, RIGHT), box)


def test_protocols_differ_on_several_boxes() -> None:
    found = evaluate_predictions([_prediction("a", RIGHT), _prediction("b", HULL)], resamples=50)
    assert found.iou["merged"].tolist() == [pytest.approx(1 / 3), 1.0]
    assert found.iou["any"].tolist() == [1.0, pytest.approx(1 / 3)]
    assert found.summary().accuracy == found.summary("any").accuracy == 0.5


def test_no_answer_counts_as_a_miss() -> None:
    found = evaluate_predictions([_prediction("a", None), _prediction("b", HULL)], resamples=50)
    assert found.summary().accuracy == 0.5
    assert found.unusable == 1
    assert "1 answers were missing" in found.table()


def test_slices_and_table_and_dict() -> None:
    found = evaluate_predictions([_prediction("a", HULL)], resamples=50)
    assert next(iter(found.summaries["merged"])) == "all"
    assert found.summary(group="size: large").expressions == 1  # 3 % to 25 % of the photo
    assert "size: small" not in found.summaries["merged"]
    plain = found.to_dict()
    assert plain["merged"]["all"]["acc@0.5"] == 1.0
    assert plain["any"]["all"]["interval_95"]["acc@0.75"] == [0.0, 0.0]
    row = next(line for line in found.table().splitlines() if line.startswith("merged box"))
    assert " ".join(row.split()) == "merged box 1 100.00 100.0 .. 100.0 100.00 100.00 1.0000"


def test_giou_counts_fewer_hits_and_says_so() -> None:
    """A diagonal shift at IoU 0.5 is a hit by IoU and none by GIoU (0.452)."""
    shift = 10 - (200 / 3) ** 0.5 - 1e-9
    box = (shift, shift, 10 + shift, 10 + shift)
    one = Prediction("a", "i", "cup", "val", 100, 100, LEFT, (LEFT,), box)
    by_iou = evaluate_predictions([one], resamples=10)
    by_giou = evaluate_predictions([one], overlap="giou", resamples=10)
    assert by_iou.summary().accuracy == 1.0
    for protocol in ("merged", "any"):
        assert by_giou.summary(protocol).accuracy == 0.0
        assert by_giou.summary(protocol).values["mean_giou"] == pytest.approx(0.452, abs=5e-4)
    assert by_giou.to_dict()["overlap"] == "giou"
    assert by_iou.to_dict()["overlap"] == "iou"
    assert "GIoU in place of IoU" in by_giou.table()
    assert "GIoU" not in by_iou.table()
    # The file that is written holds IoU all the same.
    assert by_giou.iou["merged"][0] == pytest.approx(0.5)


def test_kinds_are_slices() -> None:
    people = replace(_prediction("a", HULL), kinds=("people",))
    found = evaluate_predictions([people, _prediction("b", None)], resamples=10)
    assert found.summary(group="kind: people").accuracy == 1.0
    assert found.summary(group="about: people").accuracy == 1.0
    assert found.summary(group="about: other").accuracy == 0.0
    assert "kind: scene" not in found.summaries["merged"]


def test_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="no prediction"):
        evaluate_predictions([])
