"""DETR's image encoder (Carion et al. 2020): a ResNet and a transformer over its last map."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.errors import ConfigError
from wholegrain.model.concepts import ImageFeatures
from wholegrain.model.config import DetrVision, RegFusion
from wholegrain.model.timm_network import make_network
from wholegrain.model.vision import VisionEncoder

# What torchvision's residual networks, and so DETR, were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_TEMPERATURE = 10000.0


class FrozenBatchNorm2d(nn.Module):
    """``w (x - mean) / sqrt(var + 1e-5) + b`` with all four fixed: DETR's batches are too small.

    All four come with the checkpoint and are no parameters: no optimizer, no decay reaches them.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        channels: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            fixed = torch.full((channels,), float(value), device=device, dtype=dtype)
            self.register_buffer(name, fixed)

    def forward(self, states: Tensor) -> Tensor:
        """States (I, C, H, W)."""
        return F.batch_norm(
            states, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5
        )


def sine_positions(
    grid: tuple[int, int], width: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Codes (P, width) of a grid's cells, row-major: half tells the row, half the column.

    With row y = 1..H scaled to ``u = 2 pi y / (H + 1e-6)``, channels 2k and 2k + 1 of a half of
    width D are ``sin(u / T^(2k/D))`` and ``cos(u / T^(2k/D))``, T = 10000; columns likewise.
    """
    half = width // 2
    frequency = _TEMPERATURE ** (torch.arange(0, half, 2, device=device, dtype=dtype) / half)
    halves = []
    for count in grid:
        place = torch.arange(1, count + 1, device=device, dtype=dtype)
        angle = (place / (count + 1e-6) * (2 * math.pi))[:, None] / frequency
        halves.append(torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1))
    rows, columns = grid
    by_row = halves[0][:, None].expand(rows, columns, half)
    by_column = halves[1][None].expand(rows, columns, half)
    return torch.cat([by_row, by_column], dim=2).flatten(0, 1)


class DetrLayer(nn.Module):
    """Self-attention and feed-forward, post-norm; queries and keys alone see the positions."""

    def __init__(self, config: DetrVision | RegFusion) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, config.feed_forward)
        self.down = nn.Linear(config.feed_forward, width)
        self.feed_forward_norm = nn.LayerNorm(width)

    def _drop(self, states: Tensor) -> Tensor:
        return F.dropout(states, self.dropout, self.training)

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self,
        states: Tensor,
        positions: Tensor,
        seen: Tensor | None = None,
        first: int | None = None,
    ) -> Tensor:
        """New states of all places, or of the `first` ones alone: (I, P or first, D).

        Args:
            states: (I, P, D).
            positions: (P, D).
            seen: bool (I, P), False at padding; None where there is none.
            first: how many states are wanted; the others are only attended to.
        """
        placed, asked = states + positions, states[:, :first]
        attended = F.scaled_dot_product_attention(
            self._split(self.query(placed[:, :first])),
            self._split(self.key(placed)),
            self._split(self.value(states)),
            attn_mask=None if seen is None else seen[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        update = self.output(attended.transpose(1, 2).flatten(2))
        asked = self.attention_norm(asked + self._drop(update))
        update = self.down(self._drop(F.relu(self.up(asked))))
        result: Tensor = self.feed_forward_norm(asked + self._drop(update))
        return result


class DetrEncoder(VisionEncoder):
    """Patches from DETR's transformer encoder, the image vector their mean.

    Any image size whose stride-32 map the network gives will do; `grid` is that of the configured
    one. The pyramid holds the residual network's four stages, strides 4 to 32.
    """

    def __init__(self, config: DetrVision) -> None:
        super().__init__(config.image_size, IMAGENET_MEAN, IMAGENET_STD)
        self.backbone, channels = _resnet(config)
        self.width = config.width
        side = config.image_size // config.stride
        self.grid = (side, side)
        self.input_projection = nn.Conv2d(channels, config.width, kernel_size=1)
        self.layers = nn.ModuleList(DetrLayer(config) for _ in range(config.layers))
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, images: Tensor) -> ImageFeatures:
        images = images.contiguous(memory_format=torch.channels_last)
        pyramid = tuple(self.backbone(images))
        projected = self.input_projection(pyramid[-1])
        grid = (int(projected.shape[2]), int(projected.shape[3]))
        states = projected.flatten(2).transpose(1, 2)
        precision = torch.promote_types(states.dtype, torch.float32)
        positions = sine_positions(grid, self.width, states.device, precision).to(states.dtype)
        for layer in self.layers:
            states = layer(states, positions)
        return ImageFeatures(states.mean(dim=1), states, grid, pyramid)

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)


def _resnet(config: DetrVision) -> tuple[Any, int]:
    """The residual network, and the channels of its last map."""
    network, channels, strides = make_network(
        config.name,
        config.options,
        (1, 2, 3, 4),
        remedy="DETR's encoder takes a residual network of timm, such as resnet50 or resnet101",
        norm_layer=FrozenBatchNorm2d,
        zero_init_last=False,  # a norm that is frozen at zero would keep its block shut
    )
    if strides != [4, 8, 16, config.stride]:
        raise ConfigError(
            f"vision.name is {config.name!r}, whose stages have strides {strides}; DETR's "
            "encoder takes a residual network with strides 4, 8, 16, 32, such as resnet50"
        )
    return network, channels[-1]
