"""Image encoders: timm backbones behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import wholegrain.torchvision_shim  # noqa: F401  timm imports torchvision
from wholegrain.errors import ConfigError
from wholegrain.model.concepts import ImageFeatures, Shown, VisualConcepts, join, pooled_concepts
from wholegrain.model.concepts import whole_images as whole_images_of
from wholegrain.model.config import DetrVision, SwinVision, TimmVision, VisionConfig, VitVision
from wholegrain.model.local_attention import RegionTokens, run_local_blocks
from wholegrain.model.stochastic_depth import StochasticDepth, share_stochastic_depth
from wholegrain.model.timm_network import make_network

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_HIDDEN = -1e4
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class VisionEncoder(nn.Module, ABC):
    """An image encoder that yields a patch grid.

    Attributes:
        width: channels of the patch tokens.
        grid: (rows, columns) of the patch grid at the configured image size.
    """

    width: int
    grid: tuple[int, int]
    backbone: Any  # a timm model; timm carries no types
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image_size: int,
        mean: tuple[float, float, float] = CLIP_MEAN,
        std: tuple[float, float, float] = CLIP_STD,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        # Constants, not weights: kept out of the checkpoint, moved with the module.
        for name, value in (("mean", mean), ("std", std)):
            scaled = torch.tensor(value).view(3, 1, 1) * 255
            self.register_buffer(name, scaled, persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (I, 3, R, R) to the floats that the backbone reads."""
        return (images.float() - self.mean) / self.std

    @abstractmethod
    def forward(self, images: Tensor) -> ImageFeatures:
        """Encodes normalised images (I, 3, R, R)."""

    def concepts(
        self, features: ImageFeatures, image: Tensor, mask: Tensor, shown: Shown | None = None
    ) -> VisualConcepts:
        """Concepts of images: `image` (C,), `mask` bool (C, P).

        `shown` is what the host knows of the masks; without it the device may be asked.
        """
        return pooled_concepts(features, image, mask, shown.visible if shown else None)

    def blocks(self) -> list[nn.Module]:
        """Transformer blocks in order, first to last; empty for a convolutional network."""
        return []


class SwinEncoder(VisionEncoder):
    """timm's Swin: `width` is 8 times `embed_dim`, the image vector the mean of its patches."""

    def __init__(self, config: SwinVision) -> None:
        super().__init__(config.image_size)
        from timm.models.swin_transformer import SwinTransformer

        self.backbone = SwinTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.embed_dim,
            depths=config.depths,
            num_heads=config.heads,
            window_size=config.window,
            num_classes=0,
            global_pool="",
            drop_path_rate=config.drop_path,
        )
        share_stochastic_depth(self.backbone)
        _hide_wholly(self.backbone)
        for block in self.blocks():
            block.forward = partial(_run_swin_block, block)
        self.width = int(self.backbone.num_features)
        side = config.image_size // config.final_patch
        self.grid = (side, side)

    def forward(self, images: Tensor) -> ImageFeatures:
        states = self.backbone.patch_embed(images)
        pyramid = []
        for stage in self.backbone.layers:
            states = stage(states)
            pyramid.append(states.permute(0, 3, 1, 2))
        states = self.backbone.norm(states)
        patches = states.flatten(1, 2)
        grid = (int(states.shape[1]), int(states.shape[2]))
        return ImageFeatures(patches.mean(dim=1), patches, grid, tuple(pyramid))

    def blocks(self) -> list[nn.Module]:
        return [block for stage in self.backbone.layers for block in stage.blocks]


def _run_swin_block(block: Any, states: Tensor) -> Tensor:
    """The block of timm, but that samples without a branch do not enter it."""

    def attend(states: Tensor) -> Tensor:
        update: Tensor = block._attn(block.norm1(states))
        return update

    def feed(states: Tensor) -> Tensor:
        update: Tensor = block.mlp(block.norm2(states))
        return update

    for depth, branch in ((block.drop_path1, attend), (block.drop_path2, feed)):
        if isinstance(depth, StochasticDepth):
            states = depth.add(states, branch)
        else:
            states = states + branch(states)
    return states


def _hide_wholly(backbone: nn.Module) -> None:
    """Raises the mask of shifted windows from -100 to a number whose exponential is 0.

    exp(-100) is no more visible in fp32 sums than 0, but it is denormal, and products with denormal
    numbers take a processor some fifteen times as long.
    """
    for name, buffer in backbone.named_buffers():
        if name.endswith("attn_mask"):
            buffer.masked_fill_(buffer < 0, _HIDDEN)


class QuickGelu(nn.Module):
    """``x sigmoid(1.702 x)``, CLIP's activation."""

    def forward(self, states: Tensor) -> Tensor:
        return states * torch.sigmoid(1.702 * states)


