"""What adapters are made of."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wholegrain.config import config
from wholegrain.errors import ConfigError


@config
class MmcaConfig:
    """Multimodal conditional adapters on the image encoder (MMCA)."""

    kind: Literal["mmca"] = "mmca"
    rank: int = Field(default=64, gt=0)
    """Rank-1 terms of an update."""
    embed_dim: int = Field(default=128, gt=0)
    """Channels of the multimodal embedding that the coefficients come from."""
    gate_dim: int = Field(default=32, gt=0)
    """Hidden channels of the gate."""
    blocks: int = Field(default=2, gt=0)
    """How many of the image encoder's last blocks (stages, if convolutional) are adapted."""
    stages: int = Field(default=0, ge=0)
    """How many of the last convolutional stages are adapted as well, where a transformer follows
    them (DETR)."""
    sites: tuple[Literal["query", "key", "value", "mlp"], ...] = ("query", "key")
    """Which projections of an adapted block receive an update; convolutions have their own."""
    condition: Literal["both", "text", "image"] = "both"
    """What the coefficients depend on; `text` and `image` are the ablations."""
    text_dim: int | None = Field(default=None, gt=0)
    """Channels that the mean text states are projected to for all sites together (the authors'
    release: 256); null reads them as they are."""
    convolution: Literal["paper", "release"] = "paper"
    """Order of an update's convolutions: 1 x 1 to the rank, then 3 x 3; or, as the authors'
    release has it, 3 x 3 to the rank, then 1 x 1."""
    form: Literal["beside", "composed"] = "beside"
    """Of DETR's queries and keys: the update stands beside the projection, ``(W0 + dW) x``; or,
    as the authors' release has it, is added to what the projection reads, ``W0 (x + dW s)``, s
    being x without its positions."""

    def __post_init__(self) -> None:
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise ConfigError(
                f"adapters.sites is {list(self.sites)}; name each place once, and at least one"
            )


@config
class MmaConfig:
    """Multi-modal adapters on paired blocks of the image and the text encoder (MMA)."""

    kind: Literal["mma"] = "mma"
    rank: int = Field(default=32, gt=0)
    """Channels of the bottlenecks and of the map that a pair's two sides share."""
    alpha: float = Field(default=0.001, ge=0)
    """How much of a pair's output is added; 0.001 is the paper's, for CLIP and SGD. Under AdamW try
    0.001 to 1."""
    blocks: int | None = Field(default=None, gt=0)
    """How many of the image encoder's last blocks are paired with as many of the text encoder's
    last layers, last with last; null for 4 (on CLIP 8: blocks 5 to 12 of 12). Exclusive with
    `pairs`."""
    pairs: tuple[tuple[int, int], ...] | None = None
    """[image block, text layer] of each pair, counted from 1; null pairs the last `blocks`. A
    Swin's blocks count through its stages."""
    gradient_trick: bool = False
    """Whether the pairs' weights get 1 / alpha times their gradient, as in the authors' release: a
    rate 1 / alpha times as large under SGD, next to nothing under AdamW."""
    zero_up: bool = False
    """Whether a fresh pair adds nothing; as published it adds alpha times something random."""
    placement: Literal["outside", "inside"] = "outside"
    """Where a post-norm layer (BERT, DETR) is added to: after its last norm, or before it, which
    keeps the scale that later layers know."""
    cross: bool = False
    """Whether the cross encoder's layers are further sides of the pair with the last image
    block."""

    def __post_init__(self) -> None:
        if self.pairs is None:
            return
        if self.blocks is not None:
            raise ConfigError(
                f"adapters.blocks is {self.blocks} and adapters.pairs is given as well; leave one "
                "of them out"
            )
        vision, text = [pair[0] for pair in self.pairs], [pair[1] for pair in self.pairs]
        for name, numbers in (("image blocks", vision), ("text layers", text)):
            if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
                raise ConfigError(
                    f"adapters.pairs has the {name} {numbers}; name at least one pair, each number "
                    "once and from 1 on"
                )
