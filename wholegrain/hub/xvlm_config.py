"""What model a file of X-VLM holds, from the shapes of its tensors and its stored configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor

from wholegrain.config import from_dict
from wholegrain.errors import CheckpointError, ConfigError
from wholegrain.hub.xvlm_layout import as_pretrained, layout_of
from wholegrain.hub.xvlm_names import VISION, WORDS, is_clip, vision_part
from wholegrain.model.config import ModelConfig

Number = TypeVar("Number", int, float)
State = Mapping[str, Tensor]
Values = dict[str, Any]

_EMBEDDINGS = "text_encoder.bert.embeddings"
_LAYER = re.compile(r"^text_encoder\.bert\.encoder\.layer\.(\d{1,4})\.(.+)$")
_SWIN_BLOCK = re.compile(r"^layers\.(\d{1,4})\.blocks\.(\d{1,4})\.")
_CHANNELS_A_HEAD = 64
_LOCAL_LAYERS = 4


def model_config_of(
    state: State,
    config: Mapping[str, Any] | None = None,
    *,
    text_heads: int | None = None,
    vision_heads: int | None = None,
    local_layers: int | None = None,
) -> ModelConfig:
    """The configuration of the model in a file, at the file's own image size.

    Whatever shapes cannot tell comes from the arguments, else from the stored configuration, else
    from X-VLM's habits: 64 channels a head, and regions through the last 4 blocks of a ViT.

    Args:
        state: of `read_xvlm`: a pretrained, retrieval or box-grounding file's.
        config: stored beside it. X-VLM's own names files for encoders' settings; where
            ``vision_config`` and ``text_config`` hold the settings themselves, they are read.
        text_heads: attention heads of the text and cross encoder.
        vision_heads: attention heads of a ViT; a Swin's are in its tables.
        local_layers: blocks of a ViT that run once a region.

    Raises:
        CheckpointError: no such file, a tensor that the model is told by is missing or of a
            strange shape, or shapes and stored configuration contradict each other.
        ConfigError: an argument does not suit the model.
    """
    stored = config or {}
    if stored.get("use_roberta"):
        raise CheckpointError(
            "use_roberta is set in the stored configuration: RoBERTa's words and positions are "
            "others than BERT's; import a file that was trained with BERT"
        )
    state = as_pretrained(state, layout_of(state))
    vision = vision_part(state)
    if "patch_embed.norm.weight" in vision or any(_SWIN_BLOCK.match(name) for name in vision):
        if vision_heads is not None or local_layers is not None:
            raise ConfigError(
                "heads and local layers of the image encoder are set, but it is a Swin: its heads "
                "are in its tables, and its regions cost no layers; leave both out"
            )
        encoder = _swin(vision, stored)
    else:
        encoder = _vit(vision, stored, vision_heads, local_layers)
    if "vision_proj.weight" in state:
        embed_dim = _shape(state, "vision_proj.weight", 2)[0]
    else:
        embed_dim = _stored(stored, "embed_dim", 256)
    values = {
        "vision": encoder,
        "text": _text(state, stored, text_heads),
        "embed_dim": embed_dim,
        "temperature": _stored(stored, "temp", 0.07),
    }
    try:
        return from_dict(ModelConfig, values, where="the model that the tensors tell")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _text(state: State, stored: Mapping[str, Any], heads: int | None) -> Values:
    parts = [m.groups() for m in map(_LAYER.match, state) if m]
    fused = [int(layer) for layer, part in parts if part.startswith("crossattention.")]
    if not fused:
        raise CheckpointError(
            "no layer of the text encoder has cross-attention ('...crossattention.self.query'); "
            "this is a BERT alone, not a checkpoint of X-VLM"
        )
    vocab_size, width = _shape(state, WORDS, 2)
    first = "text_encoder.bert.encoder.layer.0.intermediate.dense.weight"
    settings = _nested(stored, "text_config")
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        # Counted, not numbered: a stray layer 1,000,000 shall not ask for as many.
        "layers": len({layer for layer, _ in parts}),
        "fusion_layer": min(fused),
        "heads": _heads(heads, settings, width, "text_heads"),
        "intermediate_size": _shape(state, first, 2)[0],
        "max_positions": _shape(state, f"{_EMBEDDINGS}.position_embeddings.weight", 2)[0],
        "type_vocab_size": _shape(state, f"{_EMBEDDINGS}.token_type_embeddings.weight", 2)[0],
        "dropout": _stored(settings, "hidden_dropout_prob", 0.1),
        "attention_dropout": _stored(settings, "attention_probs_dropout_prob", 0.1),
        "norm_eps": _stored(settings, "layer_norm_eps", 1e-12),
    }


def _swin(vision: State, stored: Mapping[str, Any]) -> Values:
    embed_dim, _, patch_size, _ = _shape(vision, "patch_embed.proj.weight", 4, VISION)
    blocks = {(int(m.group(1)), int(m.group(2))) for m in map(_SWIN_BLOCK.match, vision) if m}
    stages = len({stage for stage, _ in blocks})
    depths = tuple(sum(1 for stage, _ in blocks if stage == s) for s in range(stages))
    heads, windows = [], []
    for stage in range(max(stages, 1)):
        table = f"layers.{stage}.blocks.0.attn.relative_position_bias_table"
        rows, columns = _shape(vision, table, 2, VISION)
        side = math.isqrt(rows)
        if side**2 != rows or side % 2 == 0:
            raise CheckpointError(
                f"tensor '{VISION}{table}' has {rows} rows, expected the square of an odd number "
                "(2 window - 1); fetch the file again"
            )
        heads.append(columns)
        windows.append((side + 1) // 2)
    final_patch = patch_size * 2 ** (stages - 1)
    window = max(windows)
    size = _swin_size(vision, stored, patch_size, window, final_patch)
    settings = _nested(stored, "vision_config")
    return {
        "kind": "swin",
        "image_size": size,
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depths": depths,
        "heads": tuple(heads),
        "window": window,
        "drop_path": _stored(settings, "drop_path_rate", 0.1),
    }


def _swin_size(
    vision: State, stored: Mapping[str, Any], patch_size: int, window: int, final_patch: int
) -> int:
    """The mask of shifted windows counts them all; else the window is the final map, as always."""
    name = "layers.0.blocks.1.attn_mask"
    told = _stored(stored, "image_res", window * final_patch)
    if name not in vision:
        return told
    count = _shape(vision, name, 3, VISION)[0]
    size = math.isqrt(count) * window * patch_size
    if told != size:
        raise CheckpointError(
            f"tensor '{VISION}{name}' is of {size} px (windows of {window}), but image_res of the "
            f"stored configuration is {told}; import the state dict under 'model' alone if it is "
            "right"
        )
    return size


def _vit(
    vision: State, stored: Mapping[str, Any], heads: int | None, local_layers: int | None
) -> Values:
    clip = is_clip(vision)
    kernel = "patch_embed.weight" if clip else "patch_embed.proj.weight"
    table = "pos_embed.weight" if clip else "pos_embed"
    block = "encoder.layers" if clip else "blocks"
    width, _, patch_size, _ = _shape(vision, kernel, 4, VISION)
    places = _shape(vision, table, 2 if clip else 3, VISION)[-2] - 1
    side = math.isqrt(max(places, 0))
    size = side * patch_size
    if side**2 != places or side < 1:
        raise CheckpointError(
            f"tensor '{VISION}{table}' has {places + 1} positions, expected one of the class token "
            "and a square grid; fetch the file again"
        )
    told = _stored(stored, "image_res", size)
    if told != size:
        raise CheckpointError(
            f"tensor '{VISION}{table}' is of {size} px ({side} patches of {patch_size} a side), "
            f"but image_res of the stored configuration is {told}; import the state dict under "
            "'model' alone if it is right"
        )
    pattern = re.compile(rf"^{re.escape(block)}\.(\d{{1,4}})\.")
    settings = _nested(stored, "vision_config")
    if local_layers is None:
        local_layers = _stored(settings, "local_attn_depth", _LOCAL_LAYERS)
    return {
        "kind": "vit",
        "image_size": size,
        "patch_size": patch_size,
        "width": width,
        "depth": len({m.group(1) for m in map(pattern.match, vision) if m}),
        "heads": _heads(heads, settings, width, "vision_heads"),
        "mlp_ratio": _shape(vision, f"{block}.0.mlp.fc1.weight", 2, VISION)[0] / width,
        "clip": clip,
        "activation": _activation(settings, clip),
        "local_layers": local_layers,
    }


def _activation(settings: Mapping[str, Any], clip: bool) -> str | None:
    """What the file says, where that is not the variant's own."""
    usual = "quick_gelu" if clip else "gelu"
    told = settings.get("hidden_act", usual)
    if told not in ("gelu", "quick_gelu"):
        raise CheckpointError(
            f"hidden_act of the stored configuration is {told!r}; gelu and quick_gelu are known: "
            "import a file that was trained with one of them"
        )
    return None if told == usual else str(told)


