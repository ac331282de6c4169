"""Boxes: conventions, overlap, and the patches that a box touches."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wholegrain import boxes as B

SIZES = st.floats(1, 4000)
UNIT = st.floats(0, 1)


@st.composite
def corner_boxes(draw: st.DrawFn) -> Tensor:
    """Corner boxes (N, 4) in the unit square with sides of at least a thousandth."""
    rows = draw(st.lists(st.tuples(UNIT, UNIT, UNIT, UNIT), min_size=1, max_size=5))
    made = []
    for x1, y1, x2, y2 in rows:
        left, right = sorted((x1, x2))
        top, bottom = sorted((y1, y2))
        made.append([left, top, right + 1e-3, bottom + 1e-3])
    return torch.tensor(made, dtype=torch.float64)


def box(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (B.xyxy_to_xywh, B.xywh_to_xyxy),
        (B.xyxy_to_cxcywh, B.cxcywh_to_xyxy),
        (lambda b: B.xyxy_to_cxcywh(B.xyxy_to_xywh(b)), None),
    ],
)
@settings(max_examples=30, deadline=None)
@given(given_boxes=corner_boxes())
def test_round_trips(
    there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor] | None, given_boxes: Tensor
) -> None:
    made = there(given_boxes)
    assert made.shape == given_boxes.shape
    if back is not None:
        torch.testing.assert_close(back(made), given_boxes, rtol=0, atol=1e-12)


def test_conventions_by_hand() -> None:
    corners = box(10, 20, 40, 80)
    assert B.xyxy_to_xywh(corners).tolist() == [10, 20, 30, 60]
    assert B.xyxy_to_cxcywh(corners).tolist() == [25, 50, 30, 60]
    assert B.xywh_to_xyxy(box(10, 20, 30, 60)).tolist() == corners.tolist()
    assert B.cxcywh_to_xyxy(box(25, 50, 30, 60)).tolist() == corners.tolist()


def test_leading_shape_is_kept() -> None:
    many = torch.rand(2, 3, 5, 4)
    for convert in (B.xywh_to_xyxy, B.xyxy_to_xywh, B.cxcywh_to_xyxy, B.xyxy_to_cxcywh):
        assert convert(many).shape == many.shape
    assert B.iou(many, many).shape == (2, 3, 5)


@settings(max_examples=30, deadline=None)
@given(given_boxes=corner_boxes(), width=SIZES, height=SIZES)
def test_normalise_and_back(given_boxes: Tensor, width: float, height: float) -> None:
    pixels = B.denormalise(given_boxes, width, height)
    torch.testing.assert_close(pixels[:, 2], given_boxes[:, 2] * width)
    torch.testing.assert_close(pixels[:, 3], given_boxes[:, 3] * height)
    torch.testing.assert_close(B.normalise(pixels, width, height), given_boxes)


def test_normalise_takes_a_size_for_each_box() -> None:
    pixels = torch.tensor([[10.0, 10, 20, 20], [10, 10, 20, 20]])
    scaled = B.normalise(pixels, torch.tensor([100.0, 20]), torch.tensor([10.0, 40]))
    assert scaled.tolist() == [[0.1, 1, 0.2, 2], [0.5, 0.25, 1, 0.5]] or torch.allclose(
        scaled, torch.tensor([[0.1, 1, 0.2, 2], [0.5, 0.25, 1, 0.5]])
    )


def test_clip() -> None:
    assert B.clip_xyxy(box(-3, 5, 120, 60), 100, 50).tolist() == [0, 5, 100, 50]
    assert B.clip_xyxy(box(1, 2, 3, 4), 100, 50).tolist() == [1, 2, 3, 4]


def test_overlap_by_hand() -> None:
    a, b = box(0, 0, 4, 2), box(2, 1, 6, 3)
    assert B.area(a).item() == 8
    assert B.intersection(a, b).item() == 2
    assert B.iou(a, b).item() == pytest.approx(2 / 14)
    # Enclosing box 6 x 3 = 18, union 14.
    assert B.generalized_iou(a, b).item() == pytest.approx(2 / 14 - 4 / 18)


def test_generalized_iou_of_boxes_apart() -> None:
    a, b = box(0, 0, 1, 1), box(3, 0, 4, 1)
    assert B.generalized_iou(a, b).item() == pytest.approx(-0.5)
    assert B.iou(a, b).item() == 0


def test_inverted_and_empty_boxes_are_no_nan() -> None:
    empty, inverted, whole = box(1, 1, 1, 1), box(3, 3, 1, 1), box(0, 0, 4, 4)
    assert B.area(inverted).item() == 0
    for a in (empty, inverted, whole):
        for b in (empty, inverted, whole):
            assert math.isfinite(B.iou(a, b).item())
            assert math.isfinite(B.generalized_iou(a, b).item())
    assert B.iou(empty, empty).item() == 0


@settings(max_examples=40, deadline=None)
@given(a=corner_boxes(), b=corner_boxes())
def test_overlap_laws(a: Tensor, b: Tensor) -> None:
    pairs = B.pairwise_iou(a, b)
    assert pairs.shape == (len(a), len(b))
    torch.testing.assert_close(pairs, B.pairwise_iou(b, a).T)
    torch.testing.assert_close(B.iou(a, a), torch.ones(len(a), dtype=a.dtype))
    torch.testing.assert_close(B.generalized_iou(a, a), torch.ones(len(a), dtype=a.dtype))
    general = B.generalized_iou(a[:, None], b[None])
    assert (general <= pairs + 1e-12).all()
    assert (general >= -1).all()


def test_generalized_iou_equals_torchvision() -> None:
    from torchvision.ops import generalized_box_iou

    torch.manual_seed(0)
    a = torch.rand(20, 4).double()
    a = torch.cat([a[:, :2], a[:, :2] + a[:, 2:] + 0.01], 1)
    b = a.flip(0)
    theirs = generalized_box_iou(a, b).diagonal()
    torch.testing.assert_close(B.generalized_iou(a, b), theirs, rtol=0, atol=1e-6)


def test_generalized_iou_pulls_boxes_together() -> None:
    a = box(0, 0, 1, 1).requires_grad_()
    B.generalized_iou(a, box(3, 0, 4, 1)).backward()
    assert a.grad is not None
    assert a.grad[2] > 0, "moving the right side towards the target helps"


def by_prod(a: Tensor, b: Tensor) -> Tensor:
    """GIoU as it is written down, with `prod` over the sides."""

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(dim=-1)

    (a_low, a_high), (b_low, b_high) = ((each[..., :2], each[..., 2:]) for each in (a, b))
    shared = area(torch.maximum(a_low, b_low), torch.minimum(a_high, b_high))
    union = area(a_low, a_high) + area(b_low, b_high) - shared
    hull = area(torch.minimum(a_low, b_low), torch.maximum(a_high, b_high))
    return shared / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)


@pytest.mark.parametrize("kind", ["overlapping", "apart", "empty and inverted"])
def test_generalized_iou_has_the_values_and_gradients_of_prod(kind: str) -> None:
    torch.manual_seed(0)
    corners = B.cxcywh_to_xyxy(torch.rand(500, 4) * 0.1 + 0.4)
    other = corners.flip(0) + (5 * torch.rand(500, 1) if kind == "apart" else 0)
    if kind == "empty and inverted":
        corners = torch.rand(500, 4)
        corners[::5, 2] = corners[::5, 0]
    found, gradients = [], []
    for way in (B.generalized_iou, by_prod):
        a, b = corners.clone().requires_grad_(), other.clone().requires_grad_()
        found.append(way(a, b))
        found[-1].sum().backward()
        gradients.append(torch.cat([a.grad, b.grad]))  # type: ignore[list-item]
    assert torch.equal(*found)
    # `prod` divides the product by a side to have the other, and so rounds it twice.
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_generalized_iou_looks_at_no_value() -> None:
    from torch.profiler import profile

    a = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.4, 0.6]], requires_grad=True)
    looks = []
    for way in (B.generalized_iou, by_prod):
        with profile() as seen:
            way(a, a.detach().flip(0)).sum().backward()
        looks.append([e for e in seen.key_averages() if e.key == "aten::_local_scalar_dense"])
    assert looks[1], "the check notices one"
    assert not looks[0]


def test_merge() -> None:
    merged = B.merge(torch.tensor([[1.0, 5, 3, 7], [0, 6, 2, 9], [2, 5, 4, 6]]))
    assert merged.tolist() == [0, 5, 4, 9]


def published_mask(x: float, y: float, w: float, h: float, side: int, patch: int) -> list[bool]:
    """X-VLM's rule as its specification words it; x, y, w, h in pixels of a square image."""
    grid = side // patch

    def span(start: float, length: float) -> range:
        first = min(math.floor(start / patch), grid - 1)
        stop = min(max(math.ceil((start + length) / patch), first + 1), grid)
        return range(first, stop)

    columns, rows = span(x, w), span(y, h)
    return [row in rows and column in columns for row in range(grid) for column in range(grid)]


