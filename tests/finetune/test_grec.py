"""Generalized grounding against hand-computed cases and an independent matching."""

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.grec import evaluate_sets, f1_scores
from finetune.grec_answers import SetPrediction
from finetune.grec_samples import SetExpression
from finetune.protocols import Corners, merged_iou
from wholegrain.errors import DataError

A, B, C = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (40.0, 0.0, 50.0, 10.0)
HALF_A = (0.0, 0.0, 5.0, 10.0)  # IoU 0.5 with A
NO_BOX = (9.0, 9.0, 2.0, 2.0)


def _one(
    name: str, truths: tuple[Corners, ...], boxes: tuple[Corners, ...], *scores: float
) -> SetPrediction:
    expression = SetExpression(name, f"image {name}", "cups", "val", 100, 100, truths)
    return SetPrediction(expression, boxes, scores or None)


@pytest.mark.parametrize(
    ("boxes", "truths", "expected"),
    [
        ((A,), (A,), (1, 1, 1)),
        ((HALF_A,), (A,), (1, 0, 0)),
        ((B, A), (A, B), (1, 1, 1)),
        ((A,), (A, B), (2 / 3, 2 / 3, 2 / 3)),  # one of two: 2 / (2 + 0 + 1)
        ((A, C), (A, B), (0.5, 0.5, 0.5)),
        ((A, A), (A,), (2 / 3, 2 / 3, 2 / 3)),  # twice the same box is one too many
        ((A, NO_BOX), (A,), (2 / 3, 2 / 3, 2 / 3)),
        ((NO_BOX,), (A,), (0, 0, 0)),
        ((), (A,), (0, 0, 0)),
        ((A,), (), (0, 0, 0)),
        ((), (), (1, 1, 1)),
    ],
)
def test_f1_by_hand(
    boxes: tuple[Corners, ...], truths: tuple[Corners, ...], expected: tuple[float, ...]
) -> None:
    assert f1_scores(boxes, truths) == pytest.approx(list(expected), abs=1e-15)


def test_exactly_half_is_met_on_fractional_pixels() -> None:
    lefts = [round(0.01 * n, 2) for n in range(1000)]
    pairs = [((x, x, x + 32, x + 32), (x, x, x + 64, x + 32)) for x in lefts]
    assert any(merged_iou(np.array([box]), np.array([truth]))[0] < 0.5 for box, truth in pairs)
    assert {f1_scores((box,), (truth,))[0] for box, truth in pairs} == {1.0}


def test_the_best_pair_goes_first_as_in_the_benchmark() -> None:
    """P meets both truths, Q the first alone. P takes the first, which it meets best, and Q is left
    without one, though another matching would serve both.
    """
    first, second = (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 16.0)
    p, q = (0.0, 0.0, 10.0, 11.0), (0.0, 0.0, 10.0, 6.0)
    assert f1_scores((p, q), (first, second))[0] == pytest.approx(0.5)


def test_figures_by_hand() -> None:
    predictions = [
        _one("a", (A,), (A,), 0.9),  # right
        _one("b", (A, B), (A, B, C), 0.9, 0.8, 0.1),  # right: the third is not meant
        _one("c", (A, B), (A,)),  # one of two
        _one("d", (A,), (), *()),  # taken for nothing
        _one("e", (), ()),  # right
        _one("f", (), (A,), 0.3),  # right: not meant
        _one("g", (), (A,), 0.7),  # wrong
    ]
    found = evaluate_sets(predictions, resamples=50)
    assert found.precision == pytest.approx(4 / 7)
    assert found.n_acc == pytest.approx(2 / 3)
    assert found.t_acc == pytest.approx(3 / 4)
    assert found.summary().values["mean_f1"] == pytest.approx((1 + 1 + 2 / 3 + 0 + 1 + 1 + 0) / 7)
    assert found.summary("boxes: several").values["pr@0.5"] == pytest.approx(1 / 2)
    assert found.summary("boxes: none").values["pr@0.5"] == pytest.approx(2 / 3)
    strict = evaluate_sets(predictions, min_score=0.95, resamples=50)
    assert strict.precision == pytest.approx(3 / 7)
    assert strict.n_acc == 1.0
    all_boxes = evaluate_sets(predictions, min_score=0, resamples=50)
    assert all_boxes.n_acc == pytest.approx(1 / 3)
    plain = found.to_dict()
    assert (plain["n_acc"], plain["t_acc"], plain["min_score"]) == (found.n_acc, found.t_acc, 0.7)
    assert plain["set"]["all"]["pr@0.5"] == found.precision
    text = found.table()
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert rows["N-acc"][1:3] == ["3", "66.67"]
    assert rows["T-acc"][1:3] == ["4", "75.00"]
    assert rows["F1 = 1"][3:5] == ["7", "57.14"]
    assert "score >= 0.7" in text


