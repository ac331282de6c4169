"""Reads X-VLM checkpoints: ``{"model": state_dict, "config": dict}`` of the published layout.

Every tensor of the file is either taken or known to be redundant; anything else is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from wholegrain.errors import CheckpointError

# Index tables that follow from the configuration, and second names of tied weights.
_REDUNDANT = re.compile(
    r"(relative_position_index|attn_mask|position_ids)$|"
    r"^text_encoder\.cls\.predictions\.decoder\.(weight|bias)$"
)
_LAYER = re.compile(r"^text_encoder\.bert\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)$")
_LAYER_PARTS = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_residual.norm",
    "crossattention.self.query": "cross_attention.query",
    "crossattention.self.key": "cross_attention.key",
    "crossattention.self.value": "cross_attention.value",
    "crossattention.output.dense": "cross_attention.output",
    "crossattention.output.LayerNorm": "cross_residual.norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward_residual.norm",
}
_TEXT_PARTS = {
    "text_encoder.bert.embeddings.word_embeddings": "text.embeddings.word",
    "text_encoder.bert.embeddings.position_embeddings": "text.embeddings.position",
    "text_encoder.bert.embeddings.token_type_embeddings": "text.embeddings.token_type",
    "text_encoder.bert.embeddings.LayerNorm": "text.embeddings.norm",
    "text_encoder.cls.predictions.transform.dense": "masked_language_head.dense",
    "text_encoder.cls.predictions.transform.LayerNorm": "masked_language_head.norm",
    "vision_proj": "image_projection",
    "text_proj": "text_projection",
}
_SWIN_MERGE = re.compile(r"^layers\.(\d+)\.downsample\.")
_CLIP_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$")
_CLIP_PARTS = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "self_attn.out_proj": "attn.proj",
}
_CLIP_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def read_xvlm(path: Path) -> dict[str, Tensor]:
    """The state dict of a published file; tensors and plain values alone are read.

    Raises:
        CheckpointError: not such a file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a foreign or damaged file
        raise CheckpointError(f"{path}: not a checkpoint of tensors ({error})") from error
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: holds no state dict under 'model'")
    return dict(state)


def from_xvlm(state: Mapping[str, Tensor], fusion_layer: int) -> dict[str, Tensor]:
    """Our names for X-VLM's tensors.

    Args:
        state: of `read_xvlm`.
        fusion_layer: first layer with cross-attention, which the cross encoder counts from.

    Raises:
        CheckpointError: a tensor that is neither known nor redundant.
    """
    vision = {k.removeprefix("vision_encoder."): v for k, v in state.items() if _is_vision(k)}
    ours = {f"vision.backbone.{k}": v for k, v in _vision(vision).items()}
    for name, tensor in state.items():
        if _is_vision(name) or _REDUNDANT.search(name):
            continue
        ours[_other_name(name, fusion_layer)] = tensor
    return ours


def _is_vision(name: str) -> bool:
    return name.startswith("vision_encoder.")


def _other_name(name: str, fusion_layer: int) -> str:
    if name == "temp":
        return "temperature"
    if name == "text_encoder.cls.predictions.bias":
        return "masked_language_head.bias"
    layer = _LAYER.match(name)
    if layer and layer.group(2) in _LAYER_PARTS:
        index, part, kind = int(layer.group(1)), _LAYER_PARTS[layer.group(2)], layer.group(3)
        if index < fusion_layer:
            return f"text.layers.{index}.{part}.{kind}"
        return f"cross.layers.{index - fusion_layer}.{part}.{kind}"
    part, _, kind = name.rpartition(".")
    if part in _TEXT_PARTS:
        return f"{_TEXT_PARTS[part]}.{kind}"
    head, _, rest = name.partition(".")
    if head in {"itm_head", "bbox_head"}:
        return ("match_head." if head == "itm_head" else "box_head.mlp.") + rest
    raise CheckpointError(
        f"tensor {name!r} {'is' if layer is None else 'in a layer is'} not part of a pretraining "
        "checkpoint of X-VLM; import the file it was finetuned from"
    )


def _vision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if "class_embedding" in state:
        return _clip(state)
    ours = {}
    for name, tensor in state.items():
        if _REDUNDANT.search(name):
            continue
        # timm merges patches on entering a stage, X-VLM on leaving one.
        ours[_SWIN_MERGE.sub(lambda m: f"layers.{int(m.group(1)) + 1}.downsample.", name)] = tensor
    return ours


def _clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours = {
        "cls_token": state["class_embedding"].reshape(1, 1, -1),
        "pos_embed": state["pos_embed.weight"][None],
        "patch_embed.proj.weight": state["patch_embed.weight"],
    }
    for kind in ("weight", "bias"):
        ours[f"norm_pre.{kind}"] = state[f"pre_layrnorm.{kind}"]
        ours[f"norm.{kind}"] = state[f"post_layernorm.{kind}"]
    for name, tensor in state.items():
        layer = _CLIP_LAYER.match(name)
        if not layer:
            continue
        index, part, kind = layer.groups()
        if part in _CLIP_PARTS:
            ours[f"blocks.{index}.{_CLIP_PARTS[part]}.{kind}"] = tensor
        elif part == _CLIP_QKV[0]:
            qkv = [state[f"encoder.layers.{index}.{each}.{kind}"] for each in _CLIP_QKV]
            ours[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(qkv)
    return ours
