"""The three image encoders of X-VLM, written as its specification reads: plain and slow.

This is a second opinion for the parity tests. It shares no code with `wholegrain.model` and none
with timm, and its parameters carry the names of X-VLM's checkpoints.

Each encoder answers ``encoder(images)`` with the sequences (I, 1 + P, D) of whole images, and
``encoder(images, image_of_row, visible)`` with those of region rows (B, 1 + P, D) and of the images
(I, 1 + P, D); `visible` is 0/1 (B, 1 + P) with the class token first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = -10000.0  # added to the score of a key that a region must not see


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, added: Tensor | None) -> Tensor:
    """Softmax attention (B, M, D), one head after the other; `added` (B or 1, M, N) on scores."""
    size = query.shape[-1] // heads
    answers = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = (query[..., part] * size**-0.5) @ key[..., part].transpose(-1, -2)
        if added is not None:
            scores = scores + (added[:, head] if added.ndim == 4 else added)
        answers.append(scores.softmax(dim=-1) @ value[..., part])
    return torch.cat(answers, dim=-1)


def quick_gelu(states: Tensor) -> Tensor:
    return states * torch.sigmoid(1.702 * states)


ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, activation: str = "gelu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, states: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(states)))


# --- Swin -------------------------------------------------------------------------------------


def position_index(window: int) -> Tensor:
    """(w * w, w * w) row of the bias table for each pair of places in a window."""
    place = [(row, column) for row in range(window) for column in range(window)]
    side = 2 * window - 1
    return torch.tensor(
        [[(r - s + window - 1) * side + (c - d + window - 1) for s, d in place] for r, c in place]
    )


def shift_mask(side: int, window: int, shift: int) -> Tensor:
    """(windows, w * w, w * w): -100 between places that only the cyclic shift made neighbours."""
    band = [0 if p < side - window else 1 if p < side - shift else 2 for p in range(side)]
    region = torch.tensor([[3 * r + c for c in band] for r in band])
    cut = cut_windows(region[None, :, :, None], window)[..., 0]
    return torch.where(cut[:, None, :] == cut[:, :, None], 0.0, -100.0)


def cut_windows(grid: Tensor, window: int) -> Tensor:
    """(B, H, W, C) to (B * windows, w * w, C), windows row by row."""
    found = []
    for image in grid:
        for top in range(0, grid.shape[1], window):
            for left in range(0, grid.shape[2], window):
                found.append(image[top : top + window, left : left + window].flatten(0, 1))
    return torch.stack(found)


def join_windows(cut: Tensor, window: int, side: int) -> Tensor:
    """The inverse of `cut_windows` for square grids."""
    across = side // window
    images = []
    for first in range(0, len(cut), across * across):
        bands = [
            torch.cat(
                [
                    cut[first + down * across + along].unflatten(0, (window, window))
                    for along in range(across)
                ],
                dim=1,
            )
            for down in range(across)
        ]
        images.append(torch.cat(bands, dim=0))
    return torch.stack(images)


class WindowAttention(nn.Module):
    def __init__(self, width: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", position_index(window))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """States (images * windows, w * w, C); mask (windows, w * w, w * w)."""
        bias = self.relative_position_bias_table[self.relative_position_index]
        added = bias.permute(2, 0, 1)[None]  # (1, heads, w * w, w * w)
        if mask is not None:
            added = added + mask.repeat(len(states) // len(mask), 1, 1)[:, None]
        query, key, value = self.qkv(states).chunk(3, dim=-1)
        return self.proj(attend(query, key, value, self.heads, added))


class SwinBlock(nn.Module):
    attn_mask: Tensor | None

    def __init__(self, width: int, side: int, window: int, heads: int, shifted: bool) -> None:
        super().__init__()
        self.side, self.window = side, min(window, side)
        self.shift = window // 2 if shifted and side > window else 0
        mask = shift_mask(side, window, self.shift) if self.shift else None
        self.register_buffer("attn_mask", mask)
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, self.window, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, states: Tensor) -> Tensor:
        grid = self.norm1(states).unflatten(1, (self.side, self.side))
        grid = grid.roll((-self.shift, -self.shift), dims=(1, 2))
        cut = self.attn(cut_windows(grid, self.window), self.attn_mask)
        grid = join_windows(cut, self.window, self.side)
        grid = grid.roll((self.shift, self.shift), dims=(1, 2))
        states = states + grid.flatten(1, 2)
        return states + self.mlp(self.norm2(states))


class PatchMerging(nn.Module):
    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, states: Tensor) -> Tensor:
        grid = states.unflatten(1, (self.side, self.side))
        quarters = [grid[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self.reduction(self.norm(torch.cat(quarters, dim=-1).flatten(1, 2)))


class SwinStage(nn.Module):
    def __init__(
        self, width: int, side: int, window: int, depth: int, heads: int, last: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(width, side, window, heads, shifted=n % 2 == 1) for n in range(depth)
        )
        self.downsample = None if last else PatchMerging(width, side)

    def forward(self, states: Tensor) -> Tensor:
        for block in self.blocks:
            states = block(states)
        return states if self.downsample is None else self.downsample(states)


class SwinPatches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.proj(images).flatten(2).transpose(1, 2))


class Swin(nn.Module):
    """The vector of an image is the mean of its final patches, of a region the mean of its own."""

    def __init__(
        self, image_size: int, width: int, depths: Sequence[int], heads: Sequence[int], window: int
    ) -> None:
        super().__init__()
        self.patch_embed = SwinPatches(width)
        self.layers = nn.ModuleList(
            SwinStage(
                width * 2**n, image_size // 4 // 2**n, window, depth, heads[n], n == len(depths) - 1
            )
            for n, depth in enumerate(depths)
        )
        self.width = width * 2 ** (len(depths) - 1)
        self.norm = nn.LayerNorm(self.width)

    def forward(
        self,
        images: Tensor,
        image_of_row: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Any:
        states = self.patch_embed(images)
        for stage in self.layers:
            states = stage(states)
        patches = self.norm(states)
        whole = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)
        if image_of_row is None or visible is None:
            return whole
        weight = visible[:, 1:, None].to(patches.dtype)
        rows = patches[image_of_row]
        mean = (weight * rows).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)
        return torch.cat([mean, rows], dim=1), whole


# --- ViT and CLIP-ViT ---------------------------------------------------------------------------


def run_blocks(
    blocks: Sequence[nn.Module],
    local: int,
    states: Tensor,
    image_of_row: Tensor | None,
    visible: Tensor | None,
) -> Tensor:
    """The last `local` blocks see B region rows in front of the I whole images."""
    first = len(blocks) - local
    for block in blocks[:first]:
        states = block(states, None)
    added = None
    if image_of_row is not None and visible is not None:
        full = torch.ones(states.shape[:2], dtype=visible.dtype)
        states = torch.cat([states[image_of_row], states])
        added = (1.0 - torch.cat([visible, full]).to(states.dtype)) * HIDDEN
        added = added[:, None, :]  # the same for every query
    for block in blocks[first:]:
        states = block(states, added)
    return states


def split_rows(states: Tensor, image_of_row: Tensor | None) -> Any:
    if image_of_row is None:
        return states
    return states[: len(image_of_row)], states[len(image_of_row) :]


class VitAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, states: Tensor, added: Tensor | None) -> Tensor:
        query, key, value = self.qkv(states).chunk(3, dim=-1)
        return self.proj(attend(query, key, value, self.heads, added))


class VitBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = VitAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(self, states: Tensor, added: Tensor | None) -> Tensor:
        states = states + self.attn(self.norm1(states), added)
        return states + self.mlp(self.norm2(states))


class VitPatches(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)


class Vit(nn.Module):
    """ViT and DeiT, in timm's names."""

    def __init__(
        self,
        image_size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        local: int = 4,
    ) -> None:
        super().__init__()
        self.width, self.local = width, local
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch) ** 2, width))
        self.patch_embed = VitPatches(width, patch)
        self.blocks = nn.ModuleList(VitBlock(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(
        self,
        images: Tensor,
        image_of_row: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Any:
        patches = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        states = tokens + self.pos_embed
        states = run_blocks(list(self.blocks), self.local, states, image_of_row, visible)
        return split_rows(self.norm(states), image_of_row)


class ClipAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, states: Tensor, added: Tensor | None) -> Tensor:
        query, key, value = self.q_proj(states), self.k_proj(states), self.v_proj(states)
        return self.out_proj(attend(query, key, value, self.heads, added))


class ClipLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.self_attn = ClipAttention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden, activation)
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, states: Tensor, added: Tensor | None) -> Tensor:
        states = states + self.self_attn(self.layer_norm1(states), added)
        return states + self.mlp(self.layer_norm2(states))