def _heads(asked: int | None, settings: Mapping[str, Any], width: int, argument: str) -> int:
    """What is asked for, else what is stored, else as many as have the usual 64 channels."""
    if asked is not None:
        return asked
    # timm's name for it, where a plain ViT is described.
    name = "num_heads" if "num_heads" in settings else "num_attention_heads"
    heads = _stored(settings, name, width // _CHANNELS_A_HEAD)
    if name not in settings and width % _CHANNELS_A_HEAD:
        raise CheckpointError(
            f"the attention heads of {width} channels are neither in the shapes nor in the stored "
            f"configuration, and {_CHANNELS_A_HEAD} channels a head do not fit; give {argument} "
            f"(--{argument.replace('_', '-')})"
        )
    return heads


def _shape(state: State, name: str, axes: int, prefix: str = "") -> tuple[int, ...]:
    if name not in state:
        raise CheckpointError(
            f"tensor '{prefix}{name}' is missing, without which the model cannot be told; fetch "
            "the file again"
        )
    shape = tuple(state[name].shape)
    if len(shape) != axes or 0 in shape:
        raise CheckpointError(
            f"tensor '{prefix}{name}' is of shape {shape}, expected {axes} axes, none of them "
            "empty; fetch the file again"
        )
    return shape


def _nested(stored: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Settings that are stored themselves; X-VLM stores the name of their file, which is none."""
    value = stored.get(key)
    return value if isinstance(value, Mapping) else {}


def _stored(stored: Mapping[str, Any], key: str, default: Number) -> Number:
    """A positive number of a stored configuration."""
    value = stored.get(key, default)
    right = isinstance(value, type(default)) or (
        isinstance(default, float) and isinstance(value, int)
    )
    if not right or isinstance(value, bool):
        raise CheckpointError(
            f"{key} of the stored configuration is {value!r}, expected a number like {default}; "
            "import the state dict under 'model' alone"
        )
    result: Number = type(default)(value)
    return result