def test_a_silent_and_a_talkative_system_give_themselves_away() -> None:
    """Neither figure stands alone: each of the two is full marks for one of them."""
    asked = [(A,), (A, B), (), ()]
    silent = evaluate_sets([_one(str(i), t, ()) for i, t in enumerate(asked)], resamples=10)
    assert (silent.precision, silent.n_acc, silent.t_acc) == (0.5, 1.0, 0.0)
    talk = evaluate_sets([_one(str(i), t, (A,)) for i, t in enumerate(asked)], resamples=10)
    assert (talk.precision, talk.n_acc, talk.t_acc) == (0.25, 0.0, 1.0)


def test_one_kind_of_expressions_only() -> None:
    only_things = evaluate_sets([_one("a", (A,), (A,))], resamples=10)
    assert only_things.n_acc is None
    assert "N-acc: no such expression" in only_things.table()
    only_nothing = evaluate_sets([_one("a", (), ())], resamples=10)
    assert (only_nothing.t_acc, only_nothing.n_acc) == (None, 1.0)
    with pytest.raises(DataError, match="no prediction"):
        evaluate_sets([])


def test_no_boxes_are_counted_and_said() -> None:
    found = evaluate_sets([_one("a", (A,), (A, NO_BOX))], resamples=10)
    assert found.unusable == 1
    assert found.precision == 0.0
    assert "1 boxes of the answers were no box" in found.table()


def test_giou_is_the_stricter_rule() -> None:
    shift = 10 - (200 / 3) ** 0.5 - 1e-9
    moved = (shift, shift, 10 + shift, 10 + shift)
    one = [_one("a", (A,), (moved,))]
    assert evaluate_sets(one, resamples=10).precision == 1.0
    by_giou = evaluate_sets(one, overlap="giou", resamples=10)
    assert by_giou.precision == 0.0
    assert "GIoU in place of IoU" in by_giou.table()


side = st.integers(0, 4)
small_box = st.tuples(side, side, st.integers(1, 4), st.integers(1, 4)).map(
    lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
)
few_boxes = st.lists(small_box, max_size=4)


def _cells(box: Corners) -> set[tuple[int, int]]:
    left, top, right, bottom = map(int, box)
    return {(x, y) for x in range(left, right) for y in range(top, bottom)}


def _iou(a: Corners, b: Corners) -> Fraction:
    return Fraction(len(_cells(a) & _cells(b)), len(_cells(a) | _cells(b)))


@given(few_boxes, few_boxes)
def test_f1_is_that_of_pairs_taken_one_by_one(boxes: list[Corners], truths: list[Corners]) -> None:
    """Pairs sorted by overlap, in exact fractions; the first of equal ones is the first box's."""
    thresholds = (Fraction(1, 2), Fraction(3, 4), Fraction(9, 10))
    pairs = sorted(
        (-_iou(box, truth), i, j) for i, box in enumerate(boxes) for j, truth in enumerate(truths)
    )
    for threshold, found in zip(thresholds, f1_scores(boxes, truths), strict=True):
        used: tuple[set[int], set[int]] = (set(), set())
        hits = 0
        for overlap, i, j in pairs:
            if -overlap >= threshold and i not in used[0] and j not in used[1]:
                used[0].add(i)
                used[1].add(j)
                hits += 1
        total = len(boxes) + len(truths)
        assert found == (2 * hits / total if total else 1.0)
        # No matching of all serves more, and where F1 is 1 one of them is complete.
        best = _largest_matching(boxes, truths, threshold)
        assert hits <= best
        if found == 1 and total:
            assert best == len(boxes) == len(truths)


def _largest_matching(boxes: list[Corners], truths: list[Corners], threshold: Fraction) -> int:
    small, large = sorted((boxes, truths), key=len)
    return max(
        sum(_iou(a, b) >= threshold for a, b in zip(small, chosen, strict=True))
        for chosen in permutations(large, len(small))
    )


@settings(max_examples=20)
@given(st.lists(st.tuples(few_boxes, few_boxes), min_size=1, max_size=8))
def test_order_changes_no_figure(pairs: list[tuple[list[Corners], list[Corners]]]) -> None:
    predictions = [_one(str(i), tuple(t), tuple(b)) for i, (t, b) in enumerate(pairs)]
    found = evaluate_sets(predictions, resamples=5)
    assert evaluate_sets(predictions[::-1], resamples=5).to_dict() == found.to_dict()
    right = [f1_scores(b, t)[0] == 1 for t, b in pairs]
    assert found.precision == sum(right) / len(right)