class VitEncoder(VisionEncoder):
    """timm's ViT with a class token; optionally regions through local-attention blocks."""

    def __init__(self, config: VitVision) -> None:
        super().__init__(config.image_size)
        from timm.models.vision_transformer import VisionTransformer

        self.backbone = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            num_classes=0,
            global_pool="",
            pre_norm=config.clip,
            act_layer=QuickGelu if config.gelu == "quick_gelu" else None,
            norm_layer=partial(nn.LayerNorm, eps=1e-5 if config.clip else 1e-6),
            drop_path_rate=config.drop_path,
        )
        self.width = config.width
        side = config.image_size // config.patch_size
        self.grid = (side, side)
        share_stochastic_depth(self.backbone)
        self.local_layers = config.local_layers
        self.recompute_local = False

    def _features(self, tokens: Tensor, before_local: Tensor | None) -> ImageFeatures:
        tokens = self.backbone.norm(tokens)
        patches = tokens[:, 1:]
        rows, columns = self.grid
        pyramid = (patches.transpose(1, 2).unflatten(2, (rows, columns)),)
        return ImageFeatures(tokens[:, 0], patches, self.grid, pyramid, before_local)

    def forward(self, images: Tensor) -> ImageFeatures:
        tokens = self.backbone.patch_embed(images)
        tokens = self.backbone.norm_pre(self.backbone._pos_embed(tokens))
        first_local = len(self.backbone.blocks) - self.local_layers
        for block in self.backbone.blocks[:first_local]:
            tokens = block(tokens)
        before_local = tokens if self.local_layers else None
        for block in self.backbone.blocks[first_local:]:
            tokens = block(tokens)
        return self._features(tokens, before_local)

    def concepts(
        self, features: ImageFeatures, image: Tensor, mask: Tensor, shown: Shown | None = None
    ) -> VisualConcepts:
        """Region rows run the local blocks attending to the class token and their own patches."""
        if features.before_local is None:
            return super().concepts(features, image, mask, shown)
        shown = shown or Shown.of(mask)
        # A concept that sees every patch is the image itself: it needs no rows of its own.
        images, rows = whole_images_of(features), shown.regional
        regions = RegionTokens(image[rows], mask[rows], shown.regional_visible)
        local = self.backbone.blocks[len(self.backbone.blocks) - self.local_layers :]
        states = regions.gather(features.before_local)
        states = run_local_blocks(local, states, regions, self.recompute_local)
        tokens = regions.spread(self.backbone.norm(states))
        own = torch.arange(len(rows), device=image.device)
        of_regions = VisualConcepts(tokens[:, 0], tokens[:, 1:], own, mask[rows])
        joined = join(images, of_regions)
        order = image.index_copy(0, rows, len(images) + own)
        return VisualConcepts(
            joined.cls[order],
            joined.patches,
            joined.patch_row[order],
            mask,
            shown.visible,
            base=features.patches,
        )

    def blocks(self) -> list[nn.Module]:
        return list(self.backbone.blocks)


class TimmEncoder(VisionEncoder):
    """Feature maps of any timm backbone; learnt positions are added to the last one's patches."""

    def __init__(self, config: TimmVision) -> None:
        super().__init__(config.image_size)
        self.backbone, channels, strides = make_network(
            config.name,
            config.options,
            config.stages,
            remedy="change the stages or the options to what this network takes",
        )
        self.width, stride = int(channels[-1]), int(strides[-1])
        if config.image_size % stride:
            raise ConfigError(
                f"vision.image_size is {config.image_size}, which is no multiple of the stride "
                f"{stride} of {config.name}'s stage {config.stages[-1]}; change one of them"
            )
        side = config.image_size // stride
        self.grid = (side, side)
        self.channels_last = getattr(self.backbone, "output_fmt", None) == "NHWC"
        # A convolution knows where things are only from its border padding; words such as "left"
        # need more.
        self.positions = nn.Parameter(torch.zeros(1, side * side, self.width))
        self.norm = nn.LayerNorm(self.width)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, images: Tensor) -> ImageFeatures:
        images = images.contiguous(memory_format=torch.channels_last)
        pyramid = tuple(self.backbone(images))
        if self.channels_last:  # timm's hierarchical transformers
            pyramid = tuple(states.permute(0, 3, 1, 2) for states in pyramid)
        last = pyramid[-1]
        patches = self.norm(last.flatten(2).transpose(1, 2) + self.positions)
        return ImageFeatures(patches.mean(dim=1), patches, self.grid, pyramid)


def build_vision(config: VisionConfig) -> VisionEncoder:
    """The encoder that a configuration describes."""
    if isinstance(config, SwinVision):
        return SwinEncoder(config)
    if isinstance(config, VitVision):
        return VitEncoder(config)
    if isinstance(config, DetrVision):
        from wholegrain.model.detr import DetrEncoder  # which builds on this module

        return DetrEncoder(config)
    return TimmEncoder(config)
