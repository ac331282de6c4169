"""Each convention names the same box, and a wrong one is noticed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.conventions import BOXES, CONVENTIONS, UNITS, Boxes, better_reading, first_outside
from finetune.protocols import merged_iou

WIDTH, HEIGHT = 200.0, 100.0
RESIZED = (500.0, 300.0)
BY_HAND = {  # of the box 20, 30, 60, 90 in an image of 200 x 100
    "xyxy_pixels": (20, 30, 60, 90),
    "xywh_pixels": (20, 30, 40, 60),
    "cxcywh_pixels": (40, 60, 40, 60),
    "yxyx_pixels": (30, 20, 90, 60),
    "xyxy_unit": (0.1, 0.3, 0.3, 0.9),
    "xywh_unit": (0.1, 0.3, 0.2, 0.6),
    "cxcywh_unit": (0.2, 0.6, 0.2, 0.6),
    "yxyx_unit": (0.3, 0.1, 0.9, 0.3),
    "xyxy_1000": (100, 300, 300, 900),
    "xywh_1000": (100, 300, 200, 600),
    "cxcywh_1000": (200, 600, 200, 600),
    "yxyx_1000": (300, 100, 900, 300),
    # The middle of bin 99 is 99.5 thousandths: 19.9 px.
    "xyxy_1000bins": (99.5, 299.5, 299.5, 899.5),
    "yxyx_1000bins": (299.5, 99.5, 899.5, 299.5),
    "xyxy_1024": (102.4, 307.2, 307.2, 921.6),
    "xywh_1024": (102.4, 307.2, 204.8, 614.4),
    "cxcywh_1024": (204.8, 614.4, 204.8, 614.4),
    "yxyx_1024": (307.2, 102.4, 921.6, 307.2),
    # Resized to 500 x 300: 2.5 times as wide, three times as high.
    "xyxy_resized": (50, 90, 150, 270),
    "xywh_resized": (50, 90, 100, 180),
    "cxcywh_resized": (100, 180, 100, 180),
    "yxyx_resized": (90, 50, 270, 150),
    # A square of 200, the image 50 below its top: 80 to 140 of 200.
    "xyxy_square": (0.1, 0.4, 0.3, 0.7),
    "xywh_square": (0.1, 0.4, 0.2, 0.3),
    "cxcywh_square": (0.2, 0.55, 0.2, 0.3),
    "yxyx_square": (0.4, 0.1, 0.7, 0.3),
}


def _boxes(convention: str, *rows: tuple[float, ...], size: tuple[float, float] | None = None):  # type: ignore[no-untyped-def]
    width, height = size or (WIDTH, HEIGHT)
    count = len(rows)
    return Boxes(
        np.array(rows, dtype=float),
        np.full(count, width),
        np.full(count, height),
        convention,
        np.tile(RESIZED, (count, 1)),
    )


def test_every_convention_is_computed_by_hand() -> None:
    assert tuple(BY_HAND) == CONVENTIONS
    assert {name.split("_")[0] for name in CONVENTIONS} == set(BOXES)
    assert {name.split("_")[1] for name in CONVENTIONS} == set(UNITS)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_each_convention_names_the_same_box(convention: str) -> None:
    boxes = _boxes(convention, BY_HAND[convention], (np.nan,) * 4)
    pixels = boxes.to_pixels()
    np.testing.assert_allclose(pixels[0], (20, 30, 60, 90), rtol=1e-14)
    assert np.isnan(pixels[1]).all()
    assert first_outside(boxes) is None


def test_square_of_an_upright_image() -> None:
    """100 x 200: the padding is at the sides, and a box may reach into it."""
    boxes = _boxes("xyxy_square", (0.25, 0, 0.75, 1), (0.2, 0.1, 0.5, 0.5), size=(100, 200))
    np.testing.assert_allclose(boxes.to_pixels(), [(0, 0, 100, 200), (-10, 20, 50, 100)])


def test_pixels_are_not_touched() -> None:
    given_box = (0.1 + 0.2, 1 / 3, 77.77, 99.99)
    assert tuple(_boxes("xyxy_pixels", given_box).to_pixels()[0]) == given_box


def test_unknown_convention_lists_the_known() -> None:
    with pytest.raises(ValueError, match="'yxyx'") as caught:
        _boxes("yxyx", (0, 0, 1, 1))
    assert all(name in str(caught.value) for name in CONVENTIONS)
    with pytest.raises(ValueError, match="sizes that the images were resized to"):
        Boxes(np.zeros((1, 4)), np.ones(1), np.ones(1), "xyxy_resized")


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_what_lies_far_outside_is_found(convention: str) -> None:
    """The whole image, a model's overshoot by half of it, and then more than that."""
    order, unit = convention.split("_")
    frames = {"pixels": (WIDTH, HEIGHT), "resized": RESIZED, "1024": (1024.0, 1024.0)}
    x, y = frames.get(unit, (1000.0, 1000.0) if unit.startswith("1000") else (1.0, 1.0))

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
        left, right, top, bottom = left * x, right * x, top * y, bottom * y
        return {
            "xyxy": (left, top, right, bottom),
            "yxyx": (top, left, bottom, right),
            "xywh": (left, top, right - left, bottom - top),
            "cxcywh": ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top),
        }[order]

    inside = [box(0, 0, 1, 1), box(-0.4, 0, 0.5, 1), box(0, 0.2, 1.4, 1.4), (np.nan,) * 4]
    assert first_outside(_boxes(convention, *inside)) is None
    for far in ((0, 0, 1.6, 1), (0, 0, 1, 1.6), (-0.6, 0, 1, 1), (0, -0.6, 1, 1)):
        assert first_outside(_boxes(convention, *inside, box(*far))) == 4


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_thousandths_given_as_pixels_are_noticed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.6, (40, 2))
    unit = np.concatenate([corner, corner + rng.uniform(0.1, 0.4, (40, 2))], axis=1)
    truth = unit * (WIDTH, HEIGHT, WIDTH, HEIGHT)

    def mean_iou(pixels: np.ndarray) -> float:
        return float(merged_iou(pixels, truth).mean())

    written = Boxes(1000 * unit, np.full(40, WIDTH), np.full(40, HEIGHT), "xyxy_pixels")
    assert first_outside(written) is not None
    found = better_reading(written, mean_iou)
    assert found is not None
    assert found[0] == "xyxy_1000"
    assert found[1] > 0.999
    # As they are, nothing fits better, and so it is with answers that are wrong in any convention.
    right = Boxes(1000 * unit, np.full(40, WIDTH), np.full(40, HEIGHT), "xyxy_1000")
    assert better_reading(right, mean_iou) is None
    noise = Boxes(rng.uniform(0, 100, (40, 4)), np.full(40, WIDTH), np.full(40, HEIGHT))
    assert better_reading(noise, mean_iou) is None


def test_exchanged_axes_are_noticed_by_the_truth_alone() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 500, (30, 2))
    values = np.concatenate([low, low + rng.uniform(50, 400, (30, 2))], axis=1)
    wide, high = np.full(30, WIDTH), np.full(30, HEIGHT)
    truth = Boxes(values, wide, high, "yxyx_1000").to_pixels()
    written = Boxes(values, wide, high, "xyxy_1000")
    assert first_outside(written) is None

    def mean_iou(pixels: np.ndarray) -> float:
        return float(merged_iou(pixels, truth).mean())

    found = better_reading(written, mean_iou)
    assert found is not None
    assert found[0] == "yxyx_1000"
    few = Boxes(values[:9], wide[:9], high[:9], "xyxy_1000")
    assert better_reading(few, lambda pixels: float(merged_iou(pixels, truth[:9]).mean())) is None
