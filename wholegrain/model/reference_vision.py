"""Slow reference of the image encoders: explicit softmax attention, every region over all patches.

X-VLM's way of computing Swin and the plain transformers, written to be read; see
`wholegrain.model.reference`. Encoders without a form of their own here run as they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.model.concepts import ImageFeatures
from wholegrain.model.config import SwinVision, VisionConfig, VitVision

_HIDDEN = -10_000.0  # X-VLM's score of a key that may not be seen; its weight is exactly 0
_OTHER_REGION = -100.0  # Swin's score of a patch that the cyclic shift brought from elsewhere
_SWIN_EPS = 1e-5


def encode_images(encoder: nn.Module, config: VisionConfig, images: Tensor) -> ImageFeatures:
    """Image features of an encoder.

    Args:
        encoder: the model's `vision`; drops blocks where it is in training mode.
        config: of the images.
        images: normalised (I, 3, R, R).
    """
    if isinstance(config, SwinVision):
        return encode_swin(encoder, config, images)
    if isinstance(config, VitVision):
        return encode_vit(encoder, config, images)
    features: ImageFeatures = encoder(images)
    return features


def concept_sequences(
    encoder: nn.Module, config: VisionConfig, features: ImageFeatures, image: Tensor, mask: Tensor
) -> Tensor:
    """Each concept's vector and all patches of its row: (C, 1 + P, Dv); X-VLM 1.2.

    The vector is the mean of the patches inside the box, or, with local layers, the class token of
    a row of its own that attends to itself and to the patches inside. Patches outside stay in the
    sequence; cross-attention masks them.

    Args:
        encoder: the model's `vision`.
        config: of the images.
        features: of `encode_images`.
        image: (C,) the image of each concept.
        mask: bool (C, P), at least one True a row.
    """
    if features.before_local is None or not isinstance(config, VitVision):
        patches = features.patches[image]
        weight = mask.to(patches.dtype) / mask.sum(dim=1, keepdim=True)
        return torch.cat([torch.einsum("cp,cpd->cd", weight, patches)[:, None], patches], dim=1)
    if bool(mask.all()):  # a batch of whole images has no regions to run the layers for
        return torch.cat([features.cls[:, None], features.patches], dim=1)[image]
    visible = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
    tokens = features.before_local[image]
    for number in range(config.depth - config.local_layers, config.depth):
        tokens = _vit_block(encoder, config, number, tokens, visible)
    return _vit_norm(encoder.get_submodule("backbone.norm"), config, tokens)


def encode_vit(encoder: nn.Module, config: VitVision, images: Tensor) -> ImageFeatures:
    """ViT, DeiT or CLIP's image encoder; arguments as for `encode_images`."""
    backbone: Any = encoder.get_submodule("backbone")
    embed = backbone.patch_embed.proj
    patches = F.conv2d(images, embed.weight, embed.bias, stride=config.patch_size)
    first = backbone.cls_token.expand(len(images), -1, -1)
    tokens = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1) + backbone.pos_embed
    if config.clip:
        tokens = _vit_norm(backbone.norm_pre, config, tokens)
    before_local = None
    for number in range(config.depth):
        if config.local_layers and number == config.depth - config.local_layers:
            before_local = tokens
        tokens = _vit_block(encoder, config, number, tokens, None)
    tokens = _vit_norm(backbone.norm, config, tokens)
    side = config.image_size // config.patch_size
    pyramid = (tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side)),)
    return ImageFeatures(tokens[:, 0], tokens[:, 1:], (side, side), pyramid, before_local)


def _vit_norm(norm: Any, config: VitVision, tokens: Tensor) -> Tensor:
    eps = 1e-5 if config.clip else 1e-6
    return F.layer_norm(tokens, tokens.shape[-1:], norm.weight, norm.bias, eps)


def _vit_block(
    encoder: nn.Module, config: VitVision, number: int, tokens: Tensor, visible: Tensor | None
) -> Tensor:
    """One block over rows (B, N, D); `visible` bool (B, N) hides keys."""
    block: Any = encoder.get_submodule(f"backbone.blocks.{number}")
    rate = config.drop_path * number / max(1, config.depth - 1) if block.training else 0.0
    qkv = F.linear(
        _vit_norm(block.norm1, config, tokens), block.attn.qkv.weight, block.attn.qkv.bias
    )
    query, key, value = qkv.unflatten(-1, (3, config.heads, -1)).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
    if visible is not None:
        scores = scores + _HIDDEN * (~visible[:, None, None, :]).to(scores.dtype)
    attended = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
    update = F.linear(attended, block.attn.proj.weight, block.attn.proj.bias)
    tokens = tokens + _drop_path(update, rate)
    normed = _vit_norm(block.norm2, config, tokens)
    hidden = F.linear(normed, block.mlp.fc1.weight, block.mlp.fc1.bias)
    quick = config.gelu == "quick_gelu"
    hidden = hidden * torch.sigmoid(1.702 * hidden) if quick else F.gelu(hidden)
    update = F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)
    return tokens + _drop_path(update, rate)


