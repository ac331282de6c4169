"""TransVG and MMCA from torch's and torchvision's own modules, by the published names.

Written from the equations of the papers, for tests to hold the library against: an image of
ImageNet's mean and deviation, texts padded to the length of the position table, one text an image.
"""

from __future__ import annotations

import argparse
import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import wholegrain.torchvision_shim  # noqa: F401  before torchvision
from wholegrain.model.detr import IMAGENET_MEAN, IMAGENET_STD

State = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """Those of `TINY` run in milliseconds; the defaults are the published ones."""

    mmca: bool = True
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    planes: tuple[int, ...] = (64, 128, 256, 512)
    width: int = 256
    layers: int = 6
    feed_forward: int = 2048
    rank: int = 64
    embed: int = 128
    gate: int = 32
    words: int = 30522
    hidden: int = 768
    text_layers: int = 12
    text_heads: int = 12
    intermediate: int = 3072
    text_positions: int = 512
    max_text: int = 20
    patches: int = 400


TINY = Sizes(
    blocks=(2, 2, 2, 2),
    planes=(4, 4, 8, 8),
    width=16,
    layers=2,
    feed_forward=24,
    rank=4,
    embed=8,
    gate=8,
    words=57,
    hidden=24,
    text_layers=3,
    text_heads=3,
    intermediate=40,
    text_positions=20,
    max_text=6,
    patches=4,
)


class Gate(nn.Module):
    """``E = u + sigmoid(M(u + v)) v`` of a text t and the mean v of what the image holds."""

    def __init__(self, sizes: Sizes, channels: int, convolution: bool) -> None:
        super().__init__()
        self.visual_linear_static_down: nn.Module = (
            nn.Conv2d(channels, sizes.embed, 1, bias=False)
            if convolution
            else nn.Linear(channels, sizes.embed, bias=False)
        )
        self.textual_linear_static_down = nn.Linear(sizes.width, sizes.embed, bias=False)
        self.mm_feat_embed_transform = nn.Sequential(
            nn.Linear(sizes.embed, sizes.gate), nn.ReLU(), nn.Linear(sizes.gate, sizes.embed)
        )

    def forward(self, states: Tensor, text: Tensor) -> Tensor:
        seen = self.visual_linear_static_down(states)
        mean = seen.mean(dim=(2, 3)) if seen.dim() == 4 else seen.mean(dim=1)
        words = self.textual_linear_static_down(text)
        return words + self.mm_feat_embed_transform(words + mean).sigmoid() * mean


class Update(nn.Module):
    """``B diag(w) A x`` with ``w = E Wg + b``."""

    def __init__(self, sizes: Sizes, channels: int, convolution: bool) -> None:
        super().__init__()
        rank = sizes.rank
        if convolution:
            self.visual_conv_static_down = nn.Conv2d(channels, rank, 3, padding=1)
            self.visual_conv_static_up = nn.Conv2d(rank, channels, 1)
        else:
            self.visual_linear_static_down = nn.Linear(channels, rank, bias=False)
            self.visual_linear_static_up = nn.Linear(rank, channels, bias=False)
        self.convolution = convolution
        self.gate_fusion = Gate(sizes, channels, convolution)
        self.text_linear_w = nn.Parameter(torch.zeros(sizes.embed, rank))
        self.text_linear_b = nn.Parameter(torch.ones(rank))

    def forward(self, states: Tensor, text: Tensor) -> Tensor:
        w = self.gate_fusion(states, text) @ self.text_linear_w + self.text_linear_b
        if self.convolution:
            inner = self.visual_conv_static_down(states) * w[:, :, None, None]
            return self.visual_conv_static_up(inner)
        return self.visual_linear_static_up(self.visual_linear_static_down(states) * w[:, None])


