"""What the ways of fusing text and image are made of."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wholegrain.config import config
from wholegrain.errors import ConfigError
from wholegrain.model.config_checks import divides


@config
class CrossFusion:
    """X-VLM's cross encoder, which pretraining has learnt too: the fused [CLS] state."""

    kind: Literal["cross"] = "cross"


@config
class Ca2mFusion:
    """Image and text attend to each other in turn, one text depth at a time and then all together
    (CA2M); it reads an image encoder's maps of three strides.
    """

    kind: Literal["ca2m"] = "ca2m"
    groups: int = Field(default=3, gt=0)
    """Text depths that the image meets, each in layers of its own; at most the text encoder's
    layers, `text.fusion_layer`."""
    text_layers: tuple[int, ...] | None = None
    """Text layers that the groups read, from 1, one a group; null spreads them evenly, layer
    ``ceil(layers * i / groups)`` for group i."""
    stage_width: int = Field(default=256, gt=0)
    """Channels that each of the three maps is projected to before they are joined."""
    stride: int = Field(default=16, gt=0)
    """Side in pixels of the places that all three maps are brought to."""
    group_width: int = Field(default=256, gt=0)
    """Channels inside a group; the fused vector has `groups` times as many."""
    group_layers: int = Field(default=2, gt=0)
    """Layers of a group."""
    fusion_layers: int = Field(default=3, gt=0)
    """Layers after the groups are joined."""
    heads: int = Field(default=8, gt=0)
    """Attention heads of every layer."""
    group_feed_forward: int = Field(default=2048, gt=0)
    """Hidden width of the feed-forward in a group's layers."""
    feed_forward: int = Field(default=3072, gt=0)
    """Hidden width of the feed-forward in the layers after the groups."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of hidden states and attention weights."""

    def __post_init__(self) -> None:
        divides("fusion.group_width", self.group_width, "fusion.heads", self.heads)
        divides("fusion.group_width", self.group_width, "the sine positions' group", 4)
        named = self.text_layers
        if named is None:
            return
        if list(named) != sorted(set(named)) or len(named) != self.groups or named[0] < 1:
            raise ConfigError(
                f"fusion.text_layers is {list(named)} for {self.groups} fusion.groups; name one "
                "layer a group, from 1 and ascending"
            )

    @property
    def width(self) -> int:
        """Channels of the fused vector."""
        return self.groups * self.group_width


@config
class ScanFusion:
    """ScanFormer: the image encoder reads text and image, patches of finer scales on demand."""

    kind: Literal["scan"] = "scan"
    scales: int = Field(default=3, gt=0)
    """Scales of the pyramid. The finest has the side vision.image_size, each other one half the
    side of the next, by averaging; 640 with patches of 32 gives grids of 5, 10 and 20."""
    selector_width: int = Field(default=192, gt=0)
    """Hidden channels of the network that selects."""
    hierarchical: bool = True
    """Whether a patch can be read only if its parent at the coarser scale is."""
    gate_bias: float = 3.0
    """Of the selection's logits at the start; 3 reads 95 % of the patches."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the soft gates through which the selection learns."""
    noise: bool = True
    """Whether gates are drawn in training; at prediction a probability of one half decides."""
    mix: bool = False
    """Whether half of a training step's gates, at random, are soft rather than 0 or 1."""
    merge: bool = True
    """Whether prediction runs one token for all patches that are left out, rather than as many
    copies of it: the same result, sooner."""
    counts_as: Literal["bias", "dimensions"] = "bias"
    """How log N reaches the attention kernel: added to the scores in single precision, or as
    further dimensions of queries and keys, for kernels that take no bias; the latter in any case in
    half precision on a GPU."""
    exit_quality: float | None = Field(default=None, ge=0, le=1)
    """Predicted IoU from which on a text's finer scales are not read at prediction; null reads
    all."""

    def __post_init__(self) -> None:
        if self.exit_quality is not None and self.scales < 2:
            raise ConfigError(
                f"fusion.exit_quality is {self.exit_quality}, but there is only one scale to read; "
                "raise fusion.scales or set it to null"
            )


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
        divides("fusion.width", self.width, "fusion.heads", self.heads)
