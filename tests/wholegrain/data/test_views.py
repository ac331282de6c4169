from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wholegrain import boxes as box_ops
from wholegrain.data.augment import Augment, AugmentConfig
from wholegrain.data.geometry import Warp, rotation, shear_x, shear_y, shift
from wholegrain.data.views import View

WARPS = (shear_x(0.2), shear_y(-0.15), shift(0.1, -0.2), rotation(20), rotation(-30))


def _augment(**fields: Any) -> Augment:
    return Augment(AugmentConfig(**{"resolution": 96, "colour": 0.0, **fields}))


def test_a_box_cut_by_the_view_is_clipped_and_its_share_told() -> None:
    view = View(50, 0, 100, 100)
    boxes = [(40.0, 10.0, 60.0, 50.0), (0.0, 0.0, 20.0, 20.0), (60.0, 20.0, 80.0, 40.0)]
    placed, shares = view.place(boxes)
    assert shares == pytest.approx([0.5, 0, 1])
    assert placed[0] == pytest.approx((0.05, 0.3, 0.1, 0.4))
    mirrored, _ = View(50, 0, 100, 100, flipped=True).place(boxes)
    assert mirrored[0] == pytest.approx((0.95, 0.3, 0.1, 0.4))
    assert view.place([]) == ([], [])


def _placed_by_tensors(view: View, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`View.place` without warps, through `wholegrain.boxes`."""
    corner = boxes.new_tensor([view.left, view.top, view.left, view.top])
    unit = box_ops.normalise(boxes - corner, view.width, view.height)
    clipped = unit.clamp(0, 1)
    share = box_ops.area(clipped) / box_ops.area(unit).clamp(min=1e-12)
    placed = box_ops.xyxy_to_cxcywh(clipped)
    if view.flipped:
        placed[:, 0] = 1 - placed[:, 0]
    return placed, share


NUMBER = st.floats(-50, 250)
SIDE = st.floats(0.5, 200)


@settings(deadline=None, max_examples=150)
@given(
    boxes=st.lists(st.tuples(NUMBER, NUMBER, SIDE, SIDE), min_size=1, max_size=6),
    frame=st.tuples(NUMBER, NUMBER, SIDE, SIDE),
    flipped=st.booleans(),
)
def test_places_are_those_of_the_slow_reference(
    boxes: list[tuple[float, ...]], frame: tuple[float, ...], flipped: bool
) -> None:
    corners = [(x, y, x + w, y + h) for x, y, w, h in boxes]
    view = View(*frame, flipped)
    placed, shares = view.place(corners)
    wanted, share = _placed_by_tensors(view, torch.tensor(corners, dtype=torch.float64))
    assert torch.allclose(torch.tensor(placed, dtype=torch.float64), wanted, atol=1e-9)
    assert torch.allclose(torch.tensor(shares, dtype=torch.float64), share, atol=1e-9)
    # A move of nothing goes the long way round, to the same place.
    still = View(*frame, flipped, (shift(0, 0),))
    found, seen = still.place(corners)
    assert seen == pytest.approx(shares, abs=1e-9)
    for row, share_of in enumerate(shares):
        if share_of > 1e-6:
            assert found[row] == pytest.approx(placed[row], abs=1e-9)


@settings(deadline=None, max_examples=150)
@given(
    boxes=st.lists(st.tuples(NUMBER, NUMBER, SIDE, SIDE), min_size=1, max_size=4),
    frame=st.tuples(NUMBER, NUMBER, SIDE, SIDE),
    flipped=st.booleans(),
    warps=st.lists(st.sampled_from(WARPS), max_size=3),
)
def test_boxes_end_inside_the_view_and_shares_between_0_and_1(
    boxes: list[tuple[float, ...]],
    frame: tuple[float, ...],
    flipped: bool,
    warps: list[Warp],
) -> None:
    corners = [(x, y, x + w, y + h) for x, y, w, h in boxes]
    placed, shares = View(*frame, flipped, tuple(warps)).place(corners)
    for (x, y, width, height), share in zip(placed, shares, strict=True):
        assert -1e-9 <= share <= 1 + 1e-9
        assert width >= 0 and height >= 0
        assert x - width / 2 >= -1e-9 and x + width / 2 <= 1 + 1e-9
        assert y - height / 2 >= -1e-9 and y + height / 2 <= 1 + 1e-9


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
