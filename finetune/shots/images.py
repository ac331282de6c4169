"""From labelled files to batches of pixels: random views to learn from, fixed ones to test on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from wholegrain.data.augment import Augment, AugmentConfig, squeeze, to_planes
from wholegrain.data.decode import Decoded, Pixels, decode_image
from wholegrain.data.permutation import keyed_rng
from wholegrain.errors import DataError

_AHEAD = 3  # batches that are decoded while one is used


def random_view(path: Path, resolution: int, key: Sequence[int | str]) -> Tensor:
    """uint8 (3, R, R): a part of 8 to 100 % of the image, perhaps mirrored, resized (bicubic).

    Args:
        path: of the image.
        resolution: R.
        key: what the view depends on, with the image's own sizes, and on nothing else.

    Raises:
        DataError: the file is missing or no image.
    """
    decoded = read_image(path)
    rules = AugmentConfig(
        resolution=resolution, mode="xvlm", min_scale=0.08, flip="blind", colour=0.0
    )
    augment = Augment(rules)
    rng = keyed_rng("few-shot view", *key)
    view = augment.choose_view(decoded.width, decoded.height, None, True, rng)
    pixels, _ = augment.cut(decoded, view)
    return to_planes(pixels)


def fixed_view(path: Path, resolution: int, squeezes: bool) -> Tensor:
    """uint8 (3, R, R): the whole image squeezed to the square, or its central square.

    Args:
        path: of the image.
        resolution: R.
        squeezes: as the host was trained: this library's models squeeze, CLIP cuts.

    Raises:
        DataError: as `random_view`.
    """
    pixels = read_image(path).pixels
    return to_planes(squeeze(pixels, resolution) if squeezes else centre(pixels, resolution))


def centre(pixels: Pixels, resolution: int) -> Pixels:
    """uint8 (R, R, 3): the shorter side resized to R (bicubic, antialiased), the longer one cut.

    The longer side is rounded down and the cut is central to half a pixel, as CLIP's are.
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    size = (resolution * height // short, resolution * width // short)
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    if size != (height, width):
        image = F.interpolate(image, size=size, mode="bicubic", antialias=True)
    top, left = (round((side - resolution) / 2) for side in size)
    cut = image[0, :, top : top + resolution, left : left + resolution]
    result: Pixels = cut.permute(1, 2, 0).contiguous().numpy()
    return result


def read_image(path: Path) -> Decoded:
    """RGB pixels of a file.

    Raises:
        DataError: it is missing or no image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); extract the data set again"
        ) from None
    return decode_image(data, str(path), smallest=1)


def batches(
    load: Callable[[int], Tensor], plan: Sequence[Sequence[int]], workers: int
) -> Iterator[Tensor]:
    """Stacks of what `load` gives for the positions of each batch, in order.

    Args:
        load: called from threads; a function of the position alone.
        plan: positions of each batch.
        workers: threads; 0 loads in this one.
    """
    if not workers:
        for positions in plan:
            yield torch.stack([load(position) for position in positions])
        return
    pool = ThreadPoolExecutor(workers)
    try:
        waiting: deque[list[Future[Tensor]]] = deque()
        for positions in plan:
            waiting.append([pool.submit(load, position) for position in positions])
            if len(waiting) > _AHEAD:
                yield torch.stack([each.result() for each in waiting.popleft()])
        while waiting:
            yield torch.stack([each.result() for each in waiting.popleft()])
    finally:
        pool.shutdown(cancel_futures=True)
