"""X-VLM's names for tensors and ours, both ways.

X-VLM names a model in three dialects: timm's for Swin and ViT, Hugging Face's for CLIP and BERT,
its own for the heads. The functions here rename and reshape, and know nothing of files or sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from wholegrain.errors import CheckpointError

VISION = "vision_encoder."
BACKBONE = "vision.backbone."
WORDS = "text_encoder.bert.embeddings.word_embeddings.weight"
WORD_BIAS = "text_encoder.cls.predictions.bias"
# Second names of tied weights, and the first names.
TIED = {
    "text_encoder.cls.predictions.decoder.weight": WORDS,
    "text_encoder.cls.predictions.decoder.bias": WORD_BIAS,
}

# Index tables that follow from the configuration.
_INDEX = re.compile(r"(relative_position_index|attn_mask|position_ids)$")
_BERT_LAYER = "text_encoder.bert.encoder.layer"
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
_PARTS = {
    "text_encoder.bert.embeddings.word_embeddings": "text.embeddings.word",
    "text_encoder.bert.embeddings.position_embeddings": "text.embeddings.position",
    "text_encoder.bert.embeddings.token_type_embeddings": "text.embeddings.token_type",
    "text_encoder.bert.embeddings.LayerNorm": "text.embeddings.norm",
    "text_encoder.cls.predictions.transform.dense": "masked_language_head.dense",
    "text_encoder.cls.predictions.transform.LayerNorm": "masked_language_head.norm",
    "vision_proj": "image_projection",
    "text_proj": "text_projection",
    **{f"itm_head.{n}": f"match_head.{n}" for n in (0, 1, 3)},
    **{f"bbox_head.{n}": f"box_head.mlp.{n}" for n in (0, 1, 3)},
}
_WHOLE = {"temp": "temperature", WORD_BIAS: "masked_language_head.bias"}
_LAYER_PARTS_BACK = {ours: theirs for theirs, ours in _LAYER_PARTS.items()}
_PARTS_BACK = {ours: theirs for theirs, ours in _PARTS.items()}
_WHOLE_BACK = {ours: theirs for theirs, ours in _WHOLE.items()}
_OUR_LAYER = re.compile(r"^(text|cross)\.layers\.(\d+)\.(.+)\.(weight|bias)$")

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
_CLIP_TABLES_BACK = {ours: theirs for theirs, ours in _CLIP_TABLES.items()}
# Axes of size one that timm has in front and CLIP has not.
_CLIP_LEAD = {"cls_token": 2, "pos_embed": 1}
_CLIP_NORM = re.compile(r"^(pre_layrnorm|post_layernorm)\.(weight|bias)$")
_CLIP_NORMS = {"pre_layrnorm": "norm_pre", "post_layernorm": "norm"}
_CLIP_NORMS_BACK = {ours: theirs for theirs, ours in _CLIP_NORMS.items()}
_CLIP_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$")
_CLIP_PARTS = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "self_attn.out_proj": "attn.proj",
}
_CLIP_PARTS_BACK = {ours: theirs for theirs, ours in _CLIP_PARTS.items()}
_CLIP_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_VIT_BLOCK = re.compile(r"^blocks\.(\d+)\.(.+)\.(weight|bias)$")


def is_index(name: str) -> bool:
    """Whether a tensor of X-VLM's is a table that follows from the configuration."""
    return bool(_INDEX.search(name))


def is_clip(names: Iterable[str]) -> bool:
    """Whether X-VLM's names, without ``vision_encoder.``, are those of a CLIP encoder."""
    return any(n in _CLIP_TABLES or _CLIP_NORM.match(n) or _CLIP_LAYER.match(n) for n in names)


def vision_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """X-VLM's image encoder: its tensors without the prefix ``vision_encoder.``."""
    return {k.removeprefix(VISION): v for k, v in state.items() if k.startswith(VISION)}


def from_xvlm(state: Mapping[str, Tensor], fusion_layer: int) -> dict[str, Tensor]:
    """Our names for X-VLM's tensors.

    Args:
        state: of a pretraining file; gradients or a part of it are renamed as well.
        fusion_layer: first layer with cross-attention, which the cross encoder counts from.

    Raises:
        CheckpointError: a tensor that is neither known nor redundant.
    """
    ours = {f"{BACKBONE}{k}": v for k, v in _vision_from(vision_part(state)).items()}
    for name, tensor in state.items():
        if not (name.startswith(VISION) or is_index(name) or name in TIED):
            ours[_other_from(name, fusion_layer)] = tensor
    return ours


