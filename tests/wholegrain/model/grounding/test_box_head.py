"""Box heads: what a box is read from, and what a head says of it."""

import pytest
import torch

from wholegrain.boxes import cxcywh_to_xyxy
from wholegrain.errors import ConfigError
from wholegrain.model.config import ClsBoxHead, MlpBoxHead, PatchBoxHead
from wholegrain.model.grounding.box_head import (
    MlpHead,
    PatchHead,
    ScaleHeads,
    build_box_head,
    consensus,
)

GRID = (3, 4)


@pytest.fixture
def head() -> PatchHead:
    torch.manual_seed(0)
    made = build_box_head(PatchBoxHead(width=8), 6, 5, GRID)
    assert isinstance(made, PatchHead)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


CLS, PATCHES = torch.randn(4, 6), torch.randn(2, 12, 5)
IMAGE = torch.tensor([0, 1, 1, 0])


def test_cls_head_is_a_sigmoid_of_the_fused_vector() -> None:
    head = build_box_head(ClsBoxHead(), 6, 5, GRID)
    prediction = head(CLS, PATCHES, IMAGE)
    assert torch.equal(prediction.boxes, head.mlp(CLS).sigmoid())
    assert prediction.votes is prediction.proposals is prediction.confidence is None


@pytest.mark.parametrize("training", [True, False])
def test_patch_head_answers_with_one_of_its_proposals(head: PatchHead, training: bool) -> None:
    prediction = head.train(training)(CLS, PATCHES, IMAGE)
    assert prediction.boxes.shape == (4, 4)
    assert prediction.votes.shape == (4, 12)
    assert prediction.proposals.shape == (4, 12, 4)
    torch.testing.assert_close(prediction.votes.exp().sum(1), torch.ones(4))
    matches = (prediction.proposals == prediction.boxes[:, None]).all(-1)
    assert matches.any(1).all()
    if training:
        assert matches[range(4), prediction.votes.argmax(1)].all()


def test_proposals_surround_their_patch(head: PatchHead) -> None:
    corners = cxcywh_to_xyxy(head(CLS, PATCHES, IMAGE).proposals)
    assert (corners[..., :2] < head.centres).all()
    assert (corners[..., 2:] > head.centres).all()


def test_centres_are_row_major(head: PatchHead) -> None:
    assert head.centres[0].tolist() == pytest.approx([1 / 8, 1 / 6])
    assert head.centres[3].tolist() == pytest.approx([7 / 8, 1 / 6])
    assert head.centres[4].tolist() == pytest.approx([1 / 8, 3 / 6])
    assert "centres" not in head.state_dict()


def test_confidence_is_the_share_of_votes_inside(head: PatchHead) -> None:
    prediction = head(CLS, PATCHES, IMAGE)
    corners = cxcywh_to_xyxy(prediction.boxes)
    for text in range(4):
        inside = [
            bool((c >= corners[text, :2]).all() and (c <= corners[text, 2:]).all())
            for c in head.centres
        ]
        expected = prediction.votes[text].exp()[torch.tensor(inside)].sum()
        torch.testing.assert_close(prediction.confidence[text], expected)
    assert not prediction.confidence.requires_grad


def test_texts_do_not_see_each_other(head: PatchHead) -> None:
    together = head(CLS, PATCHES, IMAGE)
    alone = head(CLS[2:3], PATCHES[1:], torch.tensor([0]))
    torch.testing.assert_close(together.boxes[2:3], alone.boxes)
    torch.testing.assert_close(together.votes[2:3], alone.votes)


def test_every_weight_learns(head: PatchHead) -> None:
    prediction = head.train()(CLS, PATCHES, IMAGE)
    (prediction.votes[:, 0].sum() + prediction.proposals.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_consensus_prefers_neighbours_that_agree() -> None:
    corners = torch.tensor([[[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.48], [0.6, 0.6, 0.9, 0.9]]])
    votes = torch.tensor([[0.3, 0.28, 0.42]]).log()
    assert votes.argmax() == 2
    assert consensus(corners, votes).tolist() == [0]


def test_consensus_follows_a_clear_vote() -> None:
    corners = torch.rand(1, 200, 4).sort(-1).values
    votes = torch.full((1, 200), 1e-6)
    votes[0, 150] = 1
    assert consensus(corners, votes.log()).tolist() == [150]


def test_no_texts(head: PatchHead) -> None:
    for each in (head, build_box_head(ClsBoxHead(), 6, 5, GRID)):
        assert each(CLS[:0], PATCHES, IMAGE[:0]).boxes.shape == (0, 4)


def test_a_single_patch_cannot_vote() -> None:
    with pytest.raises(ConfigError, match="needs a grid of patches"):
        build_box_head(PatchBoxHead(), 6, 5, (1, 1))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_whole_model_in_another_precision(kind: torch.dtype) -> None:
    """Engines such as DeepSpeed cast the weights themselves; boxes stay in single precision."""
    for config in (ClsBoxHead(), PatchBoxHead(width=8)):
        head = build_box_head(config, 6, 5, GRID).to(kind)
        assert head(CLS.to(kind), PATCHES.to(kind), IMAGE).boxes.dtype == torch.float32


@pytest.mark.parametrize("layers", [1, 3])
def test_mlp_head_by_hand(layers: int) -> None:
    head = build_box_head(MlpBoxHead(layers=layers, width=7), 6, 5, GRID)
    assert isinstance(head, MlpHead)
    hidden = CLS
    for layer in head.hidden:
        hidden = torch.relu(layer(hidden))
    found = head(CLS, PATCHES, IMAGE)
    assert torch.equal(found.boxes, head.box(hidden).sigmoid())
    assert found.quality is not None and found.confidence is not None
    torch.testing.assert_close(found.confidence, head.quality(hidden).squeeze(1).sigmoid())


def test_mlp_head_has_the_published_size() -> None:
    """768-768-768-4 are 1,184,260 parameters; the expected IoU is one more output."""
    head = build_box_head(MlpBoxHead(), 768, 5, GRID)
    quality = sum(p.numel() for n, p in head.named_parameters() if n.startswith("quality"))
    assert sum(p.numel() for p in head.parameters()) - quality == 1_184_260
    assert quality == 769


def test_the_expected_iou_does_not_move_the_box() -> None:
    head = build_box_head(MlpBoxHead(), 6, 5, GRID)
    vectors = CLS.clone().requires_grad_()
    head(vectors, PATCHES, IMAGE).quality.sum().backward()
    assert vectors.grad is None
    learns = {n for n, p in head.named_parameters() if p.grad is not None}
    assert learns == {"quality.weight", "quality.bias"}


def test_scales_have_heads_of_their_own_and_the_finest_answers() -> None:
    heads = build_box_head(MlpBoxHead(layers=2), 6, 5, GRID, scales=3)
    assert isinstance(heads, ScaleHeads)
    vectors = torch.randn(4, 3, 6)
    found = heads(vectors, PATCHES, IMAGE)
    assert len(found.by_scale) == 3
    for number, head in enumerate(heads):
        alone = head(vectors[:, number], PATCHES, IMAGE)
        assert torch.equal(found.by_scale[number].boxes, alone.boxes)
    assert torch.equal(found.boxes, found.by_scale[2].boxes)
    assert not torch.equal(found.boxes, found.by_scale[1].boxes)
