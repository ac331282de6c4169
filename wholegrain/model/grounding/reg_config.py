"""What the [REG] fusion is made of."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wholegrain.config import config
from wholegrain.errors import ConfigError


@config
class RegFusion:
    """A learnt [REG] token reads text and image together in transformer layers of its own
    (TransVG); the host that MMCA was published on.
    """

    kind: Literal["reg"] = "reg"
    width: int = Field(default=256, gt=0)
    """Channels of the fused vector."""
    layers: int = Field(default=6, gt=0)
    """Transformer layers over [REG], text and image."""
    heads: int = Field(default=8, gt=0)
    """Attention heads."""
    feed_forward: int = Field(default=2048, gt=0)
    """Hidden width of a layer's feed-forward."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of hidden states and attention weights."""
    max_text: int = Field(default=40, gt=0)
    """Tokens of a text that have a place in the table of positions, [CLS] included; at least
    `data.max_tokens`."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(
                f"fusion.width is {self.width}, which is no multiple of fusion.heads {self.heads}; "
                "change one of them"
            )
