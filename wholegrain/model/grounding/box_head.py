"""Box heads: from fused text and image patches to one box a text."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.boxes import iou, xyxy_to_cxcywh
from wholegrain.errors import ConfigError
from wholegrain.model.attention import PredictionHead
from wholegrain.model.config import BoxHeadConfig, ClsBoxHead, MlpBoxHead
from wholegrain.model.indexing import take

_ELECTORATE = 64  # most voted proposals that stand for election; the others hold next to no votes


class BoxPrediction(NamedTuple):
    """What a head says of T texts."""

    boxes: Tensor
    """(T, 4) cxcywh in the unit square."""
    votes: Tensor | None
    """(T, P) log-probabilities over patches, where the head has them."""
    proposals: Tensor | None
    """(T, P, 4) cxcywh: the box that each patch would answer."""
    confidence: Tensor | None
    """(T,) in 0..1, where the head has one: the share of the votes that lie inside the box, or the
    IoU that the head expects."""
    quality: Tensor | None = None
    """(T,) logits of the expected IoU, where the head has them."""
    by_scale: tuple[BoxPrediction, ...] = ()
    """Of each scale, coarse to fine, where there are several; the last is the answer."""


class ClsHead(nn.Module):
    """``sigmoid(MLP([CLS]))``; X-VLM 1.4."""

    def __init__(self, text_width: int) -> None:
        super().__init__()
        self.mlp = PredictionHead(text_width, 4)

    def forward(self, cls: Tensor, patches: Tensor, image: Tensor) -> BoxPrediction:
        return BoxPrediction(self.mlp(cls).float().sigmoid(), None, None, None)


class MlpHead(nn.Module):
    """``sigmoid(MLP(x))`` of fused vectors x, ReLU between the layers.

    A second output tells the IoU that the box will have: a linear layer on the last hidden state,
    whose gradient ends there, so that the box is learnt as without it.
    """

    def __init__(self, width: int, config: MlpBoxHead) -> None:
        super().__init__()
        hidden = config.width or width
        widths = [width, *[hidden] * (config.layers - 1)]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.box = nn.Linear(widths[-1], 4)
        self.quality = nn.Linear(widths[-1], 1)

    def forward(self, cls: Tensor, patches: Tensor, image: Tensor) -> BoxPrediction:
        for layer in self.hidden:
            cls = F.relu(layer(cls))
        quality = self.quality(cls.detach()).squeeze(-1).float()
        boxes = self.box(cls).float().sigmoid()
        return BoxPrediction(boxes, None, None, quality.detach().sigmoid(), quality)


class ScaleHeads(nn.ModuleList):
    """A head a scale; the finest one answers."""

    def forward(self, vectors: Tensor, patches: Tensor, image: Tensor) -> BoxPrediction:
        """Vectors (T, S, W), coarse to fine; the rest as of each head."""
        scales = zip(self, vectors.unbind(dim=1), strict=True)
        found = tuple(head(vector, patches, image) for head, vector in scales)
        return found[-1]._replace(by_scale=found)

    def answer_of(self, prediction: BoxPrediction, scale: Tensor) -> BoxPrediction:
        """The same prediction, text t answered by scale `scale[t]` (T,) rather than the finest."""
        rows = torch.arange(len(scale), device=scale.device)
        boxes = torch.stack([each.boxes for each in prediction.by_scale])[scale, rows]
        confidence = (each.confidence for each in prediction.by_scale)
        chosen = torch.stack([each for each in confidence if each is not None])[scale, rows]
        return prediction._replace(boxes=boxes, confidence=chosen)


class PatchHead(nn.Module):
    """Every patch proposes a box around its own place and votes for itself; consensus answers.

    With ``h_tp = gelu(W gelu(norm(a(text_t) * b(patch_p) + c(patch_p) + d(text_t))))``, patch p
    proposes the distances of the box's four sides from its own centre, ``sigmoid(U h_tp)``, and
    votes with ``log softmax_p(v h_tp)``. A patch only has to say what it sees around it, which is
    far easier to learn from few photos than a box from one vector.

    The answer is the proposal with the highest expected overlap with the others,
    ``argmax_p sum_q exp(vote_q) IoU(box_p, box_q)``: of two neighbours that propose nearly the same
    box neither wins alone, together they outvote a lone patch elsewhere. In training the surest
    patch answers, which costs nothing and only serves the running accuracy.
    """

    def __init__(self, text_width: int, vision_width: int, width: int, grid: tuple[int, int]):
        super().__init__()
        self.text = nn.Linear(text_width, 2 * width)
        self.patch = nn.Linear(vision_width, 2 * width)
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)
        self.sides = nn.Linear(width, 4)
        nn.init.normal_(self.score.weight, std=0.02)
        nn.init.normal_(self.sides.weight, std=0.02)
        nn.init.zeros_(self.score.bias)
        # A quarter of the image to each side: the size of an average object.
        nn.init.constant_(self.sides.bias, -1.1)
        self.centres: Tensor
        self.register_buffer("centres", _centres(grid), persistent=False)

    def forward(self, cls: Tensor, patches: Tensor, image: Tensor) -> BoxPrediction:
        """Votes.

        Args:
            cls: (T, D) fused text vectors.
            patches: (I, P, Dv).
            image: (T,) the image of each text.
        """
        scale, shift = self.text(cls).chunk(2, dim=-1)
        gain, content = take(self.patch(patches), image).chunk(2, dim=-1)
        joint = gain * scale[:, None] + content + shift[:, None]
        joint = F.gelu(self.hidden(F.gelu(self.norm(joint))))
        votes = self.score(joint).squeeze(-1).float().log_softmax(dim=-1)
        sides = self.sides(joint).float().sigmoid()  # left, top, right, bottom of the patch centre
        centres = self.centres.float()
        corners = torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], dim=-1)
        proposals = xyxy_to_cxcywh(corners)
        chosen = votes.argmax(dim=1) if self.training else consensus(corners, votes)
        rows = torch.arange(len(votes), device=votes.device)
        confidence = self._confidence(corners[rows, chosen], votes)
        return BoxPrediction(proposals[rows, chosen], votes, proposals, confidence)

    def _confidence(self, corners: Tensor, votes: Tensor) -> Tensor:
        low, high = corners[:, None, :2], corners[:, None, 2:]
        inside = ((self.centres >= low) & (self.centres <= high)).all(dim=-1)
        return (votes.detach().exp() * inside).sum(dim=-1)


def consensus(corners: Tensor, votes: Tensor) -> Tensor:
    """Index (T,) of the proposal with the highest expected IoU among the most voted ones.

    Args:
        corners: (T, P, 4) xyxy.
        votes: (T, P) log-probabilities.
    """
    weight, top = votes.exp().topk(min(_ELECTORATE, votes.shape[1]), dim=1)
    boxes = corners.gather(1, top[..., None].expand(-1, -1, 4))
    overlap = iou(boxes[:, :, None], boxes[:, None])  # (T, K, K)
    best = (overlap * weight[:, None]).sum(dim=2).argmax(dim=1, keepdim=True)
    return top.gather(1, best).squeeze(1)


def _centres(grid: tuple[int, int]) -> Tensor:
    rows, columns = grid
    y = (torch.arange(rows) + 0.5) / rows
    x = (torch.arange(columns) + 0.5) / columns
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).flatten(0, 1)


def build_box_head(
    config: BoxHeadConfig,
    fused_width: int,
    vision_width: int,
    grid: tuple[int, int],
    scales: int = 1,
) -> nn.Module:
    """The head that a configuration describes.

    Args:
        config: of the head.
        fused_width: channels of the vectors that it reads.
        vision_width: channels of the patches.
        grid: (rows, columns) of the patches.
        scales: vectors a text; each has a head of its own.

    Raises:
        ConfigError: patches shall vote where there is no grid of them.
    """
    if scales > 1:
        return ScaleHeads(
            build_box_head(config, fused_width, vision_width, grid) for _ in range(scales)
        )
    if isinstance(config, ClsBoxHead):
        return ClsHead(fused_width)
    if isinstance(config, MlpBoxHead):
        return MlpHead(fused_width, config)
    if grid[0] * grid[1] < 4:
        raise ConfigError(f"box_head `patch` needs a grid of patches, not {grid}; use `cls`")
    return PatchHead(fused_width, vision_width, config.width, grid)
