"""What a step of the recipes costs: images, concepts and FLOP, from their configs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from benchmarks.train_step_cases import LENGTHS
from pretrain.config import PretrainConfig
from wholegrain.config import load_config
from wholegrain.model.config import ModelConfig
from wholegrain.model.flops import StepShape, step_flops
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.train.plan import Gather

_CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "pretrain"

# Concepts that crops and equal texts leave of a batch, and images that bring captions; both as the
# comments of the configs count them. Photos of the corpora in millions: COCO 0.11, VG 0.10, SBU
# 0.86, CC3M 2.9; CC12M 11.1, Objects365 0.58, OpenImages 1.70.
_CONCEPTS = {"4m": 1900, "16m": 4800}
_CAPTIONED = {"4m": 1024, "16m": 3072 - 111 - 324}
_PHOTOS = {"4m": 3.97e6, "16m": 17.35e6}

_SEEN = 0.3
"""Share of an image's patches that a region's box touches: boxes whose sides are between a tenth
and all of the image's, evenly, cover 0.55 squared."""


@dataclass(frozen=True)
class Recipe:
    """A pretraining run of a config in `configs/pretrain`."""

    name: str
    steps: int
    batch_size: int
    parameters: int
    forward: int
    """FLOP of a step of the global batch, the useful count of `wholegrain.model.flops`."""
    backward: int
    concepts: int
    """Of a global batch, on average."""
    most_concepts: int
    """That a global batch may hold: what is exchanged."""
    embed_dim: int
    photos: float
    """Of the corpora."""

    @property
    def flops(self) -> int:
        """Of a step."""
        return self.forward + self.backward

    def gather(self, ranks: int, batch_size: int) -> Gather:
        """What the contrastive loss exchanges, with as many concepts an image as the recipe has."""
        most = self.most_concepts * batch_size / self.batch_size
        return Gather(max(1, -(-round(most) // ranks)), self.embed_dim)


@cache
def recipe(name: str) -> Recipe:
    """`4m` or `16m`."""
    config = load_config(PretrainConfig, _CONFIGS / f"{name}.yaml", [])
    assert config.data.max_concepts is not None
    masking = config.data.masking
    shape = _shape(
        config.model,
        config.run.batch_size,
        _CAPTIONED[name],
        _CONCEPTS[name],
        (masking.probability, masking.max_masks),
    )
    flops = step_flops(config.model, shape)
    return Recipe(
        name,
        config.run.steps,
        config.run.batch_size,
        parameters_of(config.model),
        flops.forward,
        flops.backward,
        _CONCEPTS[name],
        config.data.max_concepts,
        config.model.embed_dim,
        _PHOTOS[name],
    )


def parameters_of(config: ModelConfig) -> int:
    """How many a model has."""
    with torch.device("meta"):
        model = MultiGrainModel(config)
    return sum(each.numel() for each in model.parameters())


def _shape(
    config: ModelConfig, images: int, captioned: int, concepts: int, masking: tuple[float, int]
) -> StepShape:
    """A global batch of mean concepts: captions of whole images, the rest regions with phrases."""
    share, most = masking
    regions = concepts - captioned
    lengths = [*_lengths("image", captioned), *_lengths("region", regions)]
    vision = config.vision
    patches = (vision.image_size // 32) ** 2
    return StepShape(
        images=images,
        lengths=lengths,
        hidden=[min(most, max(1, round(share * length))) for length in lengths],
        regions=range(captioned, concepts),
        visible=[patches] * captioned + [round(_SEEN * patches)] * regions,
        whole=frozenset(range(captioned)),
    )


def _lengths(kind: str, count: int) -> list[int]:
    low, high = LENGTHS[kind]
    return [low + number % (high - low + 1) for number in range(count)]