class ClipLayers(nn.Module):
    def __init__(self, depth: int, width: int, heads: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ClipLayer(width, heads, hidden, activation) for _ in range(depth)
        )


class ClipVit(nn.Module):
    """CLIP's vision transformer, in Hugging Face's names with X-VLM's two own tables."""

    def __init__(
        self,
        image_size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        local: int = 4,
        activation: str = "quick_gelu",
    ) -> None:
        super().__init__()
        self.width, self.local = width, local
        count = 1 + (image_size // patch) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embed = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.pos_embed = nn.Embedding(count, width)
        self.register_buffer("position_ids", torch.arange(count)[None])
        self.pre_layrnorm = nn.LayerNorm(width)
        self.encoder = ClipLayers(depth, width, heads, hidden, activation)
        self.post_layernorm = nn.LayerNorm(width)

    def forward(
        self,
        images: Tensor,
        image_of_row: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Any:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(images), 1, -1)
        states = torch.cat([first, patches], dim=1) + self.pos_embed(self.position_ids)
        states = self.pre_layrnorm(states)
        layers = list(self.encoder.layers)
        states = run_blocks(layers, self.local, states, image_of_row, visible)
        return split_rows(self.post_layernorm(states), image_of_row)


def build_vision(config: dict[str, Any], vision: dict[str, Any]) -> nn.Module:
    """The encoder that a fixture's `config` and `vision_config` describe."""
    if config["use_swin"]:
        return Swin(
            config["image_res"],
            vision["embed_dim"],
            vision["depths"],
            vision["num_heads"],
            vision["window_size"],
        )
    width = vision["vision_width"]
    sizes = (
        config["image_res"],
        config["patch_size"],
        width,
        vision["num_hidden_layers"],
        vision["num_attention_heads"],
        vision.get("intermediate_size", 4 * width),
        vision.get("local_attn_depth", 4),
    )
    return ClipVit(*sizes, vision["hidden_act"]) if config["use_clip_vit"] else Vit(*sizes)
