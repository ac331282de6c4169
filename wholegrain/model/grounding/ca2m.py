"""CA2M (arXiv 2204.09957): three depths of the text against three strides of the image.

The image encoder's last three maps, each projected and brought to one stride, are joined channel by
channel. Each of three text depths then alternates with them in layers of its own, which see no
other depth; their states are joined channel by channel and alternate once more. The [CLS] state of
the text answers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.errors import ConfigError
from wholegrain.model.adapters.condition import Condition
from wholegrain.model.concepts import ImageFeatures
from wholegrain.model.config import Ca2mFusion
from wholegrain.model.detr import DetrEncoder, sine_positions
from wholegrain.model.grounding.ca2m_layer import Ca2mLayer, layer_macs, start_xavier
from wholegrain.model.grounding.fusion import Fused, Fusion
from wholegrain.model.grounding.records import TextStates
from wholegrain.model.vision import SwinEncoder, TimmEncoder, VisionEncoder

_STAGES = 3


class Ca2mCost(NamedTuple):
    """Multiply-adds of matrix products."""

    image: int
    """Of one image, however many texts read it."""
    text: int
    """Of one text more."""


class StageProjection(nn.Module):
    """One map of the encoder at the common stride and width.

    A finer map is averaged before the projection, a coarser one interpolated (bilinear) after it:
    both are linear and their weights sum to one, so that the order changes the cost alone. Padding
    has no weight in either.

    Args:
        channels: of the map.
        width: channels after the projection.
        stride: of the map.
        common: the stride that it is brought to; one is a multiple of the other.
    """

    def __init__(self, channels: int, width: int, stride: int, common: int) -> None:
        super().__init__()
        self.stride, self.common = stride, common
        self.projection = nn.Conv2d(channels, width, kernel_size=1)

    def forward(self, states: Tensor, photo: Tensor | None) -> Tensor:
        """Projected states (I, width, h, w), h and w at least the places of the common stride.

        Args:
            states: (I, channels, H, W).
            photo: bool (I, height, width) of pixels; None where nothing is padded.
        """
        if self.stride > self.common:
            return self._resample(self.projection(states), photo)
        projected: Tensor = self.projection(self._resample(states, photo))
        return projected

    def _resample(self, states: Tensor, photo: Tensor | None) -> Tensor:
        if photo is None:
            return self._resize(states)
        seen = photo_places(photo, self.stride)[:, None]
        weight = self._resize(seen.to(states.dtype))
        return self._resize(states.masked_fill(~seen, 0)) / weight.masked_fill(weight == 0, 1)

    def _resize(self, states: Tensor) -> Tensor:
        if self.stride < self.common:
            # At the lower and right edge, the mean of those places that there are.
            return F.avg_pool2d(states, self.common // self.stride, ceil_mode=True)
        if self.stride > self.common:
            factor = float(self.stride // self.common)
            return F.interpolate(states, scale_factor=factor, mode="bilinear", align_corners=False)
        return states


class Ca2mGroup(nn.Module):
    """One depth of the text and the joined maps, in layers of their own.

    Args:
        config: of the fusion.
        text_width: channels of the text states.
    """

    def __init__(self, config: Ca2mFusion, text_width: int) -> None:
        super().__init__()
        self.visual = nn.Linear(_STAGES * config.stage_width, config.group_width)
        self.textual = nn.Linear(text_width, config.group_width)
        start_xavier(self)
        self.layers = nn.ModuleList(
            Ca2mLayer(config.group_width, config.heads, config.group_feed_forward, config.dropout)
            for _ in range(config.group_layers)
        )

    def forward(
        self,
        places: Tensor,
        words: Tensor,
        positions: Tensor,
        word_mask: Tensor,
        place_mask: Tensor | None,
        image: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Places (T, N, group_width) and words (T, L, group_width).

        Args:
            places: (I, N, 3 stage_width).
            words: (T, L, text_width).
            positions: (N, group_width).
            word_mask: bool (T, L).
            place_mask: bool (T, N), or None.
            image: (T,) row of `places` that each text reads.
        """
        places, words = self.visual(places), self.textual(words)
        for number, layer in enumerate(self.layers):
            rows = None if number else image
            places, words = layer(places, words, positions, word_mask, place_mask, rows)
        return places, words


