"""Pixels and boxes move together: coloured rectangles, found again where their boxes say."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wholegrain.data.augment import Augment, AugmentConfig, to_planes
from wholegrain.data.decode import Decoded, decode_image
from wholegrain.data.geometry import Warp
from wholegrain.data.randaugment import MOVINGS
from wholegrain.data.views import Corners, View
from wholegrain.data.warping import warped

R = 224
GROUND = 40
BRIGHT = 230
Box = tuple[int, int, int, int]


def _photo(width: int, height: int, boxes: list[Box]) -> np.ndarray:
    """Dark, with a red, a green and a blue rectangle (xyxy)."""
    pixels = np.full((height, width, 3), GROUND, np.uint8)
    for colour, (left, top, right, bottom) in enumerate(boxes):
        pixels[top:bottom, left:right, colour] = BRIGHT
    return pixels


def _boxes(width: int, height: int, rng: np.random.Generator) -> list[Box]:
    """Three boxes side by side, of any size."""
    edges = np.sort(rng.choice(np.arange(1, 20), 6, replace=False)) * width // 20
    boxes = []
    for left, right in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        top = int(rng.integers(0, height * 3 // 4))
        boxes.append((left, top, right, min(height, top + int(rng.integers(height // 12, height)))))
    return [boxes[i] for i in rng.permutation(3)]


def _found(image: np.ndarray, colour: int) -> np.ndarray | None:
    """Extent (left, top, right, bottom, px) of what is mostly of one colour; None if nothing."""
    others = np.delete(image.astype(int), colour, axis=0).max(axis=0)
    lead = image[colour].astype(int) - others
    mask = lead > max(0.5 * lead.max(), 30)
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def _check(image: np.ndarray, shown: View, boxes: list[Box], tolerance: float) -> int:
    """Compares every box with its pixels; returns how many could be seen."""
    corners: list[Corners] = [tuple(map(float, box)) for box in boxes]  # type: ignore[misc]
    placed, shares = shown.place(corners)
    seen = 0
    for colour, ((x, y, width, height), share) in enumerate(zip(placed, shares, strict=True)):
        expected = R * np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        if share == 0 or R * min(width, height) < 4:  # too thin to be sure of its colour
            continue
        found = _found(image, colour)
        assert found is not None, (colour, expected, share)
        assert abs(found - expected).max() <= tolerance, (colour, found, expected, shown)
        seen += 1
    return seen


def _run(augment: Augment, size: tuple[int, int], seed: int, jpeg: bool, tolerance: float) -> int:
    rng = np.random.default_rng(seed)
    width, height = size
    boxes = _boxes(width, height, rng)
    pixels = _photo(width, height, boxes)
    anchor = tuple(map(float, boxes[seed % 3]))
    view = augment.choose_view(width, height, anchor, True, rng)
    decoded = Decoded(pixels, width, height)
    if jpeg:
        data = bytes(simplejpeg.encode_jpeg(pixels, quality=95, colorsubsampling="444"))
        decoded = decode_image(data, "a", view.min_side(width, height, R))
    image, shown = augment.render(decoded, view, rng, True, anchor)  # type: ignore[arg-type]
    _, shares = shown.place([anchor])  # type: ignore[list-item]
    assert shares[0] > (0.5 if shown.warps else 1 - 1e-9)  # the chosen box stays in sight
    return _check(image.numpy(), shown, boxes, tolerance)


def _augment(**fields: Any) -> Augment:
    return Augment(AugmentConfig(**{"resolution": R, "flip": "blind", **fields}))


@pytest.mark.parametrize("mode", ["none", "crop", "xvlm"])
@pytest.mark.parametrize("colour", [0.0, 0.3])
def test_crop_mirror_resize_and_colour(mode: str, colour: float) -> None:
    augment = _augment(mode=mode, colour=colour)
    sizes = [(320, 240), (240, 320), (224, 224), (500, 111)]
    seen = [_run(augment, sizes[seed % 4], seed, False, 1.5) for seed in range(40)]
    assert sum(seen) > 60


@pytest.mark.parametrize("mode", ["none", "crop", "xvlm"])
def test_photos_decoded_at_a_reduced_scale(mode: str) -> None:
    augment = _augment(mode=mode, colour=0.2, min_scale=0.5)
    # Odd sizes: the reduced picture ends within a pixel.
    seen = [_run(augment, (1001, 667), seed, True, 2) for seed in range(12)]
    assert sum(seen) > 15


@pytest.mark.parametrize("boxes", ["still", "move"])
@pytest.mark.parametrize("mode", ["none", "crop", "xvlm"])
def test_rand_augment(mode: str, boxes: str) -> None:
    augment = _augment(mode=mode, colour=0.0, randaugment_ops=3, randaugment_boxes=boxes)
    # Equalising brings the faint fringe of a bicubic resize, two pixels wide, to full colour; and
    # turned corners are blunt.
    seen = [_run(augment, (320, 240), seed, False, 4) for seed in range(60)]
    assert sum(seen) > 90


@pytest.mark.parametrize("name", list(MOVINGS))
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("flipped", [False, True])
def test_each_move(name: str, sign: int, flipped: bool) -> None:
    warp = MOVINGS[name](0.7 * sign)
    moved = 0
    for seed in range(8):
        boxes = _boxes(R, R, np.random.default_rng(seed))
        pixels = _photo(R, R, boxes)
        planes = to_planes(pixels[:, ::-1] if flipped else pixels).numpy()
        # A tip that the frame cuts off a slanted side is thinner than a pixel for its last two.
        _check(warped(planes, warp), View(0, 0, R, R, flipped, (warp,)), boxes, 3)
        still = View(0, 0, R, R, flipped).place(boxes)  # type: ignore[arg-type]
        moved += View(0, 0, R, R, flipped, (warp,)).place(boxes) != still  # type: ignore[arg-type]
    assert moved == 8


@settings(deadline=None, max_examples=60)
@given(
    names=st.lists(st.tuples(st.sampled_from(list(MOVINGS)), st.floats(-1, 1)), max_size=3),
    seed=st.integers(0, 2**31),
    flipped=st.booleans(),
)
def test_moves_one_after_the_other(
    names: list[tuple[str, float]], seed: int, flipped: bool
) -> None:
    boxes = _boxes(R, R, np.random.default_rng(seed))
    pixels = _photo(R, R, boxes)
    planes = to_planes(pixels[:, ::-1] if flipped else pixels).numpy()
    warps: tuple[Warp, ...] = ()
    for name, strength in names:
        warp = MOVINGS[name](strength)
        planes, warps = warped(planes, warp), (*warps, warp)
    view = View(0, 0, R, R, flipped, warps)
    placed, shares = view.place(boxes)  # type: ignore[arg-type]
    for colour, share in enumerate(shares):
        x, y, width, height = placed[colour]
        if share < 0.3 or min(width, height) * R < 12:
            continue  # of a sliver the tip is thinner than a pixel
        found = _found(planes, colour)
        expected = R * np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        assert found is not None and abs(found - expected).max() <= 4, (found, expected)


def test_png_and_webp_as_well() -> None:
    for kind in ("PNG", "WEBP"):
        boxes = _boxes(300, 200, np.random.default_rng(5))
        buffer = io.BytesIO()
        Image.fromarray(_photo(300, 200, boxes)).save(buffer, format=kind, lossless=True)
        decoded = decode_image(buffer.getvalue(), "a", R)
        augment = _augment(mode="crop", colour=0.0)
        rng = np.random.default_rng(1)
        view = augment.choose_view(300, 200, boxes[0], True, rng)
        image, shown = augment.render(decoded, view, rng, True)
        assert _check(image.numpy(), shown, boxes, 1.5)
