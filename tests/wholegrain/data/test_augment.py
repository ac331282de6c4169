from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wholegrain.boxes import cxcywh_to_xyxy, iou
from wholegrain.config import from_dict
from wholegrain.data.augment import Augment, AugmentConfig, View, jitter_colour, squeeze
from wholegrain.data.decode import Decoded, decode_image
from wholegrain.errors import ConfigError

PAINT = (250, 20, 20)


def _painted(width: int, height: int, box: tuple[int, int, int, int], noise: int = 40) -> Decoded:
    """A dark image with one bright red rectangle (xyxy)."""
    shape = (height, width, 3)
    pixels = np.random.default_rng(0).integers(0, noise, shape).astype(np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = PAINT
    return Decoded(pixels, width, height)


def _found(image: torch.Tensor) -> torch.Tensor:
    """The red rectangle's xyxy in 0..1."""
    return _extent(image[0].int() - image[1].int() > 95)


def _extent(mask: torch.Tensor) -> torch.Tensor:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return torch.stack(edges).double() / len(mask)


def _augment(**fields: Any) -> Augment:
    return Augment(AugmentConfig(**{"resolution": 96, "colour": 0.0, **fields}))


def _seen(
    augment: Augment, decoded: Decoded, box: tuple[int, int, int, int], seed: int
) -> tuple[torch.Tensor, torch.Tensor, float, View]:
    rng = np.random.default_rng(seed)
    view = augment.choose_view(decoded.width, decoded.height, box, True, rng)
    image, shown = augment.render(decoded, view, rng, has_boxes=True)
    placed, shares = shown.place(torch.tensor([box], dtype=torch.float64))
    return image, cxcywh_to_xyxy(placed)[0], float(shares[0]), view


@pytest.mark.parametrize("mode", ["crop", "xvlm", "none"])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_painted_rectangle_is_found_where_its_box_says(mode: str, flip: float) -> None:
    box = (70, 30, 130, 90)
    decoded = _painted(200, 120, box)
    augment = _augment(mode=mode, flip="blind", flip_probability=flip)
    for seed in range(25):
        image, placed, share, view = _seen(augment, decoded, box, seed)
        assert image.shape == (3, 96, 96) and image.dtype == torch.uint8 and image.is_contiguous()
        assert share == pytest.approx(1)
        assert view.flipped == (flip == 1)
        assert (placed - _found(image)).abs().max() <= 1.5 / 96


def test_a_reduced_decode_keeps_the_box_true() -> None:
    box = (300, 100, 700, 500)
    data = bytes(simplejpeg.encode_jpeg(_painted(1001, 667, box).pixels, quality=95))
    augment = _augment(min_scale=0.5)
    reduced = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        view = augment.choose_view(1001, 667, box, True, rng)
        decoded = decode_image(data, "a", view.min_side(1001, 667, 96))
        reduced += decoded.pixels.shape[0] < 667
        image, shown = augment.render(decoded, view, rng, has_boxes=True)
        placed, _ = shown.place(torch.tensor([box], dtype=torch.float64))
        assert (cxcywh_to_xyxy(placed)[0] - _found(image)).abs().max() <= 1.5 / 96
    assert reduced == 12


def test_the_view_shown_is_the_one_asked_for_widened_to_whole_decoded_pixels() -> None:
    halved = Decoded(np.zeros((30, 50, 3), np.uint8), width=100, height=60)
    rng = np.random.default_rng(0)
    _, shown = _augment().render(halved, View(33, 11, 41, 20, True), rng, has_boxes=True)
    assert shown == View(32, 10, 42, 22, True)


def test_a_box_cut_by_the_view_is_clipped_and_its_share_told() -> None:
    view = View(50, 0, 100, 100)
    boxes = torch.tensor([[40.0, 10, 60, 50], [0, 0, 20, 20], [60, 20, 80, 40]])
    placed, shares = view.place(boxes)
    assert shares.tolist() == pytest.approx([0.5, 0, 1])
    assert cxcywh_to_xyxy(placed)[0].tolist() == pytest.approx([0, 0.1, 0.1, 0.5])
    mirrored, _ = View(50, 0, 100, 100, flipped=True).place(boxes)
    assert cxcywh_to_xyxy(mirrored)[0].tolist() == pytest.approx([0.9, 0.1, 1.0, 0.5])


@settings(deadline=None, max_examples=150)
@given(
    width=st.integers(1, 500),
    height=st.integers(1, 500),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
    mode=st.sampled_from(["crop", "xvlm"]),
    seed=st.integers(0, 2**31),
)
def test_the_view_lies_in_the_image_and_holds_the_anchor(
    width: int, height: int, corners: tuple[float, ...], mode: str, seed: int
) -> None:
    (x1, x2), (y1, y2) = sorted(corners[:2]), sorted(corners[2:])
    anchor = (x1 * width, y1 * height, x2 * width, y2 * height)
    view = _augment(mode=mode).choose_view(width, height, anchor, True, np.random.default_rng(seed))
    assert view.width >= 1 and view.height >= 1
    assert 0 <= view.left <= anchor[0] + 1e-9 and 0 <= view.top <= anchor[1] + 1e-9
    assert anchor[2] - 1e-9 <= view.left + view.width <= width
    assert anchor[3] - 1e-9 <= view.top + view.height <= height


def test_crops_vary_and_respect_the_smallest_scale() -> None:
    augment = _augment(min_scale=0.4)
    views = [
        augment.choose_view(300, 200, None, True, np.random.default_rng(s)) for s in range(300)
    ]
    shares = np.array([v.width * v.height / 60_000 for v in views])
    ratios = np.array([v.width / v.height for v in views])
    assert shares.min() > 0.35  # an edge of the image may take a little
    assert shares.min() < 0.5 and shares.max() > 0.85
    assert ratios.min() < 0.85 and ratios.max() > 1.25
    assert len({(v.left, v.top) for v in views}) > 150
    assert 0.4 < np.mean([v.flipped for v in views]) < 0.6


def test_xvlm_crops_images_without_boxes_as_torchvision_does() -> None:
    augment = _augment(mode="xvlm", min_scale=0.2)
    rngs = [np.random.default_rng(s) for s in range(400)]
    views = [augment.choose_view(300, 200, None, False, rng) for rng in rngs]
    shares = np.array([v.width * v.height / 60_000 for v in views])
    ratios = np.array([v.width / v.height for v in views])
    # No part of an admitted shape shows more than 8/9 of an image of 3:2.
    assert 0.19 < shares.min() < 0.25 and 0.85 < shares.max() < 0.9
    assert 0.74 < ratios.min() < 0.8 and 1.28 < ratios.max() < 1.35
    # Parts too high for the image are drawn again, not squeezed to its height.
    assert np.mean([v.height == 200 for v in views]) < 0.05
    rng = np.random.default_rng(0)
    strip = augment.choose_view(1000, 30, None, False, rng)
    assert strip == View(480, 0, 40, 30)
    assert augment.choose_view(30, 1000, None, False, rng) == View(0, 480, 30, 40)


@pytest.mark.parametrize(
    ("flip", "texts", "allowed"),
    [
        ("careful", ["a dog", "the left man"], False),
        ("careful", ["an upright bright piano"], True),
        ("swap", ["the left man"], True),
        ("blind", ["the left man"], True),
        ("never", ["a dog"], False),
    ],
)
def test_flip_rules(flip: str, texts: list[str], allowed: bool) -> None:
    augment = _augment(flip=flip, flip_probability=1.0)
    may_flip = augment.may_flip(texts)
    assert may_flip == allowed
    rng = np.random.default_rng(0)
    assert augment.choose_view(50, 50, None, may_flip, rng).flipped == allowed


def test_plain_shows_the_whole_image_unchanged() -> None:
    decoded = _painted(96, 96, (10, 10, 20, 20))
    augment = Augment(AugmentConfig.plain(96))
    rng = np.random.default_rng(0)
    view = augment.choose_view(96, 96, (10, 10, 20, 20), augment.may_flip(["a"]), rng)
    assert view == View(0, 0, 96, 96)
    image, shown = augment.render(decoded, view, rng, has_boxes=True)
    assert shown == view
    assert np.array_equal(image.permute(1, 2, 0).numpy(), decoded.pixels)


def test_colour_changes_pixels_but_no_place_and_no_hue() -> None:
    box = (30, 20, 70, 60)
    decoded = _painted(100, 100, box)
    augment = _augment(colour=0.2, mode="none", flip="never")
    images, boxes = [], []
    for seed in range(10):
        image, placed, _, _ = _seen(augment, decoded, box, seed)
        images.append(image)
        boxes.append(placed)
        found = _found(image)
        assert float(iou(found, placed)) > 0.9
        red, green, blue = image[:, 38, 48].tolist()
        assert red > green + 60 and abs(green - blue) < 12
    assert not torch.equal(images[0], images[1])
    assert torch.equal(boxes[0], boxes[1])


def test_colour_is_the_stated_equation() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    flat = np.full((9, 9, 3), 100, np.uint8)
    b, _, _ = 1 + 0.3 * (2 * np.random.default_rng(5).random(3) - 1)
    # A grey image has no contrast and no saturation to change: only brightness shows.
    assert abs(jitter_colour(flat, 0.3, np.random.default_rng(5)).astype(int) - b * 100).max() <= 1
    same = jitter_colour(pixels, 1e-9, np.random.default_rng(0))
    assert np.array_equal(same, pixels)
    bright = jitter_colour(np.full((9, 9, 3), 250, np.uint8), 1.0, np.random.default_rng(3))
    assert bright.dtype == np.uint8


def test_rand_augment_keeps_boxed_images_in_place() -> None:
    box = (30, 20, 70, 60)
    decoded = _painted(96, 96, box, noise=1)
    augment = _augment(mode="none", flip="never", randaugment_ops=2)
    images = []
    for seed in range(30):
        image, placed, _, _ = _seen(augment, decoded, box, seed)
        images.append(image)
        # Equalising makes red white, so what is brighter than the black ground counts.
        assert (placed - _extent(image.amax(0) > 100)).abs().max() <= 1.5 / 96
    assert len({image.numpy().tobytes() for image in images}) > 3


def test_render_is_a_function_of_its_generator() -> None:
    decoded = _painted(120, 80, (10, 10, 40, 40))
    augment = _augment(colour=0.3, randaugment_ops=2)
    one, other = (_seen(augment, decoded, (10, 10, 40, 40), s)[0] for s in (3, 3))
    assert torch.equal(one, other)


def test_squeeze_has_no_aliases_of_fine_stripes() -> None:
    stripes = np.zeros((64, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    small = squeeze(stripes, 32)
    assert small.shape == (32, 32, 3)
    assert abs(small[4:-4, 4:-4].astype(int) - 127).max() < 12


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="mode"):
        from_dict(AugmentConfig, {"mode": "centre"})
    with pytest.raises(ConfigError, match="min_scale"):
        from_dict(AugmentConfig, {"min_scale": 0})
    with pytest.raises(ConfigError, match="did you mean 'colour'"):
        from_dict(AugmentConfig, {"color": 0.1})