class Ca2m(Fusion):
    """The fusion of a model.

    What precedes the first contact with a text (joined maps, the groups' projections of them and
    their first queries) is computed once an image.

    Args:
        config: of the fusion.
        vision: the model's image encoder.
        text_width: channels of the text states.
        text_layers: layers of the text encoder.

    Raises:
        ConfigError: the encoder has no maps of three strides, `stride` does not go with them, or
            the text encoder has fewer layers than are asked for.
    """

    def __init__(
        self, config: Ca2mFusion, vision: VisionEncoder, text_width: int, text_layers: int
    ) -> None:
        super().__init__()
        self.depths = text_depths(config, text_layers)
        self.maps = _last_maps(vision, config.stride)
        """(stride, channels) of the three maps, finest first."""
        self.width, self.stride = config.width, config.stride
        self.stages = nn.ModuleList(
            StageProjection(channels, config.stage_width, stride, config.stride)
            for stride, channels in self.maps
        )
        start_xavier(self.stages)
        self.groups = nn.ModuleList(Ca2mGroup(config, text_width) for _ in self.depths)
        self.layers = nn.ModuleList(
            Ca2mLayer(config.width, config.heads, config.feed_forward, config.dropout)
            for _ in range(config.fusion_layers)
        )
        self.config, self.text_width = config, text_width

    def grid(self, features: ImageFeatures) -> tuple[int, int]:
        """(rows, columns) of places of the common stride, at whatever size the images have."""
        finest, stride = features.pyramid[-_STAGES], self.maps[0][0]
        return grid_of((finest.shape[2] * stride, finest.shape[3] * stride), self.stride)

    def joined(self, features: ImageFeatures) -> Tensor:
        """The three maps side by side in channels: (I, N, 3 stage_width), row-major over `grid`."""
        rows, columns = self.grid(features)
        maps = features.pyramid[-_STAGES:]
        parts = [
            stage(states, features.pixel_mask)[..., :rows, :columns]
            for stage, states in zip(self.stages, maps, strict=True)
        ]
        return torch.cat(parts, dim=1).flatten(2).transpose(1, 2)

    def forward(
        self,
        vision: VisionEncoder,
        texts: TextStates,
        features: ImageFeatures,
        image: Tensor,
        condition: Condition,
    ) -> Fused:
        places, grid = self.joined(features), self.grid(features)
        place_mask = None
        if features.pixel_mask is not None:
            place_mask = photo_places(features.pixel_mask, self.stride).flatten(1)[image]
        positions = _positions(grid, self.config.group_width, places)
        # No place is all padding and no text without [CLS]: every query has a key.
        outcomes = [
            group(places, texts.layers[depth - 1], positions, texts.mask, place_mask, image)
            for group, depth in zip(self.groups, self.depths, strict=True)
        ]
        places = torch.cat([visual for visual, _ in outcomes], dim=-1)
        words = torch.cat([textual for _, textual in outcomes], dim=-1)
        positions = _positions(grid, self.width, places)
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            # Of the last layer's words the head reads [CLS] alone.
            places, words = layer(
                places, words, positions, texts.mask, place_mask, first_only=number == last
            )
        return Fused(words)

    def macs(self, size: tuple[int, int], tokens: int) -> Ca2mCost:
        """What fusing costs, image and text encoder not counted.

        Args:
            size: (height, width) of the images in pixels.
            tokens: of a text, padding counted.
        """
        config, groups = self.config, len(self.depths)
        rows, columns = grid_of(size, self.stride)
        places, width, inner = rows * columns, self.width, config.group_width
        query = places * inner**2  # of a group's first layer, once an image
        image = 0
        for stride, channels in self.maps:
            height, across = grid_of(size, max(stride, self.stride))
            image += height * across * channels * config.stage_width
        image += groups * (places * _STAGES * config.stage_width * inner + query)
        layers = config.group_layers * layer_macs(places, tokens, inner, config.group_feed_forward)
        text = groups * (tokens * self.text_width * inner + layers - query)
        text += config.fusion_layers * layer_macs(places, tokens, width, config.feed_forward)
        unread = tokens - 1  # words that the last layer does not bring forward
        text -= unread * (2 * width**2 + 2 * places * width + 2 * width * config.feed_forward)
        return Ca2mCost(image, text)


