"""Boxes: the one place where their conventions meet.

Records hold absolute pixels as top-left ``xywh``; the model works in ``cxcywh`` of the unit square;
the public interface speaks ``xyxy`` pixels. All functions take float tensors (..., 4) and keep the
leading shape; nothing is rounded and nothing is clamped unless the name says so.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-9  # keeps the ratio of two empty boxes at 0 instead of NaN


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Top-left, width, height (..., 4) to two corners (..., 4), same units."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Two corners (..., 4) to top-left, width, height (..., 4), same units."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre, width, height (..., 4) to two corners (..., 4), same units."""
    half = boxes[..., 2:] * 0.5
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Two corners (..., 4) to centre, width, height (..., 4), same units."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) * 0.5, high - low], dim=-1)


def _scale(boxes: Tensor, width: Tensor | float, height: Tensor | float) -> Tensor:
    x = torch.as_tensor(width, dtype=boxes.dtype, device=boxes.device)
    y = torch.as_tensor(height, dtype=boxes.dtype, device=boxes.device)
    x, y = torch.broadcast_tensors(x, y)
    return torch.stack([x, y, x, y], dim=-1)


def normalise(boxes: Tensor, width: Tensor | float, height: Tensor | float) -> Tensor:
    """Pixels to fractions of the image; any of the three conventions.

    Args:
        boxes: (..., 4) in pixels.
        width, height: of the image in pixels; numbers, or tensors that broadcast over (...).
    """
    return boxes / _scale(boxes, width, height)


def denormalise(boxes: Tensor, width: Tensor | float, height: Tensor | float) -> Tensor:
    """Fractions of the image to pixels; the inverse of `normalise`."""
    return boxes * _scale(boxes, width, height)


def clip_xyxy(boxes: Tensor, width: Tensor | float, height: Tensor | float) -> Tensor:
    """Corners moved into [0, width] x [0, height]."""
    limit = _scale(boxes, width, height)
    return torch.minimum(boxes.clamp(min=0), limit)


def _product(sides: Tensor) -> Tensor:
    """Width times height (...,) of (..., 2).

    Not `prod`, whose gradient looks for zeros and so makes the host wait for the device.
    """
    width, height = sides.unbind(dim=-1)
    return width * height


def area(boxes: Tensor) -> Tensor:
    """Area (...,) of corner boxes; an inverted box has area 0."""
    return _product((boxes[..., 2:] - boxes[..., :2]).clamp(min=0))


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Area (...,) that two corner boxes share; broadcasts."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    return _product((high - low).clamp(min=0))


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (...,) of corner boxes, element by element; broadcasts."""
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    return shared / union.clamp(min=_TINY)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (N, M) of corner boxes a (N, 4) and b (M, 4)."""
    return iou(a[:, None], b[None])


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU (...,) in [-1, 1] of corner boxes: IoU - |E minus union| / |E|, E the enclosing box.

    Rezatofighi et al. 2019, equation 1. Broadcasts; differentiable.
    """
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    low = torch.minimum(a[..., :2], b[..., :2])
    high = torch.maximum(a[..., 2:], b[..., 2:])
    hull = _product((high - low).clamp(min=0))
    return shared / union.clamp(min=_TINY) - (hull - union) / hull.clamp(min=_TINY)


def merge(boxes: Tensor) -> Tensor:
    """The smallest corner box (4,) that encloses corner boxes (N, 4), N >= 1."""
    return torch.cat([boxes[:, :2].amin(dim=0), boxes[:, 2:].amax(dim=0)])


def box_mask(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which patches a box touches; at least one.

    X-VLM's rule: columns floor(x1 * w) to ceil(x2 * w) - 1 and rows likewise, the start kept below
    the grid's end and the end above the start.

    Args:
        boxes: (C, 4) cxcywh in the unit square.
        grid: (rows, columns) of the patch grid.

    Returns:
        bool (C, rows * columns), row-major.
    """
    rows, columns = grid
    left, top, right, bottom = cxcywh_to_xyxy(boxes).unbind(dim=-1)
    in_column, in_row = _touched(left, right, columns), _touched(top, bottom, rows)
    return (in_row[:, :, None] & in_column[:, None, :]).flatten(1)


def _touched(low: Tensor, high: Tensor, count: int) -> Tensor:
    """Which of `count` places in a row each span (C,) of the unit length touches: bool (C, count).

    Limits are numbers of the host: a tensor made of them on a GPU would make the host wait.
    """
    # A box edge that lies on a patch border must not spill over by a rounding error of the unit
    # conversion, so the edges are compared at a thousandth of a patch.
    first = torch.floor(low * count + 1e-3).long().clamp(min=0, max=count - 1)
    last = torch.maximum(torch.ceil(high * count - 1e-3).long(), first + 1)
    place = torch.arange(count, device=low.device)
    return (place >= first[:, None]) & (place < last[:, None])
