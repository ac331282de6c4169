"""Box regression: L1 on cxcywh plus generalized IoU on corners."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from wholegrain.boxes import cxcywh_to_xyxy, generalized_iou, iou


class BoxLosses(NamedTuple):
    """Per-box terms, so that a schedule of easy and hard boxes can weigh them."""

    l1: Tensor
    """(...,) sum of the absolute differences of the four numbers."""
    giou: Tensor
    """(...,) ``1 - GIoU``, in [0, 2]."""


def box_losses(predicted: Tensor, target: Tensor) -> BoxLosses:
    """X-VLM 2.5.

    Args:
        predicted, target: (..., 4) cxcywh in the unit square; they broadcast.
    """
    predicted, target = predicted.float(), target.float()
    l1 = (predicted - target).abs().sum(dim=-1)
    giou = 1 - generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target))
    return BoxLosses(l1, giou)


class ProposalLosses(NamedTuple):
    """Per-box terms of proposals and votes."""

    l1: Tensor
    """(T,) L1 of the responsible patches' proposals."""
    giou: Tensor
    """(T,) their ``1 - GIoU``."""
    vote: Tensor
    """(T,) cross entropy of the votes."""


def proposal_losses(
    proposals: Tensor, votes: Tensor, target: Tensor, centres: Tensor
) -> ProposalLosses:
    """Losses of patches that each propose a box and vote for themselves.

    The patches near the target's centre are responsible for it (`responsibility`): their proposals
    are compared with the target, and the votes with the responsibility.

    Args:
        proposals: (T, P, 4) cxcywh in the unit square.
        votes: (T, P) log-probabilities over patches.
        target: (T, 4) cxcywh.
        centres: (P, 2) x, y of the patches.
    """
    share = responsibility(target, centres)
    terms = box_losses(proposals, target[:, None])
    return ProposalLosses(
        l1=(share * terms.l1).sum(dim=1),
        giou=(share * terms.giou).sum(dim=1),
        vote=-(share * votes).sum(dim=1),
    )


class Prediction(Protocol):
    """What a box head says of T texts (`wholegrain.model.grounding.box_head.BoxPrediction`)."""

    @property
    def boxes(self) -> Tensor: ...

    @property
    def votes(self) -> Tensor | None: ...

    @property
    def proposals(self) -> Tensor | None: ...

    @property
    def quality(self) -> Tensor | None: ...

    @property
    def by_scale(self) -> tuple[Prediction, ...]: ...


def grounding_losses(
    prediction: Prediction, target: Tensor, centres: Tensor | None
) -> dict[str, Tensor]:
    """The per-box terms that suit a head: ``l1``, ``giou``, ``vote`` where patches vote, and
    ``quality`` where the head tells the IoU that it expects.

    Args:
        prediction: of the head.
        target: (T, 4) cxcywh in the unit square.
        centres: (P, 2) of the patches that vote; None where none do.

    Returns:
        (T,) each; (T, S) where the prediction has S scales, each of which is learnt.
    """
    if prediction.by_scale:
        scales = [grounding_losses(scale, target, centres) for scale in prediction.by_scale]
        return {name: torch.stack([terms[name] for terms in scales], 1) for name in scales[0]}
    if prediction.proposals is None or prediction.votes is None or centres is None:
        terms = box_losses(prediction.boxes, target)._asdict()
    else:
        votes = prediction.votes
        terms = proposal_losses(prediction.proposals, votes, target, centres)._asdict()
    if prediction.quality is not None:
        boxes = cxcywh_to_xyxy(prediction.boxes.detach().float())
        overlap = iou(boxes, cxcywh_to_xyxy(target.float()))
        terms["quality"] = F.binary_cross_entropy_with_logits(
            prediction.quality.float(), overlap, reduction="none"
        )
    return terms


def over_scales(term: Tensor) -> Tensor:
    """(T,) of a term (T,) or, summed over scales, (T, S)."""
    return term if term.ndim == 1 else term.sum(dim=1)


def responsibility(target: Tensor, centres: Tensor) -> Tensor:
    """How much each patch answers for a box: (T, P), each row sums to 1.

    It falls off from the box's centre like a Gaussian whose deviation is a sixth of the box's
    sides, so that almost all of it lies inside.

    Args:
        target: (T, 4) cxcywh in the unit square.
        centres: (P, 2) x, y of the patches.
    """
    # Half a patch at least: a box smaller than a patch still needs one patch to answer.
    spread = (target[:, None, 2:] / 6).clamp(min=0.5 / len(centres) ** 0.5)
    distance = (centres[None] - target[:, None, :2]) / spread
    return (-0.5 * distance.square().sum(dim=-1)).softmax(dim=-1)
