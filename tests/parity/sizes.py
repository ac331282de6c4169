"""Reads a model's sizes from the shapes of its checkpoint; what shapes cannot tell, from JSON.

Heads, the number of local layers and the activation leave no trace in a shape. Where the JSON does
not tell heads or local layers either (X-VLM gives its plain ViT no file of sizes), `candidates`
lists all that are possible, the usual one first, and the caller keeps the one that reproduces the
reference's image features.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.parity.folders import Folder
from wholegrain.model.config import ModelConfig, SwinVision, TextConfig, VisionConfig, VitVision

Shapes = Mapping[str, tuple[int, ...]]
BERT = "text_encoder.bert"
HEADS = ("num_attention_heads", "num_heads", "heads")
LOCAL = ("local_attn_depth", "local_layers")


def model_configs(folder: Folder) -> Iterator[ModelConfig]:
    """Configurations that fit a folder's checkpoint, the most likely first."""
    shapes = {name: tuple(shape) for name, shape in folder.shapes().items()}
    for vision in _visions(shapes, folder):
        yield ModelConfig(
            vision=vision,
            text=_text(shapes, folder.text),
            embed_dim=shapes["vision_proj.weight"][0],
            temperature=folder.config.get("temp", 0.07),
        )


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number that a name holds where `pattern` captures one."""
    found = (re.match(pattern, name) for name in shapes)
    return 1 + max((int(match.group(1)) for match in found if match), default=-1)


def _told(config: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)


def _text(shapes: Shapes, told: Mapping[str, Any]) -> TextConfig:
    layers = _count(shapes, rf"{BERT}\.encoder\.layer\.(\d+)\.")
    layer = f"{BERT}.encoder.layer"
    fusing = [n for n in range(layers) if f"{layer}.{n}.crossattention.self.key.bias" in shapes]
    vocabulary, width = shapes[f"{BERT}.embeddings.word_embeddings.weight"]
    return TextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        layers=layers,
        fusion_layer=fusing[0],
        heads=_told(told, HEADS) or width // 64,
        intermediate_size=shapes[f"{layer}.0.intermediate.dense.bias"][0],
        max_positions=shapes[f"{BERT}.embeddings.position_embeddings.weight"][0],
        type_vocab_size=shapes[f"{BERT}.embeddings.token_type_embeddings.weight"][0],
        norm_eps=told.get("layer_norm_eps", 1e-12),
    )


def _visions(shapes: Shapes, folder: Folder) -> Iterator[VisionConfig]:
    prefix = "vision_encoder."
    own = {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}
    size = folder.batch(folder.kinds()[0])["image"].shape[-1]
    if any(name.endswith("relative_position_bias_table") for name in own):
        yield _swin(own, size)
        return
    clip = "class_embedding" in own
    blocks = "encoder.layers" if clip else "blocks"
    patches = own["patch_embed.weight" if clip else "patch_embed.proj.weight"]
    width, depth = patches[0], _count(own, rf"{re.escape(blocks)}\.(\d+)\.")
    first = VitVision(
        image_size=size,
        patch_size=patches[-1],
        width=width,
        depth=depth,
        heads=1,
        mlp_ratio=own[f"{blocks}.0.mlp.fc1.bias"][0] / width,
        clip=clip,
        **_activation(folder, clip),
    )
    heads, local = _told(folder.vision, HEADS), _told(folder.vision, LOCAL)
    all_heads = [heads] if heads else _usual_first(width // 64, _divisors(width))
    all_local = _usual_first(4, range(depth)) if local is None else [min(max(0, local), depth)]
    for layers in all_local:
        for count in all_heads:
            yield dataclasses.replace(first, heads=count, local_layers=layers)


def _swin(own: Shapes, size: int) -> SwinVision:
    table = "attn.relative_position_bias_table"
    stages = range(_count(own, r"layers\.(\d+)\."))
    rows = own[f"layers.0.blocks.0.{table}"][0]
    return SwinVision(
        image_size=size,
        patch_size=own["patch_embed.proj.weight"][-1],
        embed_dim=own["patch_embed.proj.weight"][0],
        depths=tuple(_count(own, rf"layers\.{n}\.blocks\.(\d+)\.") for n in stages),
        heads=tuple(own[f"layers.{n}.blocks.0.{table}"][1] for n in stages),
        window=(math.isqrt(rows) + 1) // 2,
    )


def _activation(folder: Folder, clip: bool) -> dict[str, Any]:
    """The setting for an activation other than the encoder's usual one."""
    usual = "quick_gelu" if clip else "gelu"
    told = folder.vision.get("hidden_act") or usual
    return {} if told == usual else {"activation": told}


def _divisors(width: int) -> list[int]:
    return [count for count in range(1, width + 1) if width % count == 0]


def _usual_first(usual: int, values: Iterable[int]) -> list[int]:
    return sorted(values, key=lambda value: (value != usual, value))