def to_xvlm(state: Mapping[str, Tensor], fusion_layer: int, clip: bool) -> dict[str, Tensor]:
    """X-VLM's names for our tensors; the inverse of `from_xvlm`.

    Args:
        state: of a `MultiGrainModel`.
        fusion_layer: first layer with cross-attention.
        clip: whether the image encoder is CLIP's.

    Raises:
        CheckpointError: a tensor that X-VLM has no name for.
    """
    vision = {k.removeprefix(BACKBONE): v for k, v in state.items() if k.startswith(BACKBONE)}
    vision = _clip_to(vision) if clip else _timm_to(vision)
    theirs = {f"{VISION}{name}": tensor for name, tensor in vision.items()}
    for name, tensor in state.items():
        if not name.startswith(BACKBONE):
            theirs[_other_to(name, fusion_layer)] = tensor
    return theirs


# --- text and heads -----------------------------------------------------------------------------


def _other_from(name: str, fusion_layer: int) -> str:
    if name in _WHOLE:
        return _WHOLE[name]
    layer = _LAYER.match(name)
    if layer and layer.group(2) in _LAYER_PARTS:
        index, part, kind = int(layer.group(1)), _LAYER_PARTS[layer.group(2)], layer.group(3)
        if index < fusion_layer:
            return f"text.layers.{index}.{part}.{kind}"
        return f"cross.layers.{index - fusion_layer}.{part}.{kind}"
    part, _, kind = name.rpartition(".")
    if part in _PARTS:
        return f"{_PARTS[part]}.{kind}"
    raise CheckpointError(_unknown(name))


def _other_to(name: str, fusion_layer: int) -> str:
    if name in _WHOLE_BACK:
        return _WHOLE_BACK[name]
    layer = _OUR_LAYER.match(name)
    if layer and layer.group(3) in _LAYER_PARTS_BACK:
        stack, index, part, kind = layer.groups()
        number = int(index) + (fusion_layer if stack == "cross" else 0)
        return f"{_BERT_LAYER}.{number}.{_LAYER_PARTS_BACK[part]}.{kind}"
    part, _, kind = name.rpartition(".")
    if part in _PARTS_BACK:
        return f"{_PARTS_BACK[part]}.{kind}"
    raise CheckpointError(_homeless(name))


# --- image encoders -----------------------------------------------------------------------------


def _vision_from(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {name: tensor for name, tensor in state.items() if not is_index(name)}
    if is_clip(named):
        return _clip_from(named)
    for name in named:
        if not _TIMM.match(name):
            raise CheckpointError(_unknown(f"{VISION}{name}"))
    # timm merges patches on entering a stage, X-VLM on leaving one.
    return {_moved_merge(name, 1): tensor for name, tensor in named.items()}


def _timm_to(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name in state:
        if not _TIMM.match(name):
            raise CheckpointError(_homeless(f"{BACKBONE}{name}"))
    return {_moved_merge(name, -1): tensor for name, tensor in state.items()}


def _moved_merge(name: str, by: int) -> str:
    return _SWIN_MERGE.sub(lambda m: f"layers.{int(m.group(1)) + by}.downsample.", name)


def _clip_from(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours = {}
    for name, tensor in state.items():
        norm, layer = _CLIP_NORM.match(name), _CLIP_LAYER.match(name)
        if name in _CLIP_TABLES:
            lead = (1,) * _CLIP_LEAD.get(_CLIP_TABLES[name], 0)
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
                    f"tensor '{VISION}{missing[0]}' is missing; fetch the file again"
                )
            ours[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat([state[part] for part in parts])
        else:
            raise CheckpointError(_unknown(f"{VISION}{name}"))
    return ours


def _clip_to(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    theirs = {}
    for name, tensor in state.items():
        part, _, kind = name.rpartition(".")
        block = _VIT_BLOCK.match(name)
        if name in _CLIP_TABLES_BACK:
            theirs[_CLIP_TABLES_BACK[name]] = tensor.reshape(
                tensor.shape[_CLIP_LEAD.get(name, 0) :]
            )
        elif part in _CLIP_NORMS_BACK:
            theirs[f"{_CLIP_NORMS_BACK[part]}.{kind}"] = tensor
        elif block and block.group(2) == "attn.qkv":
            for each, piece in zip(_CLIP_QKV, tensor.chunk(3), strict=True):
                # A copy: a file that stores a view stores all that it is a view of.
                theirs[f"encoder.layers.{block.group(1)}.{each}.{kind}"] = piece.clone()
        elif block and block.group(2) in _CLIP_PARTS_BACK:
            layer = f"encoder.layers.{block.group(1)}"
            theirs[f"{layer}.{_CLIP_PARTS_BACK[block.group(2)]}.{kind}"] = tensor
        else:
            raise CheckpointError(_homeless(f"{BACKBONE}{name}"))
    return theirs


def _unknown(name: str) -> str:
    return (
        f"tensor {name!r} is not part of a pretraining checkpoint of X-VLM; import the file it was "
        "finetuned from"
    )


def _homeless(name: str) -> str:
    return f"tensor {name!r} has no place in X-VLM's layout; export a model without that part"