@settings(max_examples=150, deadline=None)
@given(x=st.integers(0, 223), y=st.integers(0, 223), w=st.integers(1, 224), h=st.integers(1, 224))
def test_box_mask_is_the_published_rule(x: int, y: int, w: int, h: int) -> None:
    w, h = min(w, 224 - x), min(h, 224 - y)
    centre = B.xyxy_to_cxcywh(torch.tensor([[x, y, x + w, y + h]]).float() / 224)
    for patch in (32, 16):
        grid = 224 // patch
        mask = B.box_mask(centre, (grid, grid))
        assert mask.tolist() == [published_mask(x, y, w, h, 224, patch)]


def test_box_mask_of_borders() -> None:
    centre = B.xyxy_to_cxcywh(torch.tensor([[0.25, 0.5, 0.5, 1.0]]))
    mask = B.box_mask(centre, (4, 4)).view(4, 4)
    assert mask.int().tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]


def test_box_mask_of_everything_and_of_nothing() -> None:
    whole = torch.tensor([[0.5, 0.5, 1, 1]])
    assert B.box_mask(whole, (3, 5)).all()
    points = torch.tensor([[0.0, 0, 0, 0], [1, 1, 0, 0], [0.5, 0.5, 0, 0]])
    assert B.box_mask(points, (3, 5)).sum(dim=1).tolist() == [1, 1, 1]
    outside = torch.tensor([[1.5, -0.5, 0.1, 0.1]])
    assert B.box_mask(outside, (3, 5)).sum().item() == 1


