"""The paired difference: exact, signed, and only of the same questions."""

from dataclasses import replace

import numpy as np
import pytest

from finetune.comparison import compare
from finetune.predictions import Prediction
from finetune.results import Evaluation, evaluate_predictions
from wholegrain.errors import DataError

TRUE, MISS = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)


def _evaluation(hits: list[bool]) -> Evaluation:
    return evaluate_predictions(
        [
            Prediction(
                str(i),
                f"image {i // 2}",
                "cup",
                "val",
                99,
                99,
                TRUE,
                (TRUE,),
                TRUE if hit else MISS,
            )
            for i, hit in enumerate(hits)
        ],
        resamples=10,
    )


def test_difference_by_hand() -> None:
    first = _evaluation([True, True, True, False, False, False])
    second = _evaluation([True, False, False, True, False, False])
    found = compare(first.sheet, second.sheet, resamples=100)
    assert found.won == {"merged": 2, "any": 2}
    assert found.lost == {"merged": 1, "any": 1}
    everything = found.summaries["merged"]["all"]
    assert everything.values["acc@0.5"] == pytest.approx(1 / 6)
    low, high = everything.intervals["acc@0.5"]
    assert low == 0  # one image of the three is won, and no resample of them is lost
    assert high > 1 / 6
    assert found.to_dict()["any"]["won"] == 2
    back = compare(second.sheet, first.sheet, resamples=100).summaries["merged"]["all"]
    assert back.values["acc@0.5"] == -everything.values["acc@0.5"]
    assert back.intervals["acc@0.5"] == (-high, -low)


def test_interval_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(60) < 0.7, rng.random(60) < 0.5
    found = compare(_evaluation(a.tolist()).sheet, _evaluation(b.tolist()).sheet, resamples=400)
    # Images are numbered by their names in order, so the draws below are of the same images.
    order = np.argsort([f"image {i}" for i in range(30)])
    difference = (a.astype(float) - b).reshape(30, 2).sum(axis=1)[order]
    draws = np.random.default_rng(0).integers(0, 30, size=(400, 30))
    expected = np.percentile(difference[draws].sum(axis=1) / 60, [2.5, 97.5])
    interval = found.summaries["merged"]["all"].intervals["acc@0.5"]
    np.testing.assert_allclose(interval, expected, atol=1e-12)


def test_what_both_share_does_not_widen_the_interval() -> None:
    """Two systems that differ by one answer: alone each is uncertain by far more."""
    hits = (np.random.default_rng(1).random(200) < 0.5).tolist()
    other = list(hits)
    other[0] = not hits[0]
    first, second = _evaluation(hits), _evaluation(other)
    low, high = compare(first.sheet, second.sheet).summaries["merged"]["all"].intervals["acc@0.5"]
    assert high - low <= 0.02
    alone = evaluate_predictions(first.predictions).summary().intervals["acc@0.5"]
    assert alone[1] - alone[0] > 0.1


def test_order_does_not_matter() -> None:
    first, second = _evaluation([True, False, True, True]), _evaluation([False, True, True, True])
    shuffled = evaluate_predictions(second.predictions[::-1], resamples=10)
    assert compare(first.sheet, shuffled.sheet) == compare(first.sheet, second.sheet)


def test_other_questions_are_refused() -> None:
    first = _evaluation([True, False, True])
    with pytest.raises(DataError, match=r"different questions: '2' is not in the other"):
        compare(first.sheet, _evaluation([True, False]).sheet)
    with pytest.raises(DataError, match=r"different questions: 3 and 4 expressions"):
        compare(first.sheet, _evaluation([True] * 4).sheet)
    moved = [replace(one, truths=(MISS,)) for one in first.predictions]
    with pytest.raises(DataError, match=r"'0' has other true boxes there"):
        compare(first.sheet, evaluate_predictions(moved, resamples=10).sheet)


def test_table_is_signed() -> None:
    found = compare(_evaluation([True, True]).sheet, _evaluation([True, False]).sheet, resamples=9)
    text = found.table(("ours.jsonl", "theirs.jsonl"))
    assert text.startswith("ours.jsonl less theirs.jsonl\n")
    row = next(line for line in text.splitlines() if line.startswith("merged"))
    assert row.split()[:3] == ["merged", "2", "+50.00"]
    assert "won 1, lost 0 (acc@0.5)" in text
