"""Answers against the truth, under both protocols, by IoU and by GIoU."""

from fractions import Fraction

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.metrics import overlap_marks
from finetune.protocols import any_iou, any_overlap, merged_iou, merged_overlap, unusable

SQUARE = (0.0, 0.0, 10.0, 10.0)


def test_iou_of_known_boxes() -> None:
    answers = np.array([SQUARE, (0, 0, 5, 10), (5, 0, 15, 10), (20, 20, 30, 30)], dtype=float)
    assert merged_iou(answers, np.array([SQUARE] * 4)).tolist() == [1.0, 0.5, 50 / 150, 0.0]


def test_exactly_half_is_half() -> None:
    """On fractional pixels float64 leaves some a last bit below 0.5, which decides no hit."""
    left = np.random.default_rng(0).uniform(0, 500, 1000).round(2)
    truth = np.stack([left, left, left + 64, left + 32], axis=1)
    half = np.stack([left, left, left + 32, left + 32], axis=1)
    iou = merged_iou(half, truth)
    assert np.abs(iou - 0.5).max() < 1e-12
    assert (iou < 0.5).any()
    assert overlap_marks(iou)["acc@0.5"].all()
    assert not overlap_marks(iou - 1e-8)["acc@0.5"].any()


def test_rounding_never_exceeds_one() -> None:
    """Not even for boxes that differ in the last bits, so IoU needs no clamp."""
    rng = np.random.default_rng(0)
    truth = np.concatenate([rng.random((20_000, 2)), 1 + rng.random((20_000, 2))], axis=1)
    answers = np.nextafter(truth, rng.choice([-9.0, 9.0], truth.shape))
    found = merged_iou(answers, truth)
    assert found.max() == 1.0
    assert found.min() > 1 - 1e-12


def test_no_answer_and_inverted_answers_are_misses() -> None:
    inverted = np.array([(10, 10, 0, 0), (10, 0, 0, 10), (5, 5, 5, 9), (np.nan,) * 4])
    assert merged_iou(inverted, np.array([SQUARE] * 4)).tolist() == [0.0] * 4
    assert unusable(inverted).all()
    assert not unusable(np.array([SQUARE])).any()


def test_any_takes_the_best_of_each_phrase() -> None:
    answers = np.array([SQUARE, (20, 0, 30, 10), SQUARE], dtype=float)
    truths = [[SQUARE], [SQUARE, (20.0, 0.0, 30.0, 10.0)], [(50.0, 0.0, 60.0, 10.0), SQUARE]]
    assert any_iou(answers, truths).tolist() == [1.0, 1.0, 1.0]
    assert any_iou(answers[:0], []).tolist() == []
    # Under the merged protocol the second answer covers a third of the enclosing box.
    hull = np.array([(0.0, 0.0, 30.0, 10.0)])
    assert merged_iou(answers[1:2], hull)[0] == pytest.approx(1 / 3)


def test_giou_by_hand() -> None:
    """Two boxes of 10 x 10, one moved by half: IoU 1/3, hull filled, so GIoU the same; by a
    diagonal, the hull has corners that neither fills.
    """
    truth = np.array([SQUARE] * 4)
    answers = np.array([SQUARE, (5, 0, 15, 10), (5, 5, 15, 15), (20, 0, 30, 10)], dtype=float)
    giou = merged_overlap(answers, truth, "giou")
    assert giou[:2].tolist() == [1.0, pytest.approx(1 / 3)]
    assert giou[2] == pytest.approx(25 / 175 - (225 - 175) / 225)
    assert giou[3] == pytest.approx(0 - (300 - 200) / 300)
    missing = np.array([(np.nan,) * 4, (5, 5, 5, 9)])
    assert merged_overlap(missing, truth[:2], "giou").tolist() == [-1.0, -1.0]
    # The worth of the stricter rule: a diagonal shift at IoU 0.5 is no hit.
    shift = 10 - np.sqrt(200 / 3)
    moved = np.array([(shift, shift, 10 + shift, 10 + shift)])
    assert merged_overlap(moved, truth[:1])[0] == pytest.approx(0.5)
    assert merged_overlap(moved, truth[:1], "giou")[0] == pytest.approx(0.452, abs=5e-4)


def test_any_takes_the_best_giou() -> None:
    truths = [[(50.0, 0.0, 60.0, 10.0), (0.0, 0.0, 10.0, 5.0)]]
    assert any_overlap(np.array([SQUARE]), truths, "giou").tolist() == [0.5]


corner = st.integers(0, 12)
sound_box = st.tuples(corner, corner, st.integers(1, 9), st.integers(1, 9)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)


def cells(box: tuple[int, ...]) -> set[tuple[int, int]]:
    left, top, right, bottom = box
    return {(x, y) for x in range(left, right) for y in range(top, bottom)}


@given(sound_box, sound_box)
def test_overlaps_are_those_of_counted_cells(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Exactly: to the last bit of the quotient, and so to the right side of a threshold."""
    shared, union = len(cells(a) & cells(b)), len(cells(a) | cells(b))
    hull = len(cells((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))))
    answers, truth = np.array([a], dtype=float), np.array([b], dtype=float)
    iou = merged_iou(answers, truth)[0]
    assert iou == shared / union
    for threshold in (Fraction(1, 2), Fraction(3, 4), Fraction(9, 10)):
        assert (iou >= float(threshold)) == (Fraction(shared, union) >= threshold)
    exact = Fraction(shared, union) - Fraction(hull - union, hull)
    assert merged_overlap(answers, truth, "giou")[0] == pytest.approx(float(exact), abs=1e-15)
    left, top, right, bottom = b
    detected = np.array([(left, top, right - left, bottom - top)], dtype=float)
    mine = np.array([(a[0], a[1], a[2] - a[0], a[3] - a[1])], dtype=float)
    assert iou == pycocotools.mask.iou(mine, detected, [0])[0, 0]
    assert any_iou(answers, [[tuple(map(float, b)), SQUARE]])[0] == max(
        iou, merged_iou(answers, np.array([SQUARE]))[0]
    )
