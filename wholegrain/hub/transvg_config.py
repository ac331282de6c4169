"""What a TransVG file is of: its layout from its names, the model's sizes from its shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from wholegrain.errors import CheckpointError, ConfigError
from wholegrain.hub.backbone_files import WeightFile, missing_tensor
from wholegrain.model.config import (
    AdapterConfig,
    DetrVision,
    MlpBoxHead,
    MmcaConfig,
    ModelConfig,
    TextConfig,
)
from wholegrain.model.fusion_config import RegFusion

TRANSVG = "TransVG"
MMCA = "TransVG with MMCA's adapters"

_SHOWN = 4
_STRIDE = 32
_HEADS = 8  # of DETR's and of the fusion's attention: no shape tells them
_HEAD_WIDTH = 64  # of BERT's attention
_NETWORKS: dict[tuple[int, ...], str] = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}
_PLANES = [64, 128, 256, 512]
_STAGES = 3  # that MMCA adapts: the last ones, layer2 to layer4
_ADAPTED = re.compile(
    r"^visumodel\.(transformer\.encoder\.layers\.\d+\.text_linear_[qk]"
    r"|backbone\.0\.multimodal_layers\.\d+)\."
)
_BODY = "visumodel.backbone.0.body."
_BERT = "textmodel.bert."


def transvg_layout(names: Iterable[str]) -> str | None:
    """`TRANSVG` or `MMCA`, whichever the names are of; None for others."""
    names = set(names)
    if not {"reg_token.weight", "vl_pos_embed.weight"} <= names:
        return None
    return MMCA if any(_ADAPTED.match(name) for name in names) else TRANSVG


def layout_of(file: WeightFile) -> str:
    """The same of a file.

    Raises:
        CheckpointError: it is of neither.
    """
    layout = transvg_layout(file.tensors)
    if layout is None:
        raise CheckpointError(
            f"{file.path}: no TransVG ('reg_token.weight' or 'vl_pos_embed.weight' is missing); "
            f"its tensors are {some(sorted(file.tensors))}"
        )
    return layout


def transvg_config(
    file: WeightFile, *, image_size: int = 640, text_heads: int | None = None
) -> ModelConfig:
    """The configuration of the model that a file is of, from the shapes of its tensors.

    DETR and fusion have 8 attention heads, as all that are published.

    Args:
        file: of `read_weights`.
        image_size: pixels; tells how many of the positions belong to patches, the rest to words.
        text_heads: None takes 64 channels a head.

    Raises:
        CheckpointError: not such a file, or a tensor that tells a size is missing.
        ConfigError: the sizes do not make a model, or the image size does not suit the positions.
    """
    layout = layout_of(file)
    width = _shape(file, "reg_token.weight")[1]
    hidden = _shape(file, f"{_BERT}embeddings.word_embeddings.weight")[1]
    layers = 1 + last_layer(file.tensors, r"^textmodel\.bert\.encoder\.layer\.(\d+)\.")
    text = TextConfig(
        vocab_size=_shape(file, f"{_BERT}embeddings.word_embeddings.weight")[0],
        hidden_size=hidden,
        layers=layers,
        fusion_layer=layers,
        heads=text_heads or max(1, hidden // _HEAD_WIDTH),
        intermediate_size=_shape(file, f"{_BERT}encoder.layer.0.intermediate.dense.weight")[0],
        max_positions=_shape(file, f"{_BERT}embeddings.position_embeddings.weight")[0],
        type_vocab_size=_shape(file, f"{_BERT}embeddings.token_type_embeddings.weight")[0],
    )
    fusion = RegFusion(
        width=width,
        layers=1 + last_layer(file.tensors, r"^vl_transformer\.encoder\.layers\.(\d+)\."),
        heads=_HEADS,
        feed_forward=_shape(file, "vl_transformer.encoder.layers.0.linear1.weight")[0],
        max_text=_max_text(file, image_size, text.max_positions),
    )
    head = MlpBoxHead(
        layers=1 + last_layer(file.tensors, r"^bbox_embed\.layers\.(\d+)\."),
        width=_shape(file, "bbox_embed.layers.0.weight")[0],
    )
    vision = _vision(file, image_size)
    adapters: tuple[AdapterConfig, ...] = ()
    if layout == MMCA:
        adapters = (_mmca(file, vision.layers),)
    return ModelConfig(vision=vision, text=text, fusion=fusion, box_head=head, adapters=adapters)


def _shape(file: WeightFile, name: str) -> tuple[int, ...]:
    if name not in file.tensors:
        raise missing_tensor(file, name, TRANSVG)
    shape = tuple(file.tensors[name].shape)
    if len(shape) < 2:
        raise CheckpointError(
            f"{file.path}: tensor {name!r} is {shape}, expected a matrix; fetch the file again"
        )
    return shape


def _max_text(file: WeightFile, image_size: int, longest: int) -> int:
    """Places of words among the learnt positions: those that neither [REG] nor a patch has."""
    places = _shape(file, "vl_pos_embed.weight")[0]
    patches = (image_size // _STRIDE) ** 2
    words = places - 1 - patches
    if not 0 < words <= longest:
        raise ConfigError(
            f"{file.path}: of its {places:,} positions one is [REG]'s, and at image size "
            f"{image_size} {patches:,} are patches', which leaves {words:,} for words; give the "
            "image size of its training (files of a dilated DETR cannot be imported)"
        )
    return words


def _vision(file: WeightFile, image_size: int) -> DetrVision:
    stages = [
        1 + last_layer(file.tensors, rf"^{re.escape(_BODY)}layer{stage}\.(\d+)\.")
        for stage in range(1, 5)
    ]
    planes = [_shape(file, f"{_BODY}layer{stage}.0.conv1.weight")[0] for stage in range(1, 5)]
    options: dict[str, Any] = {}
    if tuple(stages) not in _NETWORKS or planes != _PLANES:
        options = {"layers": stages, "channels": planes}
    encoder = "visumodel.transformer.encoder.layers."
    return DetrVision(
        name="resnet50" if options else _NETWORKS[tuple(stages)],
        image_size=image_size,
        width=_shape(file, "visumodel.input_proj.weight")[0],
        layers=1 + last_layer(file.tensors, rf"^{re.escape(encoder)}(\d+)\."),
        heads=_HEADS,
        feed_forward=_shape(file, f"{encoder}0.linear1.weight")[0],
        options=options,
    )


def _mmca(file: WeightFile, layers: int) -> MmcaConfig:
    """Adapters as in the authors' release: queries and keys of all layers, three stages."""
    first = "visumodel.transformer.encoder.layers.0.text_linear_q."
    embed, text_dim = _shape(file, f"{first}gate_fusion.textual_linear_static_down.weight")
    return MmcaConfig(
        rank=_shape(file, f"{first}visual_linear_static_down.weight")[0],
        embed_dim=embed,
        gate_dim=_shape(file, f"{first}gate_fusion.mm_feat_embed_transform.0.weight")[0],
        blocks=layers,
        stages=_STAGES,
        text_dim=text_dim,
        convolution="release",
        form="composed",
    )


def last_layer(names: Iterable[str], pattern: str) -> int:
    """The highest number that a pattern finds; -1 for none."""
    found = (re.match(pattern, name) for name in names)
    return max((int(each.group(1)) for each in found if each), default=-1)


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = len(names) - _SHOWN
    return f"{', '.join(names[:_SHOWN])}{f' and {rest} more' if rest > 0 else ''}"
