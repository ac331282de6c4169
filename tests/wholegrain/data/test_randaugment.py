from __future__ import annotations

import numpy as np
import pytest

from wholegrain.data import randaugment
from wholegrain.data.randaugment import rand_augment


def _cross() -> np.ndarray:
    pixels = np.full((56, 56, 3), 128, np.uint8)
    pixels[26:30], pixels[:, 26:30] = 200, 60
    return pixels


@pytest.mark.parametrize("name", list(randaugment._OPERATIONS))
def test_each_operation_keeps_the_shape_and_changes_what_it_should(name: str) -> None:
    from PIL import Image

    before = Image.fromarray(_cross())
    after = np.asarray(randaugment._OPERATIONS[name](before, 0.7, 1))
    assert after.shape == (56, 56, 3) and after.dtype == np.uint8
    assert np.array_equal(after, _cross()) == (name == "identity")


def test_geometry_has_the_stated_size() -> None:
    from PIL import Image

    spot = np.full((101, 101, 3), 128, np.uint8)
    spot[49:52, 79:82] = 255
    turned = np.asarray(randaugment._OPERATIONS["rotate"](Image.fromarray(spot), 0.7, 1))
    y, x = (places.mean() for places in np.nonzero(turned[..., 0] > 190))
    assert np.degrees(np.arctan2(abs(y - 50), x - 50)) == pytest.approx(21, abs=1.5)
    assert np.hypot(y - 50, x - 50) == pytest.approx(30, abs=1)


def test_still_operations_leave_everything_at_its_place() -> None:
    # Brightness apart, a vertical edge at column 20 stays the only edge.
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, 20:] = 100
    rng = np.random.default_rng(0)
    for _ in range(60):
        found = rand_augment(pixels, 2, 7, True, rng).astype(int)
        steps = abs(np.diff(found, axis=1)).sum(axis=(0, 2))
        assert steps.argmax() == 19
        assert abs(np.diff(found[2:-2], axis=0)).sum() == 0  # sharpening spares the border


def test_moving_operations_move_when_allowed() -> None:
    rng = np.random.default_rng(0)
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:, 20:] = 100
    found = [rand_augment(pixels, 2, 7, False, rng).astype(int) for _ in range(60)]
    assert any(abs(np.diff(image, axis=0)).sum() > 0 for image in found)


def test_about_a_quarter_is_left_alone() -> None:
    rng = np.random.default_rng(1)
    pixels = _cross()
    untouched = sum(rand_augment(pixels, 2, 7, False, rng) is pixels for _ in range(1000))
    assert 200 < untouched < 300  # neither of two operations applied