def test_box_mask_is_row_major_on_unequal_grids() -> None:
    top_right = B.xyxy_to_cxcywh(torch.tensor([[0.8, 0.0, 1.0, 0.3]]))
    assert B.box_mask(top_right, (2, 5))[0].nonzero().flatten().tolist() == [4]


class FromLists(TorchFunctionMode):
    """Notes tensors that are made of Python lists, which on a GPU make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_box_mask_copies_nothing_to_its_device() -> None:
    boxes = torch.rand(5, 4)
    with FromLists() as made:
        B.box_mask(boxes, (3, 5))
    assert made.found == []
    with FromLists() as made:
        boxes.new_tensor([1, 2])
        torch.tensor([1, 2])
    assert made.found == ["new_tensor", "tensor"], "the check notices both"


def by_tables(boxes: Tensor, rows: int, columns: int) -> Tensor:
    """X-VLM's rule for both directions at once, with the limits in tensors."""
    edges = B.cxcywh_to_xyxy(boxes) * boxes.new_tensor([columns, rows, columns, rows])
    first = torch.floor(edges[:, :2] + 1e-3).long().clamp(min=0)
    first = torch.minimum(first, torch.tensor([columns - 1, rows - 1]))
    last = torch.maximum(torch.ceil(edges[:, 2:] - 1e-3).long(), first + 1)
    column, row = torch.arange(columns), torch.arange(rows)
    in_column = (column >= first[:, :1]) & (column < last[:, :1])
    in_row = (row >= first[:, 1:]) & (row < last[:, 1:])
    return (in_row[:, :, None] & in_column[:, None, :]).flatten(1)


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (3, 5), (1, 1), (24, 37)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_box_mask_equals_that_of_tables(grid: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    anywhere = torch.rand(2000, 4) * 2 - 0.5
    on_borders = torch.randint(0, 29, (2000, 4)) / 28
    boxes = torch.cat([anywhere, on_borders]).to(dtype)
    assert torch.equal(B.box_mask(boxes, grid), by_tables(boxes, *grid))
    assert B.box_mask(boxes[:0], grid).shape == (0, grid[0] * grid[1])
