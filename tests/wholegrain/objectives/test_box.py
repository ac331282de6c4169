"""Box losses against torchvision's, and the losses of patches that propose and vote."""

import pytest
import torch
from torch import Tensor

from wholegrain.boxes import cxcywh_to_xyxy, iou
from wholegrain.model.grounding.box_head import BoxPrediction
from wholegrain.objectives.box import (
    box_losses,
    grounding_losses,
    proposal_losses,
    responsibility,
)


def boxes(count: int, seed: int) -> Tensor:
    """Boxes (count, 4) cxcywh with sides of at least 0.05."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(count, 4, generator=generator)
    return torch.cat([numbers[:, :2], 0.05 + 0.5 * numbers[:, 2:]], 1)


SIDE = 8
STEPS = (torch.arange(SIDE) + 0.5) / SIDE
CENTRES = torch.stack(torch.meshgrid(STEPS, STEPS, indexing="xy"), -1).flatten(0, 1)


def test_box_losses_equal_torchvision() -> None:
    from torchvision.ops import generalized_box_iou_loss

    ours = [boxes(30, 0).requires_grad_(), boxes(30, 0).requires_grad_()]
    target = boxes(30, 1)
    losses = box_losses(ours[0], target)
    expected = generalized_box_iou_loss(cxcywh_to_xyxy(ours[1]), cxcywh_to_xyxy(target))
    torch.testing.assert_close(losses.giou, expected, rtol=0, atol=1e-5)
    losses.giou.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours[0].grad, ours[1].grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(losses.l1, (ours[0] - target).abs().sum(1))


def test_a_right_box_costs_nothing() -> None:
    losses = box_losses(boxes(5, 0), boxes(5, 0))
    assert losses.l1.abs().max() == 0
    assert losses.giou.abs().max() < 1e-6


def test_half_precision_is_raised() -> None:
    losses = box_losses(boxes(5, 0).half(), boxes(5, 1))
    assert losses.giou.dtype == losses.l1.dtype == torch.float32


def test_no_boxes() -> None:
    assert box_losses(boxes(0, 0), boxes(0, 0)).giou.sum() == 0


def test_responsibility_is_a_distribution_around_the_centre() -> None:
    target = torch.tensor([[0.3125, 0.6875, 0.5, 0.25], [0.5, 0.5, 1, 1]])
    share = responsibility(target, CENTRES)
    assert share.shape == (2, 64)
    torch.testing.assert_close(share.sum(1), torch.ones(2))
    best = CENTRES[share[0].argmax()]
    assert best.tolist() == pytest.approx([0.3125, 0.6875]), "the patch at the centre"
    distance = (CENTRES - target[0, :2]) / target[0, 2:]
    inside = (distance.abs() <= 0.5).all(1)
    assert share[0, inside].sum() > 0.9
    assert share[1].max() < share[0].max(), "a larger box has more patches that answer"


def test_a_box_below_a_patch_still_has_a_patch() -> None:
    share = responsibility(torch.tensor([[0.07, 0.05, 1e-4, 1e-4]]), CENTRES)
    assert torch.isfinite(share).all()
    assert share[0].argmax() == 0
    assert share[0, 0] > 0.5


def test_votes_are_best_where_they_equal_the_responsibility() -> None:
    target, proposals = boxes(3, 0), boxes(64, 1).expand(3, -1, -1)
    share = responsibility(target, CENTRES)
    best = proposal_losses(proposals, share.log().clamp(min=-80), target, CENTRES).vote
    entropy = -torch.special.xlogy(share, share).sum(1)
    torch.testing.assert_close(best, entropy, rtol=1e-4, atol=1e-4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        votes = torch.randn(3, 64, generator=generator).log_softmax(1)
        assert (proposal_losses(proposals, votes, target, CENTRES).vote > best).all()


def test_votes_are_pulled_to_the_responsible_patches() -> None:
    target = torch.tensor([[0.3125, 0.3125, 0.4, 0.4]])
    scores = torch.zeros(1, 64, requires_grad=True)
    proposals = boxes(64, 1)[None]
    proposal_losses(proposals, scores.log_softmax(1), target, CENTRES).vote.sum().backward()
    share = responsibility(target, CENTRES)
    torch.testing.assert_close(scores.grad, 1 / 64 - share, rtol=1e-4, atol=1e-6)


def test_proposals_count_by_their_responsibility() -> None:
    target = boxes(2, 3)
    right = target[:, None].expand(-1, 64, -1)
    votes = torch.zeros(2, 64).log_softmax(1)
    assert proposal_losses(right, votes, target, CENTRES).l1.abs().max() < 1e-6
    wrong = right.clone()
    share = responsibility(target, CENTRES)
    least = share.argmin(1)
    wrong[range(2), least] += 1
    cost = proposal_losses(wrong, votes, target, CENTRES).l1
    torch.testing.assert_close(cost, 4 * share[range(2), least])


def test_losses_suit_the_head() -> None:
    target = boxes(2, 0)
    plain = BoxPrediction(boxes(2, 1), None, None, None)
    assert set(grounding_losses(plain, target, None)) == {"l1", "giou"}
    votes = torch.zeros(2, 64).log_softmax(1)
    voting = BoxPrediction(boxes(2, 1), votes, boxes(64, 1).expand(2, -1, -1), None)
    assert set(grounding_losses(voting, target, CENTRES)) == {"l1", "giou", "vote"}


def test_the_expected_iou_is_learnt_by_cross_entropy() -> None:
    answers, target = boxes(6, 0).requires_grad_(), boxes(6, 1)
    logits = torch.randn(6, requires_grad=True)
    prediction = BoxPrediction(answers, None, None, logits.sigmoid(), logits)
    terms = grounding_losses(prediction, target, None)
    assert list(terms) == ["l1", "giou", "quality"]
    overlap = iou(cxcywh_to_xyxy(answers), cxcywh_to_xyxy(target)).detach()
    chance = logits.sigmoid()
    expected = -(overlap * chance.log() + (1 - overlap) * (1 - chance).log())
    torch.testing.assert_close(terms["quality"], expected)
    terms["quality"].sum().backward()
    assert answers.grad is None
    torch.testing.assert_close(logits.grad, (chance - overlap).detach())


def test_every_scale_is_learnt() -> None:
    target = boxes(5, 1)
    scales = tuple(BoxPrediction(boxes(5, 2 + s), None, None, None) for s in range(3))
    prediction = scales[-1]._replace(by_scale=scales)
    terms = grounding_losses(prediction, target, None)
    assert terms["l1"].shape == terms["giou"].shape == (5, 3)
    for number, scale in enumerate(scales):
        assert torch.equal(terms["l1"][:, number], box_losses(scale.boxes, target).l1)
