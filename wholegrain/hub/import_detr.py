"""Reads DETR's ResNet and transformer encoder, from the original checkpoints or Hugging Face's.

The decoder, its queries and the heads for classes, boxes and masks are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

from wholegrain.errors import CheckpointError
from wholegrain.hub.backbone_files import Mapped, WeightFile, unknown_tensor, without_prefix

DETR = "DETR (original)"
DETR_HF = "DETR (Hugging Face)"

_TOP = "vision."
_NETWORK = re.compile(
    r"^((conv1|layer[1-4]\.\d+\.(conv[1-3]|downsample\.0))\.weight"
    r"|(bn1|layer[1-4]\.\d+\.(bn[1-3]|downsample\.1))\.(weight|bias|running_mean|running_var))$"
)

# With a mask head on top, the detector's names stand under `detr`.
_OLD_PREFIX = re.compile(r"^detr\.")
_OLD_DROPPED = re.compile(
    r"^(transformer\.decoder|class_embed|bbox_embed|query_embed|bbox_attention|mask_head)\."
)
_OLD_BODY = "backbone.0.body."
_OLD_LAYER = re.compile(r"^transformer\.encoder\.layers\.(\d+)\.(.+?)[._](weight|bias)$")
_OLD_PARTS = {
    "self_attn.out_proj": "output",
    "linear1": "up",
    "linear2": "down",
    "norm1": "attention_norm",
    "norm2": "feed_forward_norm",
}

_HF_PREFIX = re.compile(r"^(detr\.)?(model\.)?(?=backbone|input_projection|encoder|decoder|query)")
_HF_DROPPED = re.compile(
    r"^(decoder|query_position_embeddings|class_labels_classifier|bbox_predictor|bbox_attention"
    r"|mask_head)\."
)
_HF_BODY = "backbone.conv_encoder.model."
_HF_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$")
_HF_PARTS = {
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.out_proj": "output",
    "fc1": "up",
    "fc2": "down",
    "self_attn_layer_norm": "attention_norm",
    "final_layer_norm": "feed_forward_norm",
}
# Hugging Face's own ResNet, which newer files hold in place of timm's.
_HF_BLOCK = re.compile(
    r"^encoder\.stages\.(\d)\.layers\.(\d+)\.(layer\.(\d)|shortcut)\.(convolution|normalization)\."
)
_HF_STEM = {"embedder.embedder.convolution.": "conv1.", "embedder.embedder.normalization.": "bn1."}


def detr_layout(names: Iterable[str]) -> str | None:
    """Which of the layouts above the names are of; None for others."""
    for name in names:
        if _OLD_BODY in name:
            return DETR
        if _HF_BODY in name:
            return DETR_HF
    return None


def from_detr(file: WeightFile, layout: str) -> Mapped:
    """The encoder's tensors under our names.

    Args:
        file: of `read_weights`.
        layout: of `detr_layout`.

    Raises:
        CheckpointError: a tensor that the layout has no place for, or a DETR of another kind.
    """
    mapped = Mapped(layout)
    prefix, dropped = (_OLD_PREFIX, _OLD_DROPPED) if layout == DETR else (_HF_PREFIX, _HF_DROPPED)
    for name, original in without_prefix(file, prefix, layout).items():
        tensor = file.tensors[original]
        if dropped.match(name):
            mapped.dropped.append(original)
            continue
        ours = _original(file, name, tensor) if layout == DETR else _hugging_face(name, tensor)
        if not ours:
            raise unknown_tensor(file, original, layout)
        mapped.tensors |= {f"{_TOP}{part}": value for part, value in ours.items()}
    return mapped


def _original(file: WeightFile, name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name.startswith("transformer.encoder.norm."):
        raise CheckpointError(
            f"{file.path}: tensor {name!r} shows a DETR trained with norms before each block; "
            "our encoder has them after it, as the published DETR-R50 and R101 have"
        )
    if name.startswith("input_proj."):
        return {f"input_projection.{name.removeprefix('input_proj.')}": tensor}
    layer = _OLD_LAYER.match(name)
    if layer and layer.group(2) == "self_attn.in_proj":
        if len(tensor) % 3:
            raise CheckpointError(
                f"{file.path}: tensor {name!r} has {len(tensor)} rows, which are not the queries', "
                "keys' and values' thirds; fetch the file again"
            )
        thirds = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
        return {f"layers.{layer.group(1)}.{part}.{layer.group(3)}": rows for part, rows in thirds}
    if layer and layer.group(2) in _OLD_PARTS:
        return {f"layers.{layer.group(1)}.{_OLD_PARTS[layer.group(2)]}.{layer.group(3)}": tensor}
    return _network(name.removeprefix(_OLD_BODY), tensor) if name.startswith(_OLD_BODY) else {}


def _hugging_face(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name in {"input_projection.weight", "input_projection.bias"}:
        return {name: tensor}
    layer = _HF_LAYER.match(name)
    if layer and layer.group(2) in _HF_PARTS:
        return {f"layers.{layer.group(1)}.{_HF_PARTS[layer.group(2)]}.{layer.group(3)}": tensor}
    if not name.startswith(_HF_BODY):
        return {}
    return _network(_timm_name(name.removeprefix(_HF_BODY)), tensor)


def _timm_name(name: str) -> str:
    """The name in timm of a part of Hugging Face's ResNet; other names as they are."""
    for theirs, ours in _HF_STEM.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    block = _HF_BLOCK.match(name)
    if not block:
        return name
    stage, index, _, number, part = block.groups()
    if number is None:
        place = "downsample.0." if part == "convolution" else "downsample.1."
    else:
        place = f"{'conv' if part == 'convolution' else 'bn'}{int(number) + 1}."
    return f"layer{int(stage) + 1}.{index}.{place}{name[block.end() :]}"


def _network(name: str, tensor: Tensor) -> dict[str, Tensor]:
    return {f"backbone.{name}": tensor} if _NETWORK.match(name) else {}
