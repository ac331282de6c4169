"""Which image encoders can be ScanFormer's body, and what it reads of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wholegrain.errors import ConfigError
from wholegrain.model.detr import DetrEncoder
from wholegrain.model.vision import SwinEncoder, VisionEncoder, VitEncoder

_REMEDY = (
    "use vision.kind vit (ViT, DeiT or CLIP) with local_layers 0, drop_path 0 and at least 2 blocks"
)
_RELATIVE = ("relative_position_bias_table", "rel_pos", "rel_pos_h", "rope")


def check_body(vision: VisionEncoder, scales: int) -> None:
    """Makes sure that equal patches stay equal in the encoder's blocks, and that sizes divide.

    Raises:
        ConfigError: they would not, for the reason that the message gives.
    """
    if not isinstance(vision, VitEncoder):
        _refuse(_why_not(vision))
    if len(vision.blocks()) < 2:
        _refuse(f"vision.depth is {len(vision.blocks())}, which cannot be cut into two encoders")
    if vision.local_layers:
        _refuse(f"vision.local_layers is {vision.local_layers}: such blocks run once a region")
    if relative := _relative_positions(vision):
        _refuse(
            f"the image encoder has relative positions ({relative}): they tell equal patches apart"
        )
    if vision.backbone.pos_embed is None:
        _refuse("the image encoder has no absolute positions, so its patches lie nowhere")
    rates = [float(getattr(part, "drop_prob", 0.0)) for part in vision.backbone.modules()]
    if max(rates) > 0:
        _refuse(
            f"vision.drop_path is {max(rates):g}: it would leave a branch out for some of the "
            "patches that one token stands for"
        )
    unit = patch_side(vision) * 2 ** (scales - 1)
    if vision.image_size % unit:
        raise ConfigError(
            f"vision.image_size is {vision.image_size}, but with {scales} fusion.scales it is "
            f"halved {scales - 1} times and must be a multiple of {unit}; change one of them"
        )


def _why_not(vision: VisionEncoder) -> str:
    if isinstance(vision, SwinEncoder):
        return (
            "vision.kind is 'swin', whose windows and relative positions tell equal patches apart"
        )
    if isinstance(vision, DetrEncoder):
        return "vision.kind is 'detr', whose layers add positions, which tell equal patches apart"
    return "vision.kind is 'timm', whose stages have no plain blocks that a text could enter"


def _refuse(reason: str) -> None:
    raise ConfigError(f"fusion.kind is 'scan', but {reason}; {_REMEDY}")


def _relative_positions(vision: VisionEncoder) -> str | None:
    for name, module in vision.backbone.named_modules():
        for part in _RELATIVE:
            if getattr(module, part, None) is not None:
                return f"{name}.{part}".lstrip(".")
    return None


def patch_side(vision: VisionEncoder) -> int:
    """Side of a patch in pixels."""
    return int(vision.backbone.patch_embed.patch_size[0])


def embed_patches(vision: VisionEncoder, patches: Tensor) -> Tensor:
    """(..., D) of patches of pixels (..., 3 p^2): the encoder's patch embedding, patch by patch."""
    embedding: Any = vision.backbone.patch_embed
    weight: Tensor = embedding.proj.weight
    embedded: Tensor = embedding.norm(F.linear(patches, weight.flatten(1), embedding.proj.bias))
    return embedded


def scale_positions(vision: VisionEncoder, halvings: int) -> Tensor:
    """Positions (n, D) of a grid halved so many times: means of the learnt table of the finest."""
    table: Tensor = vision.backbone.pos_embed
    grid = table[0, 1:].T.unflatten(1, vision.grid)[None]
    pooled = F.avg_pool2d(grid, 2**halvings) if halvings else grid
    return pooled[0].flatten(1).T


def class_state(vision: VisionEncoder) -> Tensor:
    """(D,) the encoder's class token at its position."""
    backbone: Any = vision.backbone
    state: Tensor = backbone.cls_token[0, 0] + backbone.pos_embed[0, 0]
    return state


def photo_patches(vision: VisionEncoder, pixel_mask: Tensor, halvings: int) -> Tensor:
    """Bool (I, n): the patches of a halved grid that hold any photo; `pixel_mask` (I, H, W)."""
    side = patch_side(vision) * 2**halvings
    cells = pixel_mask.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)
    return torch.any(cells.flatten(3), dim=3).flatten(1)