def encode_swin(encoder: nn.Module, config: SwinVision, images: Tensor) -> ImageFeatures:
    """Swin transformer (Liu et al. 2021); arguments as for `encode_images`."""
    backbone: Any = encoder.get_submodule("backbone")
    embed = backbone.patch_embed
    states = F.conv2d(images, embed.proj.weight, embed.proj.bias, stride=config.patch_size)
    states = _norm(embed.norm, states.permute(0, 2, 3, 1))  # (I, rows, columns, width)
    rates = torch.linspace(0, config.drop_path, sum(config.depths)).tolist()
    pyramid = []
    for stage, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True)):
        parts = backbone.layers[stage]
        if stage:
            states = _merge_patches(parts.downsample, states)
        for index in range(depth):
            states = _swin_block(
                parts.blocks[index], config, states, heads, index % 2 == 1, rates.pop(0)
            )
        pyramid.append(states.permute(0, 3, 1, 2))
    states = _norm(backbone.norm, states)
    grid = (int(states.shape[1]), int(states.shape[2]))
    patches = states.flatten(1, 2)
    return ImageFeatures(patches.mean(dim=1), patches, grid, tuple(pyramid))


def _norm(norm: Any, states: Tensor) -> Tensor:
    return F.layer_norm(states, states.shape[-1:], norm.weight, norm.bias, _SWIN_EPS)


def _merge_patches(merging: Any, states: Tensor) -> Tensor:
    """Four neighbours become one patch of twice the width, in X-VLM's order (spec 1.1)."""
    neighbours = [states[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    normed = _norm(merging.norm, torch.cat(neighbours, dim=-1))
    return F.linear(normed, merging.reduction.weight)


def _swin_block(
    block: Any, config: SwinVision, states: Tensor, heads: int, odd: bool, drop: float
) -> Tensor:
    rate = drop if block.training else 0.0
    side = states.shape[1]
    # Where one window holds the whole map there is nothing to shift.
    window = min(config.window, side)
    shift = window // 2 if odd and side > window else 0
    update = _window_attention(block.attn, _norm(block.norm1, states), heads, window, shift)
    states = states + _drop_path(update, rate)
    hidden = F.linear(_norm(block.norm2, states), block.mlp.fc1.weight, block.mlp.fc1.bias)
    update = F.linear(F.gelu(hidden), block.mlp.fc2.weight, block.mlp.fc2.bias)
    return states + _drop_path(update, rate)


def _drop_path(update: Tensor, rate: float) -> Tensor:
    """Stochastic depth: whole images lose the update, the others are scaled up."""
    if rate == 0.0:
        return update
    kept = torch.rand(len(update), *[1] * (update.ndim - 1), device=update.device) >= rate
    return update * kept.to(update.dtype) / (1 - rate)


def _window_attention(
    attention: Any, states: Tensor, heads: int, window: int, shift: int
) -> Tensor:
    """Self-attention inside windows of a map (I, side, side, width) that is rolled by `shift`."""
    images, side = states.shape[:2]
    padded = -(-side // window) * window
    rolled = states.roll((-shift, -shift), (1, 2))
    rolled = F.pad(rolled, (0, 0, 0, padded - side, 0, padded - side))
    cut = _windows(rolled, window)  # (I * windows, window^2, width)
    qkv = F.linear(cut, attention.qkv.weight, attention.qkv.bias)
    query, key, value = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    scores = scores + _position_bias(attention.relative_position_bias_table, window)
    if shift:
        apart = _region_mask(padded, window, shift).to(scores.device, scores.dtype)
        scores = scores.unflatten(0, (images, -1)) + apart[:, None]  # every head alike
        scores = scores.flatten(0, 1)
    attended = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
    projected = F.linear(attended, attention.proj.weight, attention.proj.bias)
    back = _unwindows(projected, window, padded)[:, :side, :side]
    return back.roll((shift, shift), (1, 2))


def _windows(states: Tensor, window: int) -> Tensor:
    """Map (I, side, side, width) to windows (I * windows, window^2, width), row-major."""
    cut = states.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return cut.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def _unwindows(states: Tensor, window: int, side: int) -> Tensor:
    """The way back from `_windows`."""
    count = side // window
    cut = states.unflatten(1, (window, window)).unflatten(0, (-1, count, count))
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _position_bias(table: Tensor, window: int) -> Tensor:
    """Bias (heads, window^2, window^2) of a table ((2 w - 1)^2, heads) of relative places."""
    place = torch.arange(window, device=table.device)
    row, column = (axis.flatten() for axis in torch.meshgrid(place, place, indexing="ij"))
    down = row[:, None] - row[None] + window - 1
    right = column[:, None] - column[None] + window - 1
    return table[down * (2 * window - 1) + right].permute(2, 0, 1)


def _region_mask(side: int, window: int, shift: int) -> Tensor:
    """Scores (windows, window^2, window^2): -100 between patches that were not neighbours.

    The shift rolls the map's first rows and columns to its end, so the last window of each axis
    holds two regions.
    """
    band = torch.zeros(side)
    band[side - window : side - shift] = 1
    band[side - shift :] = 2
    region = (3 * band[:, None] + band[None])[None, :, :, None]
    cut = _windows(region, window).squeeze(-1)
    return _OTHER_REGION * (cut[:, :, None] != cut[:, None, :]).float()
