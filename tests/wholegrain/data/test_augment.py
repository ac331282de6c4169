from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch

from wholegrain.config import from_dict
from wholegrain.data.augment import Augment, AugmentConfig, squeeze, to_planes
from wholegrain.data.decode import Decoded, decode_image
from wholegrain.data.views import View
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


def _corners(placed: tuple[float, float, float, float]) -> torch.Tensor:
    x, y, width, height = placed
    return torch.tensor([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


def _augment(**fields: Any) -> Augment:
    return Augment(AugmentConfig(**{"resolution": 96, "colour": 0.0, **fields}))


def _seen(
    augment: Augment, decoded: Decoded, box: tuple[int, int, int, int], seed: int
) -> tuple[torch.Tensor, torch.Tensor, float, View]:
    rng = np.random.default_rng(seed)
    view = augment.choose_view(decoded.width, decoded.height, box, True, rng)
    image, shown = augment.render(decoded, view, rng, has_boxes=True)
    placed, shares = shown.place([box])
    return image, _corners(placed[0]), shares[0], view


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
        placed, _ = shown.place([box])
        assert (_corners(placed[0]) - _found(image)).abs().max() <= 1.5 / 96
    assert reduced == 12


def test_the_view_shown_is_the_one_asked_for_widened_to_whole_decoded_pixels() -> None:
    halved = Decoded(np.zeros((30, 50, 3), np.uint8), width=100, height=60)
    rng = np.random.default_rng(0)
    _, shown = _augment().render(halved, View(33, 11, 41, 20, True), rng, has_boxes=True)
    assert shown == View(32, 10, 42, 22, True)


@pytest.mark.parametrize(
    ("flip", "texts", "allowed"),
    [
        ("careful", ["a dog", "the left man"], False),
        ("careful", ["an upright bright piano"], True),
        ("swap", ["the left man"], True),
        ("swap", ["a dog", "right behind him"], False),
        ("careful", ["a plate at 3 o'clock"], False),
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
        assert (found - placed).abs().max() <= 1.5 / 96
        red, green, blue = image[:, 38, 48].tolist()
        assert red > green + 60 and abs(green - blue) < 12
    assert not torch.equal(images[0], images[1])
    assert torch.equal(boxes[0], boxes[1])


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


def test_squeeze_is_the_resize_of_planes_to_the_last_bit() -> None:
    """The same kernel on separate planes, which copies the image twice."""
    pixels = np.random.default_rng(0).integers(0, 256, (111, 93, 3)).astype(np.uint8)
    for cut in (pixels, pixels[5:90, 7:80], pixels[:30, :20]):
        planes = torch.from_numpy(np.ascontiguousarray(cut.transpose(2, 0, 1)))[None]
        wanted = torch.nn.functional.interpolate(
            planes, size=(48, 48), mode="bicubic", antialias=True
        )
        assert torch.equal(to_planes(squeeze(cut, 48)), wanted[0])


def test_planes_are_a_copy() -> None:
    decoded = _painted(96, 96, (1, 1, 5, 5))
    before = decoded.pixels.copy()
    augment = _augment(mode="none", colour=0.5, randaugment_ops=5)
    for seed in range(5):  # no resize, so that only the copy stands between
        _seen(augment, decoded, (1, 1, 5, 5), seed)
    assert np.array_equal(decoded.pixels, before)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="mode"):
        from_dict(AugmentConfig, {"mode": "centre"})
    with pytest.raises(ConfigError, match="min_scale"):
        from_dict(AugmentConfig, {"min_scale": 0})
    with pytest.raises(ConfigError, match="randaugment_boxes"):
        from_dict(AugmentConfig, {"randaugment_boxes": "drop"})
    with pytest.raises(ConfigError, match="did you mean 'colour'"):
        from_dict(AugmentConfig, {"color": 0.1})
