"""Files as X-VLM publishes them, made from random weights: names and shapes by its documents."""

from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wholegrain.model.config import ModelConfig, SwinVision, TextConfig, VisionConfig, VitVision

WIDTH, VOCABULARY, POSITIONS, HIDDEN, EMBED = 24, 57, 20, 40, 8
TEXT = TextConfig(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    layers=4,
    fusion_layer=2,
    heads=3,
    intermediate_size=HIDDEN,
    max_positions=POSITIONS,
)
VISIONS: dict[str, VisionConfig] = {
    "swin": SwinVision(image_size=56, embed_dim=8, depths=(2, 2), heads=(1, 2), window=7),
    "vit": VitVision(image_size=32, patch_size=8, width=24, depth=2, heads=3, local_layers=1),
    "clip": VitVision(
        image_size=32, patch_size=8, width=24, depth=2, heads=3, local_layers=1, clip=True
    ),
}
CONFIGS = {k: ModelConfig(vision=v, text=TEXT, embed_dim=EMBED) for k, v in VISIONS.items()}
# What shapes cannot tell of these models.
TOLD: dict[str, dict[str, int]] = {
    "swin": {"text_heads": 3},
    "vit": {"text_heads": 3, "vision_heads": 3, "local_layers": 1},
    "clip": {"text_heads": 3, "vision_heads": 3, "local_layers": 1},
}
STORED = {"use_clip_vit": False, "embed_dim": EMBED, "temp": 0.07, "vision_config": "a.json"}
HEADS = {
    "retrieval": ("temp", "vision_proj.", "text_proj.", "itm_head."),
    "grounding": ("bbox_head.",),
}
State = dict[str, Tensor]


class Made:
    """Random tensors by the names and shapes of a published file."""

    def __init__(self) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(0)

    def put(self, name: str, *shape: int) -> None:
        self.state[name] = torch.randn(shape, generator=self.generator)

    def linear(self, name: str, out: int, width: int, bias: bool = True) -> None:
        self.put(f"{name}.weight", out, width)
        if bias:
            self.put(f"{name}.bias", out)

    def norm(self, name: str, width: int) -> None:
        self.put(f"{name}.weight", width)
        self.put(f"{name}.bias", width)


