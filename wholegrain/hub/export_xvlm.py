"""Writes a release in X-VLM's published layout, for programs that read those files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wholegrain.errors import CheckpointError, ConfigError
from wholegrain.hub.release import load_release
from wholegrain.hub.xvlm_file import XvlmFile, check_free, write_xvlm_file
from wholegrain.hub.xvlm_layout import LAYOUTS, ORIGIN, as_layout, published_state
from wholegrain.hub.xvlm_names import TIED, is_index
from wholegrain.model.config import ModelConfig, SwinVision, VitVision
from wholegrain.model.multigrain import MultiGrainModel


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written; `str` gives it as a line to print."""

    path: Path
    layout: str
    tensors: int
    parameters: int
    """Values of the weights, tied ones counted once."""

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.layout} layout, {self.tensors:,} tensors, "
            f"{self.parameters:,} parameters"
        )


def export_xvlm(
    release: Path, out: Path, *, layout: str | None = None, overwrite: bool = False
) -> Exported:
    """Writes a release as ``{"model": state_dict, "config": {...}}``.

    Args:
        release: a folder of `save_release`.
        out: the file; must not exist, unless `overwrite`.
        layout: a key of `LAYOUTS`; None takes that of the file which the release was imported
            from, and the pretrained one for a release that was trained here.
        overwrite: replace a file.

    Raises:
        CheckpointError: X-VLM's layout cannot hold the model; says why.
        ConfigError: no such layout.
        DataError: the file exists, or cannot be written.
        ReleaseError: the release is damaged.
    """
    check_free(out, overwrite=overwrite)
    model, _, info = load_release(release)
    if layout is None:
        origin = info.extras.get(ORIGIN)
        layout = origin.get("layout") if isinstance(origin, dict) else None
        layout = layout if layout in LAYOUTS else "pretrained"
    try:
        file = as_xvlm_file(model, layout)
    except CheckpointError as error:
        raise CheckpointError(f"{release}: {error}") from None
    write_xvlm_file(out, file, overwrite=overwrite)
    weights = [v.numel() for k, v in file.state.items() if k not in TIED and not is_index(k)]
    return Exported(out, layout, len(file.state), sum(weights))


def as_xvlm_file(model: MultiGrainModel, layout: str = "pretrained") -> XvlmFile:
    """A model as X-VLM's file of a kind.

    Raises:
        CheckpointError: X-VLM's layout cannot hold the model; says why.
        ConfigError: no such layout.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout is {layout!r}; choose one of {', '.join(LAYOUTS)}")
    state = {name: value.detach() for name, value in model.state_dict().items()}
    published = published_state(state, model.config)
    return XvlmFile(as_layout(published, layout), _settings(model.config))


def _settings(config: ModelConfig) -> dict[str, Any]:
    """X-VLM's keys, with the encoders' settings in place of the names of files that hold them."""
    vision, text = config.vision, config.text
    own: dict[str, Any] = {"image_res": vision.image_size}
    stride = 0
    if isinstance(vision, SwinVision):
        stride = vision.final_patch
        own |= {
            "embed_dim": vision.embed_dim,
            "depths": list(vision.depths),
            "num_heads": list(vision.heads),
            "window_size": vision.window,
            "vision_width": vision.embed_dim * 2 ** (len(vision.depths) - 1),
            "drop_path_rate": vision.drop_path,
        }
    elif isinstance(vision, VitVision):
        stride = vision.patch_size
        own |= {
            "vision_width": vision.width,
            "patch_size": vision.patch_size,
            "hidden_act": vision.gelu,
            "num_attention_heads": vision.heads,
            "intermediate_size": round(vision.mlp_ratio * vision.width),
            "num_hidden_layers": vision.depth,
            "local_attn_depth": vision.local_layers,
        }
    return {
        "use_clip_vit": isinstance(vision, VitVision) and vision.clip,
        "use_swin": isinstance(vision, SwinVision),
        "use_roberta": False,
        "image_res": vision.image_size,
        "patch_size": stride,
        "embed_dim": config.embed_dim,
        "temp": config.temperature,
        "vision_config": own,
        "text_config": {
            "model_type": "bert",
            "hidden_act": "gelu",
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "num_hidden_layers": text.layers,
            "fusion_layer": text.fusion_layer,
            "num_attention_heads": text.heads,
            "intermediate_size": text.intermediate_size,
            "max_position_embeddings": text.max_positions,
            "type_vocab_size": text.type_vocab_size,
            "hidden_dropout_prob": text.dropout,
            "attention_probs_dropout_prob": text.attention_dropout,
            "layer_norm_eps": text.norm_eps,
            "encoder_width": own["vision_width"],
        },
    }