class Layer(nn.Module):
    """A post-norm layer with positions on queries and keys, and MMCA's updates where given."""

    def __init__(self, sizes: Sizes, mmca: bool) -> None:
        super().__init__()
        width = sizes.width
        self.self_attn = nn.MultiheadAttention(width, 8, batch_first=True)
        self.linear1 = nn.Linear(width, sizes.feed_forward)
        self.linear2 = nn.Linear(sizes.feed_forward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        if mmca:
            self.text_linear_q = Update(sizes, width, convolution=False)
            self.text_linear_k = Update(sizes, width, convolution=False)
        self.mmca = mmca

    def forward(
        self, states: Tensor, positions: Tensor, hidden: Tensor | None, text: Tensor
    ) -> Tensor:
        query = key = states + positions
        if self.mmca:
            query = query + self.text_linear_q(states, text)
            key = key + self.text_linear_k(states, text)
        update, _ = self.self_attn(query, key, states, key_padding_mask=hidden)
        states = self.norm1(states + update)
        return self.norm2(states + self.linear2(self.linear1(states).relu()))


class Backbone(nn.Module):
    """A ResNet of bottlenecks; MMCA's updates stand beside the last block of three stages."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        from torchvision.models.resnet import Bottleneck
        from torchvision.ops import FrozenBatchNorm2d as Norm

        parts: list[tuple[str, nn.Module]] = [
            ("conv1", nn.Conv2d(3, 64, 7, 2, 3, bias=False)),
            ("bn1", Norm(64)),
            ("relu", nn.ReLU()),
            ("maxpool", nn.MaxPool2d(3, 2, 1)),
        ]
        channels = 64
        for stage, (count, planes) in enumerate(zip(sizes.blocks, sizes.planes, strict=True)):
            blocks = []
            for number in range(count):
                stride = 2 if stage and not number else 1
                shortcut = None
                if not number:
                    shortcut = nn.Sequential(
                        nn.Conv2d(channels, 4 * planes, 1, stride, bias=False), Norm(4 * planes)
                    )
                blocks.append(Bottleneck(channels, planes, stride, shortcut, norm_layer=Norm))
                channels = 4 * planes
            parts.append((f"layer{stage + 1}", nn.Sequential(*blocks)))
        self.body = nn.Sequential(OrderedDict(parts))
        if sizes.mmca:
            widths = [4 * planes for planes in sizes.planes[1:]]
            self.multimodal_layers = nn.ModuleList(
                Update(sizes, width, convolution=True) for width in widths
            )
        self.mmca = sizes.mmca

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        states = images
        for name, part in self.body.named_children():
            if not (self.mmca and name in ("layer2", "layer3", "layer4")):
                states = part(states)
                continue
            *blocks, last = part.children()
            for block in blocks:
                states = block(states)
            update = self.multimodal_layers[int(name[-1]) - 2]
            states = last(states) + update(states, text)
        return states


class Transvg(nn.Module):
    """The whole, by its names."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        import transformers

        self.sizes = sizes
        width = sizes.width
        self.visumodel = nn.Module()
        self.visumodel.backbone = nn.Sequential(Backbone(sizes))
        self.visumodel.input_proj = nn.Conv2d(4 * sizes.planes[-1], width, 1)
        self.visumodel.transformer = _stack(sizes, sizes.mmca)
        self.textmodel = nn.Module()
        self.textmodel.bert = transformers.BertModel(
            transformers.BertConfig(
                vocab_size=sizes.words,
                hidden_size=sizes.hidden,
                num_hidden_layers=sizes.text_layers,
                num_attention_heads=sizes.text_heads,
                intermediate_size=sizes.intermediate,
                max_position_embeddings=sizes.text_positions,
            )
        )
        self.vl_pos_embed = nn.Embedding(1 + sizes.max_text + sizes.patches, width)
        self.reg_token = nn.Embedding(1, width)
        self.visu_proj = nn.Linear(width, width)
        self.text_proj = nn.Linear(sizes.hidden, width)
        self.vl_transformer = _stack(sizes, mmca=False)
        self.bbox_embed = nn.Module()
        self.bbox_embed.layers = nn.ModuleList(
            [nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 4)]
        )

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Boxes (T, 4) cxcywh of images (T, 3, H, W) and texts (T, max_text)."""
        words = self.text_proj(self.textmodel.bert(ids, attention_mask=mask).last_hidden_state)
        weight = mask[..., None].to(words.dtype)
        text = (words * weight).sum(dim=1) / weight.sum(dim=1)
        maps = self.visumodel.input_proj(self.visumodel.backbone[0](images, text))
        states, places = maps.flatten(2).transpose(1, 2), sine(maps).to(maps.dtype)
        for layer in self.visumodel.transformer.encoder.layers:
            states = layer(states, places, None, text)
        register = self.reg_token.weight[None].expand(len(words), 1, -1)
        states = torch.cat([register, words, self.visu_proj(states)], dim=1)
        hidden = torch.zeros(states.shape[:2], dtype=torch.bool)
        hidden[:, 1 : 1 + mask.shape[1]] = ~mask
        for layer in self.vl_transformer.encoder.layers:
            states = layer(states, self.vl_pos_embed.weight, hidden, text)
        answer = states[:, 0]
        *inner, last = self.bbox_embed.layers
        for part in inner:
            answer = part(answer).relu()
        return last(answer).sigmoid()


def _stack(sizes: Sizes, mmca: bool) -> Any:
    stack: Any = nn.Module()
    stack.encoder = nn.Module()
    stack.encoder.layers = nn.ModuleList(Layer(sizes, mmca) for _ in range(sizes.layers))
    return stack


def sine(maps: Tensor) -> Tensor:
    """Normalised sine codes (P, D) of a map (I, D, H, W): rows in the first half."""
    _, width, rows, columns = maps.shape
    ones = torch.ones(rows, columns, dtype=torch.float64)
    angles = []
    for axis in (0, 1):
        place = ones.cumsum(dim=axis)
        last = place.select(axis, -1).unsqueeze(axis)
        angles.append(place / (last + 1e-6) * 2 * math.pi)
    channel = torch.arange(width // 2, dtype=torch.float64)
    frequency = 10000 ** (2 * torch.div(channel, 2, rounding_mode="floor") / (width // 2))
    halves = []
    for angle in angles:
        turned = angle[..., None] / frequency
        halves.append(torch.where(channel % 2 == 0, turned.sin(), turned.cos()))
    return torch.cat(halves, dim=-1).flatten(0, 1)


def published(sizes: Sizes, seed: int = 0) -> Transvg:
    """A model none of whose weights is trivial, in evaluation mode."""
    torch.manual_seed(seed)
    model = Transvg(sizes).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
        # Frozen norms let maps grow, and a saturated softmax would hide what comes before it.
        model.visumodel.input_proj.weight.mul_(0.02)
    return model


def write(path: Path, state: State) -> Path:
    """A checkpoint as the published training stores it."""
    content = {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]},
        "lr_scheduler": {"last_epoch": 3},
        "epoch": 3,
        "args": argparse.Namespace(imsize=64, max_query_len=6, backbone="resnet50"),
        "val_accu": 0.5,
    }
    torch.save(content, path)
    return path


def normalised(pixels: Tensor) -> Tensor:
    """uint8 (I, 3, H, W) as the published model reads them."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels.double() / 255 - mean.double()) / std.double()
