from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from wholegrain.data.geometry import (
    Warp,
    clip,
    polygon_area,
    rotation,
    seen_after,
    shear_x,
    shear_y,
    shift,
)

UNIT = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
WARPS = st.one_of(
    st.floats(-0.3, 0.3).map(shear_x),
    st.floats(-0.3, 0.3).map(shear_y),
    st.tuples(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4)).map(lambda by: shift(*by)),
    st.floats(-40, 40).map(rotation),
)
SPAN = st.tuples(st.floats(-0.3, 1.3), st.floats(0.02, 1)).map(lambda s: (s[0], s[0] + s[1]))
BOXES = st.tuples(SPAN, SPAN).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1]))


@given(WARPS, st.floats(-1, 2), st.floats(-1, 2))
def test_the_inverse_leads_back(warp: Warp, x: float, y: float) -> None:
    assert warp.inverse().point(*warp.point(x, y)) == pytest.approx((x, y), abs=1e-9)
    assert warp.growth == pytest.approx(polygon_area([warp.point(*corner) for corner in UNIT]))


def test_clipping() -> None:
    assert clip(UNIT) == UNIT
    assert clip([(2, 2), (3, 2), (3, 3)]) == []
    assert polygon_area(clip([(-1, -1), (2, -1), (2, 2), (-1, 2)])) == pytest.approx(1)
    # A square on its corner loses four triangles: 2 - 4 * 0.25 where its half diagonal is 1.
    diamond = [(0.5, -0.5), (1.5, 0.5), (0.5, 1.5), (-0.5, 0.5)]
    assert polygon_area(clip(diamond)) == pytest.approx(1)
    assert polygon_area([]) == 0


@settings(deadline=None, max_examples=200)
@given(BOXES, st.lists(WARPS, max_size=3))
def test_what_is_seen_lies_inside_and_is_a_share(
    box: tuple[float, float, float, float], warps: list[Warp]
) -> None:
    (left, top, right, bottom), share = seen_after(box, warps)
    assert 0 <= left <= right <= 1 and 0 <= top <= bottom <= 1
    assert -1e-9 <= share <= 1 + 1e-9
    more = seen_after(box, [*warps, shift(0.1, 0)])[1]
    assert more <= share + 1e-9  # what is gone never comes back


@settings(deadline=None, max_examples=40)
@given(BOXES, st.lists(WARPS, min_size=1, max_size=2))
def test_shares_are_those_of_painted_pixels(
    box: tuple[float, float, float, float], warps: list[Warp]
) -> None:
    """Counted on a fine picture of the box, moved by looking up each pixel's origin."""
    size = 400
    pixels = np.zeros((size, size), bool)
    picture = Image.new("1", (size, size))
    corners = [value * size for value in box]
    ImageDraw.Draw(picture).rectangle([corners[0], corners[1], corners[2] - 1, corners[3] - 1], 1)
    pixels = np.asarray(picture).copy()
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    whole = (box[2] - box[0]) * (box[3] - box[1])
    for warp in warps:
        back = warp.inverse()
        from_x, from_y = back.point(x, y)  # type: ignore[arg-type]
        inside = (from_x >= 0) & (from_x < 1) & (from_y >= 0) & (from_y < 1)
        rows = np.clip((from_y * size).astype(int), 0, size - 1)
        columns = np.clip((from_x * size).astype(int), 0, size - 1)
        pixels = pixels[rows, columns] & inside
        whole *= warp.growth
    (left, top, right, bottom), share = seen_after(box, warps)
    perimeter = 2 * (box[2] - box[0] + box[3] - box[1])
    assert abs(pixels.mean() - share * whole) <= 3 * (perimeter + 0.1) / size
    if pixels.sum() > 200:
        rows, columns = np.nonzero(pixels.any(1))[0], np.nonzero(pixels.any(0))[0]
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / size
        # A pointed corner may be thinner than a pixel for a good part of its length.
        assert abs(found - [left, top, right, bottom]).max() <= 12 / size