def text_depths(config: Ca2mFusion, layers: int) -> tuple[int, ...]:
    """Text layers, from 1, that the groups read of a text encoder of so many layers.

    Raises:
        ConfigError: it has too few.
    """
    if config.text_layers is not None:
        if config.text_layers[-1] > layers:
            raise ConfigError(
                f"fusion.text_layers is {list(config.text_layers)}, but the text encoder has "
                f"{layers} layers (text.fusion_layer); name layers from 1 to {layers}"
            )
        return config.text_layers
    if config.groups > layers:
        raise ConfigError(
            f"fusion.groups is {config.groups}, but the text encoder has {layers} layers "
            f"(text.fusion_layer), and each group reads one of its own; set groups to at most "
            f"{layers}"
        )
    return tuple(-(-layers * group // config.groups) for group in range(1, config.groups + 1))


def photo_places(photo: Tensor, stride: int) -> Tensor:
    """Which places of side `stride` hold photo: bool (I, rows, columns).

    Args:
        photo: bool (I, H, W) of pixels. A place counts as padding where none of its pixels is one.
        stride: side of a place in pixels.
    """
    return F.max_pool2d(photo[:, None].float(), stride, ceil_mode=True)[:, 0] > 0


def grid_of(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """(rows, columns) of places of side `stride` that cover `size` (height, width), in pixels."""
    return -(-size[0] // stride), -(-size[1] // stride)


def _positions(grid: tuple[int, int], width: int, like: Tensor) -> Tensor:
    precision = torch.promote_types(like.dtype, torch.float32)
    return sine_positions(grid, width, like.device, precision).to(like.dtype)


def _last_maps(vision: VisionEncoder, common: int) -> list[tuple[int, int]]:
    """(stride, channels) of the encoder's last three maps, finest first."""
    maps = feature_maps(vision)[-_STAGES:]
    strides = [stride for stride, _ in maps]
    if len(set(strides)) < _STAGES:
        raise ConfigError(
            f"fusion.kind is `ca2m`, which joins maps of three strides, but those of the image "
            f"encoder (vision.kind, vision.stages) are {strides}; choose vision `swin` or `detr`, "
            "or `timm` with three stages, such as resnet50 with stages [2, 3, 4]"
        )
    for stride in strides:
        if max(stride, common) % min(stride, common):
            raise ConfigError(
                f"fusion.stride is {common}, neither a multiple nor a part of the stride {stride} "
                f"of one of the maps; choose one of {strides}"
            )
    return maps


def feature_maps(vision: VisionEncoder) -> list[tuple[int, int]]:
    """(stride in pixels, channels) of each map of an encoder's pyramid, finest first."""
    if isinstance(vision, SwinEncoder):
        stages = vision.backbone.feature_info
        return [(int(stage["reduction"]), int(stage["num_chs"])) for stage in stages]
    if isinstance(vision, TimmEncoder | DetrEncoder):
        info = vision.backbone.feature_info
        pairs = zip(info.reduction(), info.channels(), strict=True)
        return [(int(stride), int(channels)) for stride, channels in pairs]
    return [(vision.image_size // vision.grid[0], vision.width)]
