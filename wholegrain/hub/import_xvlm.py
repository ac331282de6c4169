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
# timm's names of a Swin or a ViT, which X-VLM shares.
_TIMM = re.compile(
    r"^((patch_embed\.(proj|norm)|norm)\.(weight|bias)|cls_token|pos_embed"
    r"|layers\.\d+\.downsample\.(norm\.(weight|bias)|reduction\.weight)"
    r"|(layers\.\d+\.)?blocks\.\d+\.("
    r"(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
    r"|attn\.relative_position_bias_table))$"
)
_SWIN_MERGE = re.compile(r"^layers\.(\d+)\.downsample\.")
_CLIP_TABLES = {
    "class_embedding": "cls_token",
    "pos_embed.weight": "pos_embed",
    "patch_embed.weight": "patch_embed.proj.weight",
}
_CLIP_NORM = re.compile(r"^(pre_layrnorm|post_layernorm)\.(weight|bias)$")
_CLIP_NORMS = {"pre_layrnorm": "norm_pre", "post_layernorm": "norm"}
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
        # Its first line alone: the rest advises to read the file without this protection.
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(
            f"{path}: not a checkpoint of tensors and plain values ({reason}); nothing of it was "
            "run. Fetch the file again from where it was published"
        ) from None
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
    raise CheckpointError(_unknown(name))


def _vision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {name: tensor for name, tensor in state.items() if not _REDUNDANT.search(name)}
    if any(_is_clip(name) for name in named):
        return _clip(named)
    for name in named:
        if not _TIMM.match(name):
            raise CheckpointError(_unknown(f"vision_encoder.{name}"))
    # timm merges patches on entering a stage, X-VLM on leaving one.
    return {
        _SWIN_MERGE.sub(lambda m: f"layers.{int(m.group(1)) + 1}.downsample.", name): tensor
        for name, tensor in named.items()
    }


def _is_clip(name: str) -> bool:
    return name in _CLIP_TABLES or bool(_CLIP_NORM.match(name) or _CLIP_LAYER.match(name))


def _clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours = {}
    for name, tensor in state.items():
        norm, layer = _CLIP_NORM.match(name), _CLIP_LAYER.match(name)
        if name in _CLIP_TABLES:
            # timm's class token and positions carry a batch axis.
            lead = {"cls_token": (1, 1), "pos_embed": (1,)}.get(_CLIP_TABLES[name], ())
            ours[_CLIP_TABLES[name]] = tensor.reshape(*lead, *tensor.shape)
        elif norm:
            ours[f"{_CLIP_NORMS[norm.group(1)]}.{norm.group(2)}"] = tensor
        elif layer and layer.group(2) in _CLIP_PARTS:
            index, part, kind = layer.groups()
            ours[f"blocks.{index}.{_CLIP_PARTS[part]}.{kind}"] = tensor
        elif layer and layer.group(2) in _CLIP_QKV:
            index, _, kind = layer.groups()
            parts = [f"encoder.layers.{index}.{each}.{kind}" for each in _CLIP_QKV]
            missing = [part for part in parts if part not in state]
            if missing:
                raise CheckpointError(
                    f"tensor 'vision_encoder.{missing[0]}' is missing; fetch the file again"
                )
            ours[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat([state[part] for part in parts])
        else:
            raise CheckpointError(_unknown(f"vision_encoder.{name}"))
    return ours


def _unknown(name: str) -> str:
    return (
        f"tensor {name!r} is not part of a pretraining checkpoint of X-VLM; import the file it was "
        "finetuned from"
    )
