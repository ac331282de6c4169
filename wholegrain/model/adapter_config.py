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
