from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wholegrain.data.slow_augment import jittered, painted, photo
from wholegrain.data.colour import (
    autocontrast,
    brighten,
    equalise,
    jitter_colour,
    sharpen,
    to_planes,
)


def _jittered(planes: np.ndarray, strength: float, seed: int) -> np.ndarray:
    pixels = np.ascontiguousarray(planes.transpose(1, 2, 0))
    return to_planes(jitter_colour(pixels, strength, np.random.default_rng(seed)))


@pytest.mark.parametrize("strength", [0.05, 0.2, 0.3, 0.5, 1.0])
def test_jitter_is_the_stated_equation_rounded(strength: float) -> None:
    for seed in range(20):
        planes = photo(seed)
        exact = jittered(planes, strength, np.random.default_rng(seed))
        error = abs(_jittered(planes, strength, seed) - exact)
        assert error.max() <= 1.0  # half a level of rounding, and coefficients in 1/1024
        assert error.mean() > 0.05  # something was to be rounded


@settings(deadline=None, max_examples=150)
@given(strength=st.floats(0, 1), seed=st.integers(0, 2**31), level=st.integers(0, 255))
def test_extreme_pictures_do_not_overflow(strength: float, seed: int, level: int) -> None:
    planes = np.zeros((3, 26, 26), np.uint8)
    planes[0], planes[1, :13], planes[2, :, ::2] = 255, level, 255 - level
    exact = jittered(planes, strength, np.random.default_rng(seed))
    assert abs(_jittered(planes, strength, seed) - exact).max() <= 1.0


def test_planes_are_the_pixels_in_another_layout() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    planes = to_planes(pixels)
    assert planes.flags.c_contiguous
    assert np.array_equal(planes, pixels.transpose(2, 0, 1))


def test_grey_stays_grey_and_only_brightness_shows_on_one_colour() -> None:
    for seed in range(20):
        flat = np.full((3, 9, 9), 100, np.uint8)
        b, _, _ = 1 + 0.3 * (2 * np.random.default_rng(seed).random(3) - 1)
        assert abs(_jittered(flat, 0.3, seed).astype(int) - b * 100).max() <= 1
        grey = np.repeat(photo(seed)[:1], 3, axis=0)
        changed = _jittered(grey, 0.3, seed).astype(int)
        assert (abs(changed - changed[:1]) <= 1).all()


def test_no_strength_changes_nothing() -> None:
    planes = photo(0)
    assert np.array_equal(_jittered(planes, 0.0, 0), planes)


def test_threads_do_not_share_memory() -> None:
    planes = [photo(seed, 200, 200) for seed in range(4)]
    wanted = [_jittered(one, 0.3, seed) for seed, one in enumerate(planes)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(30):
            if not np.array_equal(_jittered(planes[seed], 0.3, seed), wanted[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


OPERATIONS = {
    "autocontrast": lambda planes, factor: autocontrast(planes),
    "equalize": lambda planes, factor: equalise(planes),
    "brightness": brighten,
    "sharpness": sharpen,
}


@pytest.mark.parametrize("name", list(OPERATIONS))
@pytest.mark.parametrize("magnitude", [0, 3, 5, 7, 10])
def test_operations_equal_pillows(name: str, magnitude: int) -> None:
    """To a grey level, where Pillow cuts off and these round."""
    for seed in range(6):
        planes = photo(seed, 60, 44)
        if name == "autocontrast":
            planes = planes // 2 + 40  # otherwise there is nothing to stretch
        wanted = painted(name, planes, magnitude).astype(int)
        found = planes.copy()
        OPERATIONS[name](found, 0.18 * magnitude + 0.1)
        assert abs(found - wanted).max() <= 1
        if magnitude != 5:
            assert not np.array_equal(found, planes)


@settings(deadline=None, max_examples=100)
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    low=st.integers(0, 255),
    high=st.integers(0, 255),
    seed=st.integers(0, 99),
    magnitude=st.integers(0, 10),
)
def test_operations_equal_pillows_on_any_range(
    size: tuple[int, int], low: int, high: int, seed: int, magnitude: int
) -> None:
    low, high = sorted((low, high))
    planes = np.random.default_rng(seed).integers(low, high + 1, (3, *size)).astype(np.uint8)
    for name, operation in OPERATIONS.items():
        found = planes.copy()
        operation(found, 0.18 * magnitude + 0.1)
        # Pillow's smoothing and its mixing each cut off; so for sharpness two levels may add up.
        limit = 2 if name == "sharpness" else 1
        assert abs(found - painted(name, planes, magnitude).astype(int)).max() <= limit, name
