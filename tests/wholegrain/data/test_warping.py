from __future__ import annotations

import numpy as np
import pytest

from tests.wholegrain.data.slow_augment import moved, photo
from wholegrain.data.geometry import Warp, rotation, shear_x, shear_y, shift
from wholegrain.data.warping import warped


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "warp",
    [
        shear_x(0.21),
        shear_y(0.21),
        shear_x(0.3),
        shift(7 / 224, 0),
        shift(0, 7 / 224),
        shift(0.013, 0),
        shift(0, 0.0301),
        rotation(21),
        rotation(30),
        Warp(1, 0, 0, 0, 1, 0),
    ],
)
@pytest.mark.parametrize("size", [(96, 96), (50, 81)])
def test_moves_equal_pillows(warp: Warp, sign: int, size: tuple[int, int]) -> None:
    """To a grey level, in a field of grey; Pillow cuts off where these round."""
    warp = warp if sign == 1 else warp.inverse()
    planes = photo(3, *size)
    before = planes.copy()
    found = warped(planes, warp)
    assert found.dtype == np.uint8 and found.shape == planes.shape and found.flags.c_contiguous
    assert abs(found.astype(int) - moved(planes, warp)).max() <= 1
    assert np.array_equal(planes, before)


def test_what_comes_from_outside_is_grey() -> None:
    planes = np.zeros((3, 40, 40), np.uint8)
    assert (warped(planes, shift(0.25, 0))[:, :, :10] == 128).all()
    assert (warped(planes, shift(0, -0.25))[:, 30:] == 128).all()
    assert (warped(planes, shift(1.5, 0)) == 128).all()
    turned = warped(planes, rotation(30))
    assert (turned[:, 0, 0] == 128).all() and (turned[:, 20, 20] == 0).all()


def test_a_turn_has_the_stated_size_and_sense() -> None:
    spot = np.full((3, 101, 101), 128, np.uint8)
    spot[:, 49:52, 79:82] = 255
    y, x = (places.mean() for places in np.nonzero(warped(spot, rotation(21))[0] > 190))
    assert np.degrees(np.arctan2(y - 50, x - 50)) == pytest.approx(21, abs=1.5)  # y grows downwards
    assert np.hypot(y - 50, x - 50) == pytest.approx(30, abs=1)
