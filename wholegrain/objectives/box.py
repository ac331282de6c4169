"""Box regression: L1 on cxcywh plus generalized IoU on corners."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from wholegrain.boxes import cxcywh_to_xyxy, generalized_iou


class BoxLosses(NamedTuple):
    """Per-box terms, so that a schedule of easy and hard boxes can weigh them."""

    l1: Tensor
    """(T,) sum of the absolute differences of the four numbers."""
    giou: Tensor
    """(T,) ``1 - GIoU``, in [0, 2]."""


def box_losses(predicted: Tensor, target: Tensor) -> BoxLosses:
    """X-VLM 2.5.

    Args:
        predicted, target: (T, 4) cxcywh in the unit square.
    """
    predicted, target = predicted.float(), target.float()
    l1 = F.l1_loss(predicted, target, reduction="none").sum(dim=-1)
    giou = 1 - generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target))
    return BoxLosses(l1, giou)


def vote_loss(votes: Tensor, target: Tensor, centres: Tensor) -> Tensor:
    """Which patches should answer: those inside the box, the middle ones most.

    The cross entropy of the votes against a distribution over patches that falls off from the
    centre of the target like a Gaussian whose deviation is a quarter of the box's sides.

    Args:
        votes: (T, P) log-probabilities.
        target: (T, 4) cxcywh in the unit square.
        centres: (P, 2) x, y of the patches.

    Returns:
        (T,) losses.
    """
    # Half a patch at least: a box smaller than a patch still needs one patch to answer.
    spread = (target[:, None, 2:] / 4).clamp(min=0.5 / votes.shape[1] ** 0.5)
    distance = (centres[None] - target[:, None, :2]) / spread
    wanted = (-0.5 * distance.square().sum(dim=-1)).softmax(dim=-1)
    return -(wanted * votes).sum(dim=-1)
