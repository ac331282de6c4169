"""Reads pretrained image encoders: Swin, ViT and DeiT, CLIP's ViT.

Swin comes as Microsoft publishes it or as timm stores it; ViT and DeiT as timm or Hugging Face do;
CLIP as Hugging Face or timm do. All end in timm's names, which our encoders keep.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from wholegrain.errors import CheckpointError
from wholegrain.hub.backbone_files import (
    Mapped,
    WeightFile,
    missing_tensor,
    unknown_tensor,
    without_prefix,
)
from wholegrain.hub.xvlm_names import BACKBONE, VISION, from_xvlm

SWIN = "Swin (Microsoft)"
SWIN_TIMM = "Swin (timm)"
VIT_TIMM = "ViT (timm)"
VIT_HF = "ViT (Hugging Face)"
CLIP_HF = "CLIP (Hugging Face)"
CLIP_TIMM = "CLIP (timm)"

_SWIN_HEAD = re.compile(r"^head\.(fc\.)?(weight|bias)$")
_SWIN_MASK = re.compile(r"\.attn_mask$")
_SWIN_MERGE = re.compile(r"^layers\.(\d+)\.downsample\.")

_TIMM_HEAD = re.compile(r"^(head|pre_logits\.fc)\.(weight|bias)$")
_NORM_PRE = re.compile(r"^norm_pre\.(weight|bias)$")

_HF_PREFIX = re.compile(r"^(vit|deit)\.")
_HF_HEAD = re.compile(r"^(pooler\.dense|classifier)\.(weight|bias)$")
_HF_LAYER = re.compile(r"^encoder\.layer\.(\d+)\.(.+)\.(weight|bias)$")
_HF_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_HF_PARTS = {
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
_HF_QKV = tuple(f"attention.attention.{each}" for each in ("query", "key", "value"))
_DISTILLED = re.compile(r"(^|\.)(dist_token|distillation_token)$")

_CLIP_PREFIX = re.compile(r"^vision_model\.")
# Other towers and heads of CLIP; the image tower alone has no prefix and none of these.
_CLIP_OTHER = re.compile(
    r"^(text_model\.|logit_scale$|(text_projection|visual_projection)\.weight$)"
)
_CLIP_KNOWN = re.compile(
    r"^(class_embedding|patch_embed\.weight|pos_embed\.weight"
    r"|(pre_layrnorm|post_layernorm)\.(weight|bias)"
    r"|encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|layer_norm[12]|mlp\.fc[12])"
    r"\.(weight|bias))$"
)
_CLIP_EMBEDDINGS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "patch_embed.weight",
    "embeddings.position_embedding.weight": "pos_embed.weight",
}


def vision_layout(names: Iterable[str]) -> str | None:
    """Which of the layouts above the names are of; None for others."""
    names = set(names)
    if "layers.0.blocks.0.attn.relative_position_bias_table" in names:
        # timm merges patches on entering a stage, Microsoft on leaving one.
        return SWIN if any(name.startswith("layers.0.downsample.") for name in names) else SWIN_TIMM
    if "blocks.0.attn.qkv.weight" in names:
        return CLIP_TIMM if any(_NORM_PRE.match(name) for name in names) else VIT_TIMM
    if any(name.endswith("embeddings.class_embedding") for name in names):
        return CLIP_HF
    if any(_HF_PREFIX.sub("", name) == "embeddings.cls_token" for name in names):
        return VIT_HF
    return None


def from_vision(file: WeightFile, layout: str) -> Mapped:
    """An image encoder's tensors under our names.

    Args:
        file: of `read_weights`.
        layout: of `vision_layout`.

    Raises:
        CheckpointError: a tensor that the layout has no place for, or a distilled DeiT.
    """
    for name in file.tensors:
        if _DISTILLED.search(name):
            raise CheckpointError(
                f"{file.path}: tensor {name!r} is a distillation token: every block of this DeiT "
                "was trained to attend to it and its features are wrong without it, but our ViT "
                "has a class token alone. Take the DeiT that was not distilled "
                "(deit_base_patch16_224)"
            )
    readers: dict[str, Callable[[WeightFile, Mapped], dict[str, Tensor]]] = {
        SWIN: _from_swin,
        SWIN_TIMM: _from_swin,
        VIT_TIMM: _from_timm,
        CLIP_TIMM: _from_timm,
        VIT_HF: _from_hugging_face,
        CLIP_HF: _from_clip,
    }
    mapped = Mapped(layout)
    mapped.tensors = readers[layout](file, mapped)
    return mapped


def _from_swin(file: WeightFile, mapped: Mapped) -> dict[str, Tensor]:
    named = {}
    for name, tensor in file.tensors.items():
        if _SWIN_HEAD.match(name):
            mapped.dropped.append(name)
        elif _SWIN_MASK.search(name):  # which follows from image size and window
            mapped.redundant.append(name)
        else:
            named[name] = tensor
    if mapped.layout == SWIN_TIMM:
        named = {_merge_on_leaving(name): tensor for name, tensor in named.items()}
    return _ours(file, named, mapped.layout)


def _merge_on_leaving(name: str) -> str:
    return _SWIN_MERGE.sub(lambda m: f"layers.{int(m.group(1)) - 1}.downsample.", name)


def _from_timm(file: WeightFile, mapped: Mapped) -> dict[str, Tensor]:
    named, before = {}, {}
    for name, tensor in file.tensors.items():
        if _TIMM_HEAD.match(name):
            mapped.dropped.append(name)
        elif _NORM_PRE.match(name):
            before[f"{BACKBONE}{name}"] = tensor
        else:
            named[name] = tensor
    return before | _ours(file, named, mapped.layout)


def _from_hugging_face(file: WeightFile, mapped: Mapped) -> dict[str, Tensor]:
    originals = without_prefix(file, _HF_PREFIX, mapped.layout)
    source = {name: file.tensors[original] for name, original in originals.items()}
    named = {}
    for name, tensor in source.items():
        layer = _HF_LAYER.match(name)
        if _HF_HEAD.match(name):
            mapped.dropped.append(originals[name])
        elif name in _HF_NAMES:
            named[_HF_NAMES[name]] = tensor
        elif layer and layer.group(2) in _HF_PARTS:
            index, part, kind = layer.groups()
            named[f"blocks.{index}.{_HF_PARTS[part]}.{kind}"] = tensor
        elif layer and layer.group(2) in _HF_QKV:
            index, _, kind = layer.groups()
            parts = [f"encoder.layer.{index}.{each}.{kind}" for each in _HF_QKV]
            for part in parts:
                if part not in source:
                    raise missing_tensor(file, part, mapped.layout)
            named[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat([source[part] for part in parts])
        else:
            raise unknown_tensor(file, originals[name], mapped.layout)
    return _ours(file, named, mapped.layout)


def _from_clip(file: WeightFile, mapped: Mapped) -> dict[str, Tensor]:
    named = {}
    for name, original in without_prefix(file, _CLIP_PREFIX, mapped.layout).items():
        name = _CLIP_EMBEDDINGS.get(name, name)
        if _CLIP_OTHER.match(original):
            mapped.dropped.append(original)
        elif not _CLIP_KNOWN.match(name):
            raise unknown_tensor(file, original, mapped.layout)
        else:
            named[f"{VISION}{name}"] = file.tensors[original]
    try:
        return from_xvlm(named, fusion_layer=1)
    except CheckpointError as error:  # a third of a projection is missing
        raise CheckpointError(f"{file.path}: {error}") from None


def _ours(file: WeightFile, named: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Our names for timm's, as X-VLM's encoders have them."""
    for name, tensor in named.items():
        try:
            from_xvlm({f"{VISION}{name}": tensor}, fusion_layer=1)
        except CheckpointError:
            raise unknown_tensor(file, name, layout) from None
    return from_xvlm({f"{VISION}{name}": tensor for name, tensor in named.items()}, fusion_layer=1)
