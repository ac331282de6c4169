"""Position tables of an image encoder for another image size.

A Swin's relative position biases grow by the geometric-grid rule (BEiT's, which X-VLM uses): the
old offsets are laid on a grid 0, ±1, ±(1 + q), ±(1 + q + q²), ... that just reaches the new
table's edge, so near offsets keep their biases and far ones are stretched, and a bicubic spline
through them is read at the new table's whole offsets. A plain transformer's absolute positions
are interpolated bicubically.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from wholegrain.errors import CheckpointError

# The published bracket and tolerance of the search for q: another search would give the same
# tables only to about 1e-5.
_SMALLEST, _LARGEST, _TOLERANCE = 1.01, 1.5, 1e-6
_REACHED = 0.02  # how far from the edge a grid may end whose q is right to the tolerance


def geometric_ratio(source: int, target: int) -> float:
    """The q with ``1 + q + ... + q^(n-1) = target // 2``, where n is ``source // 2``.

    Args:
        source, target: sides of the smaller and of the larger table (2 window - 1).

    Raises:
        CheckpointError: no q up to 1.5 stretches the one to the other.
    """
    count, reach = source // 2, target // 2
    ratio = _bisect(count, reach, _SMALLEST, _LARGEST)
    if _reach(ratio, count) - reach > _REACHED:
        # Slightly larger windows need a smaller q than the published bracket holds, where the
        # published search stops and silently drops the table's edge.
        ratio = _bisect(count, reach, 1.0, _SMALLEST)
    if abs(_reach(ratio, count) - reach) > _REACHED:
        limit = int(_reach(_LARGEST, count) + _TOLERANCE)
        raise CheckpointError(
            f"a relative position table of side {source} cannot be stretched to {target}: the "
            f"geometric rule ends at {2 * limit + 1}, a window of {limit + 1}; choose an image "
            "size nearer to the file's own"
        )
    return ratio


def resize_bias_table(table: Tensor, side: int) -> Tensor:
    """A relative position bias table (S², heads) for another window: (side², heads).

    Growing is X-VLM's rule. Shrinking is its inverse, which X-VLM does not have (there the search
    for q ends at its bracket, and the table is cropped): the old table is read at the places that
    growing would have moved the new table's offsets to, so that growing and shrinking again
    gives the same table but for what a spline loses.

    Raises:
        CheckpointError: the table is not square, or the sizes are too far apart.
    """
    source = math.isqrt(len(table))
    if source**2 != len(table) or source % 2 == 0 or side % 2 == 0:
        raise CheckpointError(
            f"a relative position table has {len(table)} rows for {side**2}; both must be the "
            "square of an odd number (2 window - 1)"
        )
    if side == source:
        return table
    if side > source:
        grid = _geometric_grid(source, side)
        weights = spline_matrix(grid, _offsets(side))
    else:
        grid = _offsets(source)
        weights = spline_matrix(grid, _geometric_grid(side, source))
    square = table.double().view(source, source, -1)
    resized = torch.einsum("ts,uv,svh->tuh", weights, weights, square)
    return resized.reshape(side**2, -1).to(table.dtype)


def resize_positions(positions: Tensor, side: int) -> Tensor:
    """Absolute positions (1, 1 + S², D) for a grid of `side`²; the class token's stays as it is.

    Raises:
        CheckpointError: the grid is not square.
    """
    source = math.isqrt(positions.shape[1] - 1)
    if source**2 != positions.shape[1] - 1:
        raise CheckpointError(
            f"{positions.shape[1]} positions are not a class token and a square grid; only such "
            "tables can be resized"
        )
    if side == source:
        return positions
    grid = positions[:, 1:].unflatten(1, (source, source)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def spline_matrix(knots: Tensor, places: Tensor) -> Tensor:
    """What an interpolating cubic spline makes of its values, as a matrix.

    The spline is the not-a-knot one (FITPACK's with no smoothing); with fewer than four knots its
    degree is that of the polynomial through them.

    Args:
        knots: (N,) increasing, two or more, where the values are given.
        places: (M,) where the spline is read; those outside are moved to the nearest end.

    Returns:
        (M, N), float64: times values (N,) at the knots gives the values at the places.
    """
    knots = knots.double()
    places = places.double().clamp(knots[0], knots[-1])
    degree = min(3, len(knots) - 1)
    first, last = knots[:1].expand(degree + 1), knots[-1:].expand(degree + 1)
    inner = knots[2:-2] if degree == 3 else knots[:0]
    breaks = torch.cat([first, inner, last])
    at_knots, at_places = (_basis(breaks, degree, each) for each in (knots, places))
    return torch.linalg.solve(at_knots, at_places, left=False)


def _basis(breaks: Tensor, degree: int, places: Tensor) -> Tensor:
    """(M, N) values of the N B-splines of `degree` on `breaks`, by Cox and de Boor's recursion."""
    x = places[:, None]
    # The last interval that is not empty holds its right end as well.
    inside = torch.where(x < breaks[-1], x, torch.nextafter(breaks[-1], breaks[0]))
    basis = ((breaks[:-1] <= inside) & (inside < breaks[1:])).double()
    for order in range(1, degree + 1):
        spans = breaks[order:] - breaks[:-order]
        # An empty span's function is zero; the one keeps 0 / 0 out.
        spans = torch.where(spans > 0, spans, 1.0)
        rising = (x - breaks[: -order - 1]) / spans[:-1] * basis[:, :-1]
        falling = (breaks[order + 1 :] - x) / spans[1:] * basis[:, 1:]
        basis = rising + falling
    return basis


def _geometric_grid(source: int, target: int) -> Tensor:
    """(source,) places of the smaller table's offsets among the larger's, centred on 0."""
    ratio = geometric_ratio(source, target)
    steps = torch.tensor([ratio**power for power in range(source // 2)], dtype=torch.float64)
    right = steps.cumsum(0)
    return torch.cat([-right.flip(0), torch.zeros(1, dtype=torch.float64), right])


def _offsets(side: int) -> Tensor:
    return torch.arange(-(side // 2), side // 2 + 1, dtype=torch.float64)


def _bisect(count: int, reach: int, low: float, high: float) -> float:
    ratio = low
    while high - low > _TOLERANCE:
        ratio = (low + high) / 2
        if _reach(ratio, count) > reach:
            high = ratio
        else:
            low = ratio
    return ratio


def _reach(ratio: float, count: int) -> float:
    return sum(ratio**power for power in range(count))
