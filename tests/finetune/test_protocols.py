"""Answers against the truth, under both protocols and in every convention."""

import numpy as np
import pytest

from finetune.protocols import CONVENTIONS, any_iou, merged_iou, to_pixels, unusable

SQUARE = (0.0, 0.0, 10.0, 10.0)


def test_iou_of_known_boxes() -> None:
    answers = np.array([SQUARE, (0, 0, 5, 10), (5, 0, 15, 10), (20, 20, 30, 30)], dtype=float)
    assert merged_iou(answers, np.array([SQUARE] * 4)).tolist() == [1.0, 0.5, 50 / 150, 0.0]


def test_exactly_half_is_half() -> None:
    """`IoU >= 0.5` is decided by float64 on fractional pixels, so 0.5 must not come out below."""
    left = np.random.default_rng(0).uniform(0, 500, 1000).round(2)
    truth = np.stack([left, left, left + 64, left + 32], axis=1)
    half = np.stack([left, left, left + 32, left + 32], axis=1)
    assert np.abs(merged_iou(half, truth) - 0.5).max() < 1e-12


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


@pytest.mark.parametrize(
    ("convention", "box"),
    [
        ("xyxy_pixels", (20, 30, 60, 90)),
        ("xywh_pixels", (20, 30, 40, 60)),
        ("cxcywh_unit", (0.2, 0.6, 0.2, 0.6)),
        ("xyxy_unit", (0.1, 0.3, 0.3, 0.9)),
        ("xyxy_1000", (100, 300, 300, 900)),
    ],
)
def test_each_convention_names_the_same_box(convention: str, box: tuple[float, ...]) -> None:
    boxes = np.array([box, (np.nan,) * 4], dtype=float)
    sizes = np.array([200.0, 50.0]), np.array([100.0, 50.0])
    pixels = to_pixels(boxes, convention, *sizes)
    np.testing.assert_allclose(pixels[0], (20, 30, 60, 90))
    assert np.isnan(pixels[1]).all()


def test_unknown_convention_lists_the_known() -> None:
    with pytest.raises(ValueError, match="yxyx") as caught:
        to_pixels(np.zeros((1, 4)), "yxyx", np.ones(1), np.ones(1))
    assert all(name in str(caught.value) for name in CONVENTIONS)
