"""Boxes of other systems become pixels, or the line and the likely convention are named."""

import numpy as np
import pytest

from finetune.reading import Reading
from wholegrain.errors import DataError, RecordError

SIZES = np.array([(640.0, 480.0)] * 12)
NONE = [None] * 12


def _where(row: int) -> str:
    return f"answers.jsonl:{row + 1}"


def _blind(pixels: np.ndarray) -> float:
    return 0.0


def _read(reading: Reading, values: np.ndarray, resized=NONE, mean_iou=_blind):  # type: ignore[no-untyped-def]
    return reading.to_pixels(values, SIZES, resized, _where, mean_iou)


@pytest.fixture
def thousandths() -> np.ndarray:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 500, (12, 2))
    return np.concatenate([low, low + rng.uniform(100, 480, (12, 2))], axis=1).round()


def test_line_value_and_convention_are_named(thousandths: np.ndarray) -> None:
    truth = _read(Reading("xyxy_1000"), thousandths)

    def mean_iou(pixels: np.ndarray) -> float:
        return float((np.abs(pixels - truth).max(axis=1) < 1).mean())

    far = thousandths.copy()
    far[7] = (10, 20, 30, 999)
    with pytest.raises(RecordError) as caught:
        _read(Reading("xyxy_pixels"), far, mean_iou=mean_iou)
    message = str(caught.value)
    first = int(np.flatnonzero((far > (960, 720, 960, 720)).any(axis=1))[0])
    assert message.startswith(f"answers.jsonl:{first + 1}: box is {far[first].tolist()}; ")
    assert "as xyxy_pixels it lies far outside its image of 640 x 480" in message
    assert "they fit xyxy_1000: mean IoU 0.92 instead of 0.00" in message
    assert "--boxes" in message
    assert "--trust-boxes" in message
    # Taken at their word, they are what they are.
    assert (_read(Reading("xyxy_pixels", trust=True), far) == far).all()


def test_boxes_that_lie_inside_and_fit_another_convention(thousandths: np.ndarray) -> None:
    truth = _read(Reading("yxyx_1000"), thousandths)

    def mean_iou(pixels: np.ndarray) -> float:
        return float((np.abs(pixels - truth).max(axis=1) < 1).mean())

    with pytest.raises(DataError, match=r"^answers.jsonl: its boxes are not xyxy_1000.*yxyx_1000"):
        _read(Reading("xyxy_1000"), thousandths, mean_iou=mean_iou)
    assert (_read(Reading("yxyx_1000"), thousandths, mean_iou=mean_iou) == truth).all()


def test_one_answer_of_a_confused_system_stops_the_evaluation(thousandths: np.ndarray) -> None:
    """It is counted as it is once the user says that the convention is right."""
    thousandths[4] = (0, 0, 50_000, 10)
    with pytest.raises(RecordError, match=r"answers.jsonl:5: .*outside 0 to 1000; name their conv"):
        _read(Reading("xyxy_1000"), thousandths)
    assert _read(Reading("xyxy_1000", trust=True), thousandths)[4].tolist() == [0, 0, 32000, 4.8]


def test_sizes_of_resized_images(thousandths: np.ndarray) -> None:
    reading = Reading("xyxy_resized")
    own = [(1280.0, 960.0)] * 11 + [(64.0, 48.0)]
    thousandths[11] = (1, 2, 3, 4)
    pixels = _read(reading, thousandths, own)
    np.testing.assert_allclose(pixels[:11], thousandths[:11] / 2)
    np.testing.assert_allclose(pixels[11], (10, 20, 30, 40))
    with pytest.raises(RecordError, match=r":12: resized is None; add it as \[width, height\]"):
        _read(reading, thousandths, [*own[:11], None])
    # A size for all; a line's own goes first; an answer without a box needs none.
    default = Reading("xyxy_resized", resized=(1280, 960))
    np.testing.assert_allclose(_read(default, thousandths, [None] * 11 + own[11:]), pixels)
    thousandths[11] = np.nan
    assert np.isnan(_read(reading, thousandths, [*own[:11], None])[11]).all()


def test_no_boxes_at_all() -> None:
    empty = np.zeros((0, 4))
    assert Reading("xyxy_resized").to_pixels(empty, empty[:, :2], [], _where, _blind).shape == (
        0,
        4,
    )
