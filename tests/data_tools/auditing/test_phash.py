"""Which files show the same photo: made pictures, and real photos saved anew."""

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data_tools.auditing import phash
from data_tools.auditing.hamming import HammingIndex

Picture = Callable[[int], Image.Image]
Encode = Callable[..., bytes]


def apart(one: bytes, other: bytes) -> int:
    pair, _ = phash.hashes(np.stack([phash.squeezed(one, "one"), phash.squeezed(other, "other")]))
    return int(np.bitwise_count(pair[0] ^ pair[1]))


def same(one: bytes, other: bytes) -> bool:
    thumbnails = [phash.thumbnails(phash.squeezed(data, "photo")) for data in (one, other)]
    return apart(one, other) <= phash.RADIUS and phash.difference(*thumbnails) is not None


def test_a_picture_saved_anew_is_the_same(picture: Picture, encode: Encode) -> None:
    for number in range(20):
        image = picture(number)
        original = encode(image)
        width, height = image.size
        for copy in (
            encode(image, quality=30),
            encode(image, "PNG"),
            encode(image, "WEBP", quality=50),
            encode(image.resize((width // 2, height // 2))),
            encode(image.resize((2 * width, 2 * height))),
            encode(image.crop((3, 2, width, height))),
            encode(image, progressive=True),
        ):
            assert same(original, copy)


def test_other_pictures_are_not(picture: Picture, encode: Encode) -> None:
    photos = np.stack([phash.squeezed(encode(picture(n)), f"picture {n}") for n in range(60)])
    assert confirmed(photos, photos) == [(number, number) for number in range(60)]
    small = phash.thumbnails(photos)
    assert all(
        phash.difference(a, b) is None for i, a in enumerate(small) for b in small[:i]
    )  # without the hash's help


def test_turned_copies_are_found_by_the_turned_original(picture: Picture, encode: Encode) -> None:
    image = picture(1)
    squeezed = phash.squeezed(encode(image), "photo")
    turned = {name: turn(squeezed) for name, turn in phash.TURNS.items()}
    table, _ = phash.hashes(np.stack(list(turned.values())))
    for name, copy in (
        ("as it is", image),
        ("mirrored", image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        ("turned by 90", image.transpose(Image.Transpose.ROTATE_90)),
        ("turned by 180", image.transpose(Image.Transpose.ROTATE_180)),
        ("turned by 270", image.transpose(Image.Transpose.ROTATE_270)),
    ):
        seen = phash.squeezed(encode(copy), "copy")
        (mine,), _ = phash.hashes(seen[None])
        near = dict(zip(turned, np.bitwise_count(table ^ mine).tolist(), strict=True))
        assert min(near, key=near.__getitem__) == name
        assert near[name] <= 6
        own = phash.TURNS[name](phash.thumbnails(squeezed))
        assert phash.difference(phash.thumbnails(seen), own) is not None


def test_flat_photos_are_known_to_show_nothing(encode: Encode) -> None:
    flat = [Image.new("RGB", (90, 60), colour) for colour in ("white", "black", "#7090c0")]
    noisy = np.random.default_rng(0).normal(128, 2.0, (60, 90, 3)).clip(0, 255).astype(np.uint8)
    photos = [phash.squeezed(encode(image), "flat") for image in [*flat, Image.fromarray(noisy)]]
    _, are_flat = phash.hashes(np.stack(photos))
    assert are_flat.all()


def test_equal_shapes_in_other_colours_are_another_photo(picture: Picture, encode: Encode) -> None:
    """The hash knows brightness alone; the thumbnails know colour."""
    shapes = np.asarray(picture(2).convert("L"), float)[..., None] / 255
    blue, orange = (
        encode(Image.fromarray((shapes * colour).astype(np.uint8)))
        for colour in ((70, 140, 255), (230, 110, 10))
    )
    assert apart(blue, orange) <= phash.RADIUS
    assert not same(blue, orange)
    assert same(blue, blue)


def test_thumbnails_that_correlate_with_nothing() -> None:
    grey = np.full((16, 16, 3), 128, np.uint8)
    assert phash.difference(grey, grey) is None


# Real photos


def variants(image: Image.Image) -> dict[str, bytes]:
    width, height = image.size

    def saved(picture: Image.Image, kind: str = "JPEG", quality: int = 90) -> bytes:
        file = io.BytesIO()
        picture.save(file, kind, quality=quality)
        return file.getvalue()

    def scaled(factor: float) -> Image.Image:
        return image.resize((round(width * factor), round(height * factor)))

    across, down = max(1, round(0.02 * width)), max(1, round(0.02 * height))
    return {
        "quality 30": saved(image, quality=30),
        "quality 95": saved(image, quality=95),
        "webp": saved(image, "WEBP", 60),
        "half size": saved(scaled(0.5)),
        "double size": saved(scaled(2.0)),
        "half size, quality 30": saved(scaled(0.5), quality=30),
        "2 % off the left": saved(image.crop((across, 0, width, height))),
        "2 % off all sides": saved(image.crop((across, down, width - across, height - down))),
    }


def squeezed_files(files: list[Path]) -> NDArray[np.uint8]:
    return np.stack([phash.squeezed(path.read_bytes(), path.name) for path in files])


def confirmed(known: NDArray[np.uint8], seen: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Pairs (seen, known) that both comparisons take for the same photo."""
    (known_hashes, _), (seen_hashes, _) = phash.hashes(known), phash.hashes(seen)
    pairs = zip(*HammingIndex(known_hashes, phash.RADIUS).search(seen_hashes), strict=True)
    small, large = phash.thumbnails(known), phash.thumbnails(seen)
    return [(int(a), int(b)) for a, b in pairs if phash.difference(large[a], small[b]) is not None]


@pytest.mark.slow
def test_real_photos_saved_anew_are_found_and_others_are_not(real_data: Path) -> None:
    files = sorted((real_data / "flickr30k_entities_8k" / "images").glob("*.jpg"))
    chosen = random.Random(0).sample(files, 1500)
    known = squeezed_files(chosen)
    # A million pairs of distinct photos, and none is taken for one photo.
    assert confirmed(known, known) == [(number, number) for number in range(len(known))]
    native = sorted((real_data / "refcoco_native" / "images").glob("*.jpg"))[:25]
    known = np.concatenate([known[:95], squeezed_files(native)])
    copies: dict[str, list[NDArray[np.uint8]]] = {}
    for path in [*chosen[:95], *native]:
        with Image.open(path) as image:
            for name, data in variants(image.convert("RGB")).items():
                copies.setdefault(name, []).append(phash.squeezed(data, path.name))
    for name, seen in copies.items():
        found = confirmed(known, np.stack(seen))
        assert all(a == b for a, b in found), name
        assert len(found) >= (0.98 if "%" in name else 1.0) * len(known), (name, len(found))
