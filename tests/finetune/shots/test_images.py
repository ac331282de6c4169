"""Views to learn from and to test on, and batches of them."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from finetune.shots.images import batches, centre, fixed_view, random_view
from wholegrain.data.augment import squeeze
from wholegrain.errors import DataError


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(40, 61), (61, 40), (33, 33), (9, 30), (16, 16), (16, 21)])
def test_the_centre_is_that_of_torchvision(size: tuple[int, int]) -> None:
    pixels = noise(*size)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    resized = reference.resize(planes, [16], InterpolationMode.BICUBIC, antialias=True)
    expected = reference.center_crop(resized, [16, 16])
    found = torch.from_numpy(centre(pixels, 16)).permute(2, 0, 1)
    assert found.shape == (3, 16, 16)
    assert torch.equal(found, expected)


def test_a_host_of_this_library_sees_the_whole_image(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    pixels = noise(40, 61)
    Image.fromarray(pixels).save(path)
    whole, cut = fixed_view(path, 16, True), fixed_view(path, 16, False)
    assert torch.equal(whole, torch.from_numpy(squeeze(pixels, 16)).permute(2, 0, 1))
    assert torch.equal(cut, torch.from_numpy(centre(pixels, 16)).permute(2, 0, 1))
    assert not torch.equal(whole, cut)


def test_views_to_learn_from(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    # Red grows to the right, so that a mirrored view shows.
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0] = np.arange(64) * 4
    Image.fromarray(ramp).save(path)
    views = [random_view(path, 16, ("x", 1, epoch)) for epoch in range(40)]
    assert torch.equal(views[3], random_view(path, 16, ("x", 1, 3)))
    assert all(view.shape == (3, 16, 16) and view.dtype == torch.uint8 for view in views)
    rising = [bool(view[0, 8, -1] > view[0, 8, 0]) for view in views]
    assert 8 <= sum(rising) <= 32  # half of them, within four standard deviations
    spans = torch.tensor([int(v[0, 8].max()) - int(v[0, 8].min()) for v in views])
    # Sides reach from sqrt(0.08) of the image's, in the ratio 3 to 4, up to all of it.
    assert spans.max() > 200
    assert 25 < spans.min() < 130


@pytest.mark.parametrize("content", [None, b"", b"<html>", b"\xff\xd8\xff\xe0 no JPEG"])
def test_no_image(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    if content is not None:
        path.write_bytes(content)
    for view in (lambda: random_view(path, 16, ()), lambda: fixed_view(path, 16, False)):
        with pytest.raises(DataError, match=r"x\.jpg"):
            view()


@pytest.mark.parametrize("workers", [0, 3])
def test_batches_come_in_order(workers: int) -> None:
    seen: set[str] = set()

    def load(position: int) -> Tensor:
        seen.add(threading.current_thread().name)
        return torch.full((1,), position)

    plan = [[4, 2], [9], [1, 3, 5], [0], [7], [8], [6]]
    found = [batch.flatten().tolist() for batch in batches(load, plan, workers)]
    assert found == plan
    assert (threading.current_thread().name in seen) == (workers == 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_reaches_the_loop_and_threads_end(workers: int) -> None:
    def load(position: int) -> Tensor:
        if position == 5:
            raise DataError("image 5")
        return torch.zeros(1)

    before = threading.active_count()
    found: Iterator[Tensor] = batches(load, [[n] for n in range(9)], workers)
    with pytest.raises(DataError, match="image 5"):
        list(found)
    assert threading.active_count() == before
    half_read = batches(load, [[0], [1], [2], [3], [4]], workers)
    next(half_read)
    half_read.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
