from __future__ import annotations

import numpy as np
import pytest

from tests.wholegrain.data.slow_augment import moved, painted, photo
from wholegrain.data.geometry import Warp
from wholegrain.data.randaugment import MOVINGS, PAINTINGS, rand_augment


def _edge() -> np.ndarray:
    """Dark to the left of column 20, grey from there on."""
    planes = np.zeros((3, 40, 40), np.uint8)
    planes[..., 20:] = 100
    return planes


def _cross() -> np.ndarray:
    planes = np.full((3, 56, 56), 128, np.uint8)
    planes[:, 26:30], planes[:, :, 26:30] = 200, 60
    return planes


@pytest.mark.parametrize("name", [*PAINTINGS, *MOVINGS])
def test_each_operation_changes_what_it_should(name: str) -> None:
    planes = _cross()
    only = {name: 0}
    for seed in range(400):
        rng = np.random.default_rng(seed)
        draws = np.random.default_rng(seed).random(3)
        if draws[1] < 0.5 and [*PAINTINGS, *MOVINGS][int(draws[0] * 10)] == name:
            after, warps = rand_augment(planes.copy(), 1, 7, False, rng)
            only[name] += 1
            assert after.shape == planes.shape and after.dtype == np.uint8
            assert np.array_equal(after, planes) == (name == "identity")
            assert len(warps) == (name in MOVINGS)
    assert only[name] > 5


def test_the_whole_equals_pillows_operations_in_a_row() -> None:
    """Each operation may be off by a level; equalising may stretch that, so it stands apart."""
    names, compared = [*PAINTINGS, *MOVINGS], 0
    for seed in range(60):
        draws = np.random.default_rng(seed).random((2, 3))
        chosen = [
            (names[int(a * 10)], 1 if side < 0.5 else -1) for a, on, side in draws if on < 0.5
        ]
        if any(name in ("equalize", "autocontrast", "sharpness") for name, _ in chosen[1:]):
            continue
        planes = wanted = photo(seed)
        for name, sign in chosen:
            if name in MOVINGS:
                wanted = moved(wanted, MOVINGS[name](0.7 * sign))
            else:
                wanted = painted(name, wanted, 7)
        found, _ = rand_augment(planes.copy(), 2, 7, False, np.random.default_rng(seed))
        assert abs(found.astype(int) - wanted).max() <= 3, chosen
        compared += bool(chosen)
    assert compared > 20


def test_still_operations_leave_everything_at_its_place() -> None:
    # Brightness apart, a vertical edge at column 20 stays the only edge.
    rng = np.random.default_rng(0)
    for _ in range(60):
        found, warps = rand_augment(_edge(), 2, 7, True, rng)
        steps = abs(np.diff(found.astype(int), axis=2)).sum(axis=(0, 1))
        assert steps.argmax() == 19
        assert (
            abs(np.diff(found[:, 2:-2].astype(int), axis=1)).sum() == 0
        )  # borders are not sharpened
        assert warps == ()


def test_moving_operations_move_and_say_how() -> None:
    rng = np.random.default_rng(0)
    results = [rand_augment(_edge(), 2, 7, False, rng) for _ in range(60)]
    assert any(abs(np.diff(image.astype(int), axis=1)).sum() > 0 for image, _ in results)
    assert {len(warps) for _, warps in results} == {0, 1, 2}


def test_a_move_that_is_not_admitted_is_left_out() -> None:
    asked: list[tuple[Warp, ...]] = []

    def admitted(warps: tuple[Warp, ...]) -> bool:
        asked.append(warps)
        return len(warps) < 2

    for seed in range(80):
        _, warps = rand_augment(_cross(), 4, 7, False, np.random.default_rng(seed), admitted)
        assert len(warps) < 2
    assert max(map(len, asked)) == 2


def test_about_a_quarter_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither of two operations is applied; the identity, applied, must show that it was."""
    monkeypatch.setitem(PAINTINGS, "identity", lambda planes, _: np.invert(planes, out=planes))
    rng, planes = np.random.default_rng(1), photo(0, 16, 16)
    results = [rand_augment(planes.copy(), 2, 7, False, rng) for _ in range(1000)]
    assert 200 < sum(np.array_equal(found, planes) for found, _ in results) < 300
