"""From predictions to figures, protocols and slices."""

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


def test_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="no prediction"):
        evaluate_predictions([])
