"""Shears, shifts and turns of planes of bytes, with bilinear interpolation.

The image lies in an endless field of grey, which shows where it was moved away, and with which its
edge mixes by parts of a pixel. A shear moves each row by an amount of its own: rows with the same
whole part are copied together, and the fraction is one weighted sum of neighbours.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wholegrain.data.colour import Planes
from wholegrain.data.geometry import Warp

GREY = 128
"""What comes into the picture from outside."""

_ONE = 256  # a whole pixel, of which shifts are rounded to parts


def warped(planes: Planes, warp: Warp) -> Planes:
    """A copy of uint8 (3, H, W), moved as the map of the unit square says."""
    a, b, c, d, e, f = warp.a, warp.b, warp.c, warp.d, warp.e, warp.f
    _, height, width = planes.shape
    if a == e == 1 and d == 0 and f == 0:
        middle = (np.arange(height) + 0.5) / height
        return _rows_moved(planes, -(b * middle + c) * width)
    if a == e == 1 and b == 0 and c == 0:
        middle = (np.arange(width) + 0.5) / width
        return _columns_moved(planes, -(d * middle + f) * height)
    return _sampled(planes, warp)


def _rows_moved(planes: Planes, reach: NDArray[np.float64]) -> Planes:
    """Row y shows at x what stood at ``x + reach[y]``."""
    whole, part = _split(reach)
    count, height, width = planes.shape
    wide = np.full((count, height, width + 1), GREY, dtype=np.uint8)
    for first, end in _runs(whole):
        start = int(whole[first])
        low, high = max(start, 0), min(start + width + 1, width)
        if low < high:
            wide[:, first:end, low - start : high - start] = planes[:, first:end, low:high]
    return _mixed(wide[..., :-1], wide[..., 1:], part[:, None])


def _columns_moved(planes: Planes, reach: NDArray[np.float64]) -> Planes:
    """Column x shows at y what stood at ``y + reach[x]``."""
    whole, part = _split(reach)
    count, height, width = planes.shape
    high = np.full((count, height + 1, width), GREY, dtype=np.uint8)
    for first, end in _runs(whole):
        start = int(whole[first])
        low, stop = max(start, 0), min(start + height + 1, height)
        if low < stop:
            high[:, low - start : stop - start, first:end] = planes[:, low:stop, first:end]
    return _mixed(high[:, :-1], high[:, 1:], part[None, :])


def _split(reach: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    steps = np.rint(reach * _ONE).astype(np.int64)
    return steps >> 8, (steps & 255).astype(np.uint16)


def _runs(whole: NDArray[np.int64]) -> list[tuple[int, int]]:
    """First and end of each stretch of equal numbers."""
    edges = (np.flatnonzero(np.diff(whole)) + 1).tolist()
    return list(zip([0, *edges], [*edges, len(whole)], strict=True))


def _mixed(near: Planes, far: Planes, part: NDArray[np.uint16]) -> Planes:
    """``near (1 - part / 256) + far part / 256``; a part of a pixel for each row or column."""
    if not part.any():
        return np.ascontiguousarray(near)
    values = near.astype(np.uint16)
    values *= _ONE - part
    beyond = far.astype(np.uint16)
    beyond *= part
    values += beyond
    values += _ONE // 2  # at most 255 * 256 + 128: fits
    values >>= 8
    return values.astype(np.uint8)


def _sampled(planes: Planes, warp: Warp) -> Planes:
    """Any map, by looking up each pixel's origin."""
    _, height, width = planes.shape
    back = warp.inverse()
    across, down = _positions(height, width)
    # The sampler counts from -1 to 1 over the image's full width and height.
    grid = torch.empty(1, height, width, 2)
    base_x = torch.add(2 * back.c - 1, across, alpha=2 * back.a)
    base_y = torch.add(2 * back.f - 1, across, alpha=2 * back.d)
    torch.add(base_x, down, alpha=2 * back.b, out=grid[0, :, :, 0])
    torch.add(base_y, down, alpha=2 * back.e, out=grid[0, :, :, 1])
    # Beyond its edge the sampler sees zeros: so grey must be zero.
    values = torch.from_numpy(planes).to(torch.float32)[None].sub_(GREY)
    found = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    result: Planes = found[0].add_(GREY + 0.5).to(torch.uint8).numpy()  # the cast cuts off
    return result


@lru_cache(maxsize=8)
def _positions(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Pixel middles in 0..1: along x (1, W) and along y (H, 1)."""
    across = (torch.arange(width) + 0.5) / width
    down = (torch.arange(height) + 0.5) / height
    return across[None], down[:, None]