def text_parts(made: Made, vision_width: int) -> None:
    bert, width = "text_encoder.bert", WIDTH
    made.state[f"{bert}.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    for name, rows in (("word", VOCABULARY), ("position", POSITIONS), ("token_type", 2)):
        made.put(f"{bert}.embeddings.{name}_embeddings.weight", rows, width)
    made.norm(f"{bert}.embeddings.LayerNorm", width)
    for n in range(4):
        layer = f"{bert}.encoder.layer.{n}"
        for block in ("attention", "crossattention")[: 1 if n < 2 else 2]:
            source = width if block == "attention" else vision_width
            made.linear(f"{layer}.{block}.self.query", width, width)
            made.linear(f"{layer}.{block}.self.key", width, source)
            made.linear(f"{layer}.{block}.self.value", width, source)
            made.linear(f"{layer}.{block}.output.dense", width, width)
            made.norm(f"{layer}.{block}.output.LayerNorm", width)
        made.linear(f"{layer}.intermediate.dense", HIDDEN, width)
        made.linear(f"{layer}.output.dense", width, HIDDEN)
        made.norm(f"{layer}.output.LayerNorm", width)
    head = "text_encoder.cls.predictions"
    made.put(f"{head}.bias", VOCABULARY)
    made.linear(f"{head}.transform.dense", width, width)
    made.norm(f"{head}.transform.LayerNorm", width)
    made.state[f"{head}.decoder.weight"] = made.state[f"{bert}.embeddings.word_embeddings.weight"]
    made.state[f"{head}.decoder.bias"] = made.state[f"{head}.bias"]
    made.linear("vision_proj", EMBED, vision_width)
    made.linear("text_proj", EMBED, width)
    for name, out in (("itm_head", 2), ("bbox_head", 4)):
        made.linear(f"{name}.0", 2 * width, width)
        made.norm(f"{name}.1", 2 * width)
        made.linear(f"{name}.3", out, 2 * width)
    made.put("temp")


def relative_index(window: int) -> Tensor:
    """Row of the bias table for each pair of patches, one pair at a time."""
    patches = list(product(range(window), repeat=2))
    side = 2 * window - 1
    rows = [
        [(a - c + window - 1) * side + b - d + window - 1 for c, d in patches] for a, b in patches
    ]
    return torch.tensor(rows)


def shift_mask(side: int, window: int) -> Tensor:
    """Rolls a map that is labelled by the unshifted window grid's borders, and compares labels."""
    shift = window // 2
    bands = [0] * (side - window) + [1] * (window - shift) + [2] * shift
    masks = []
    for top, left in product(range(0, side, window), repeat=2):
        inside = product(range(top, top + window), range(left, left + window))
        labels = [(bands[row], bands[column]) for row, column in inside]
        masks.append([[0.0 if a == b else -100.0 for b in labels] for a in labels])
    return torch.tensor(masks)


def swin_parts(made: Made) -> None:
    top, window = "vision_encoder", 7
    made.put(f"{top}.patch_embed.proj.weight", 8, 3, 4, 4)
    made.put(f"{top}.patch_embed.proj.bias", 8)
    made.norm(f"{top}.patch_embed.norm", 8)
    for i, width in enumerate((8, 16)):
        for j in range(2):
            block = f"{top}.layers.{i}.blocks.{j}"
            made.norm(f"{block}.norm1", width)
            made.put(f"{block}.attn.relative_position_bias_table", 169, 1 + i)
            made.state[f"{block}.attn.relative_position_index"] = relative_index(window)
            made.linear(f"{block}.attn.qkv", 3 * width, width)
            made.linear(f"{block}.attn.proj", width, width)
            made.norm(f"{block}.norm2", width)
            made.linear(f"{block}.mlp.fc1", 4 * width, width)
            made.linear(f"{block}.mlp.fc2", width, 4 * width)
    made.state[f"{top}.layers.0.blocks.1.attn_mask"] = shift_mask(14, window)
    made.norm(f"{top}.layers.0.downsample.norm", 32)
    made.linear(f"{top}.layers.0.downsample.reduction", 16, 32, bias=False)
    made.norm(f"{top}.norm", 16)


def vit_parts(made: Made) -> None:
    top, width = "vision_encoder", 24
    made.put(f"{top}.cls_token", 1, 1, width)
    made.put(f"{top}.pos_embed", 1, 17, width)
    made.put(f"{top}.patch_embed.proj.weight", width, 3, 8, 8)
    made.put(f"{top}.patch_embed.proj.bias", width)
    for n in range(2):
        block = f"{top}.blocks.{n}"
        for norm in ("norm1", "norm2"):
            made.norm(f"{block}.{norm}", width)
        made.linear(f"{block}.attn.qkv", 3 * width, width)
        made.linear(f"{block}.attn.proj", width, width)
        made.linear(f"{block}.mlp.fc1", 4 * width, width)
        made.linear(f"{block}.mlp.fc2", width, 4 * width)
    made.norm(f"{top}.norm", width)


def clip_parts(made: Made) -> None:
    top, width = "vision_encoder", 24
    made.put(f"{top}.class_embedding", width)
    made.state[f"{top}.position_ids"] = torch.arange(17)[None]
    made.put(f"{top}.patch_embed.weight", width, 3, 8, 8)
    made.put(f"{top}.pos_embed.weight", 17, width)
    for norm in ("pre_layrnorm", "post_layernorm"):
        made.norm(f"{top}.{norm}", width)
    for n in range(2):
        layer = f"{top}.encoder.layers.{n}"
        for part in "qkv":
            made.linear(f"{layer}.self_attn.{part}_proj", width, width)
        made.linear(f"{layer}.self_attn.out_proj", width, width)
        made.norm(f"{layer}.layer_norm1", width)
        made.norm(f"{layer}.layer_norm2", width)
        made.linear(f"{layer}.mlp.fc1", 4 * width, width)
        made.linear(f"{layer}.mlp.fc2", width, 4 * width)


def published(kind: str, layout: str = "pretrained") -> State:
    """The state dict of an encoder kind's file of a layout."""
    made = Made()
    {"swin": swin_parts, "vit": vit_parts, "clip": clip_parts}[kind](made)
    text_parts(made, 16 if kind == "swin" else 24)
    if layout == "pretrained":
        return made.state
    kept = ("vision_encoder.", "text_encoder.bert.", *HEADS[layout])
    return {
        name.replace("text_encoder.bert.", "text_encoder."): tensor
        for name, tensor in made.state.items()
        if name.startswith(kept)
    }


def write(path: Path, state: State, **config: Any) -> Path:
    """A file as X-VLM writes it."""
    torch.save({"model": state, "config": {**STORED, **config}}, path)
    return path
