"""Accuracies and intervals, against numbers known by other means."""

import numpy as np
import pytest

from finetune.metrics import MEAN_GIOU, overlap_marks, summarise


def _all(iou: np.ndarray, images: np.ndarray, **options: int):  # type: ignore[no-untyped-def]
    everything = {"all": np.ones(len(iou), dtype=bool)}
    return summarise(overlap_marks(iou), images, everything, **options)["all"]


def test_values_by_hand() -> None:
    found = _all(np.array([0.5, 0.49999, 0.75, 0.9, 1.0, 0.0]), np.array([0, 0, 1, 1, 2, 2]))
    assert found.expressions == 6
    assert found.images == 3
    assert found.accuracy == 4 / 6
    assert found.values["acc@0.75"] == 3 / 6
    assert found.values["acc@0.9"] == 2 / 6
    assert found.values["mean_iou"] == pytest.approx(3.64999 / 6)


def test_mean_is_over_expressions_not_over_images() -> None:
    found = _all(np.array([1.0, 0.0, 0.0, 0.0]), np.array([0, 1, 1, 1]))
    assert found.accuracy == 0.25


def test_interval_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    images = rng.integers(0, 40, 300)
    iou = np.clip(rng.normal(0.3 + 0.01 * images, 0.2), 0, 1)
    images = np.unique(images, return_inverse=True)[1]
    count = images.max() + 1
    members = [np.flatnonzero(images == image) for image in range(count)]
    draws = np.random.default_rng(7).integers(0, count, size=(500, count))
    resampled = [iou[np.concatenate([members[image] for image in draw])] for draw in draws]
    found = _all(iou, images, resamples=500, seed=7)
    for name, values in (
        ("acc@0.5", [np.mean(sample >= 0.5) for sample in resampled]),
        ("mean_iou", [np.mean(sample) for sample in resampled]),
    ):
        expected = np.percentile(values, [2.5, 97.5])
        np.testing.assert_allclose(found.intervals[name], expected, atol=1e-8)


def test_expressions_of_one_image_widen_the_interval() -> None:
    """Ten copies of each answer are no new evidence; drawn by expression they would look it."""
    hits = np.random.default_rng(0).integers(0, 2, 100).astype(float)
    single = _all(hits, np.arange(100)).intervals["acc@0.5"]
    copied = _all(np.repeat(hits, 10), np.repeat(np.arange(100), 10)).intervals["acc@0.5"]
    assert copied == single
    assert single[1] - single[0] == pytest.approx(2 * 1.96 * 0.05, rel=0.1)


def test_chunks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    iou, images = rng.random(200), np.arange(200) // 4
    whole = _all(iou, images)
    monkeypatch.setattr("finetune.metrics._DRAWS_AT_ONCE", 700)
    assert _all(iou, images) == whole


def test_order_changes_no_digit() -> None:
    rng = np.random.default_rng(2)
    iou, images = rng.random(500), rng.integers(0, 60, 500)
    first = _all(iou, images, resamples=50)
    for _ in range(20):
        order = rng.permutation(500)
        assert _all(iou[order], images[order], resamples=50) == first


def test_groups_are_separate_and_empty_ones_left_out() -> None:
    iou, images = np.array([1.0, 0.0, 1.0]), np.array([0, 1, 2])
    masks = {"a": iou > 0.5, "none": iou > 2, "b": iou < 0.5}
    found = summarise(overlap_marks(iou), images, masks)
    assert list(found) == ["a", "b"]
    assert found["a"].accuracy == 1.0
    assert found["a"].intervals["acc@0.5"] == (1.0, 1.0)
    assert found["b"].images == 1
    assert summarise(overlap_marks(iou), images, {}) == {}


def test_a_group_that_no_resample_holds_has_no_interval(recwarn: pytest.WarningsRecorder) -> None:
    """One resample of three images leaves one of them out: its interval is unknown."""
    iou, images = np.array([1.0, 0.0, 1.0]), np.array([0, 1, 2])
    alone = {str(i): images == i for i in range(3)}
    found = summarise(overlap_marks(iou), images, alone, resamples=1)
    plain = [found[name].to_dict()["interval_95"]["acc@0.5"] for name in alone]
    assert [None, None] in plain
    assert len(recwarn) == 0


def test_giou_may_be_negative() -> None:
    marks = overlap_marks(np.array([-1.0, -0.25, 0.5]), MEAN_GIOU)
    found = summarise(marks, np.arange(3), {"all": np.ones(3, dtype=bool)}, resamples=10)["all"]
    assert found.values == {"acc@0.5": 1 / 3, "acc@0.75": 0.0, "acc@0.9": 0.0, "mean_giou": -0.25}
    with pytest.raises(ValueError, match=r"GIoU of expression 0 is -1.5; it must lie in -1..1"):
        overlap_marks(np.array([-1.5]), MEAN_GIOU)


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1])
def test_an_impossible_iou_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="IoU of expression 1"):
        _all(np.array([0.5, bad]), np.array([0, 1]))
