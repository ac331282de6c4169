"""Imports TransVG's checkpoints and those of MMCA, which are TransVG's with adapters.

A file holds DETR's encoder under ``visumodel``, BERT under ``textmodel``, the fusion of [REG], text
and image, and a box head. Each tensor is taken, knowingly dropped, or an error; so is each that the
model still lacks, but for the heads that a file of this kind has not.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from wholegrain.data.corpus_manifest import file_sha256
from wholegrain.data.leak_audit import release_extras
from wholegrain.errors import CheckpointError, ConfigError, ReleaseError
from wholegrain.hub.backbone_files import Mapped, WeightFile, read_weights, unknown_tensor
from wholegrain.hub.card import Card
from wholegrain.hub.import_bert import from_bert
from wholegrain.hub.import_detr import DETR, from_detr
from wholegrain.hub.release import save_release
from wholegrain.hub.transvg_config import MMCA, last_layer, layout_of, some, transvg_config
from wholegrain.hub.xvlm_layout import ORIGIN
from wholegrain.model.config import ModelConfig
from wholegrain.model.fusion_config import RegFusion
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.text import Tokenizer

_AUDIT = "What the original training saw is told where the file was published."
_SEED = 0  # of fresh heads, so that one file always gives the same release

_VISION, _TEXT, _FUSION = "visumodel.", "textmodel.", "vl_transformer."
_WHOLE = {
    "reg_token.weight": "fusion.register",
    "vl_pos_embed.weight": "fusion.positions",
    "visu_proj.weight": "fusion.image_projection.weight",
    "visu_proj.bias": "fusion.image_projection.bias",
    "text_proj.weight": "fusion.text_projection.weight",
    "text_proj.bias": "fusion.text_projection.bias",
}
_TEXT_DIM = "adapters.mmca.text_projection"
_LINEAR_PLACE = re.compile(
    r"^visumodel\.transformer\.encoder\.layers\.(\d+)\.text_linear_([qk])\.(.+)$"
)
_STAGE_PLACE = re.compile(r"^visumodel\.backbone\.0\.multimodal_layers\.(\d+)\.(.+)$")
_GATE = "gate_fusion.mm_feat_embed_transform"
_UPDATE_PARTS = {
    "gate_fusion.visual_linear_static_down.weight": "coefficients.image.weight",
    "gate_fusion.textual_linear_static_down.weight": "coefficients.text.weight",
    **{
        f"{_GATE}.{n}.{kind}": f"coefficients.gate.{n}.{kind}"
        for n in (0, 2)
        for kind in ("weight", "bias")
    },
    "text_linear_w": "coefficients.weights.weight",
    "text_linear_b": "coefficients.weights.bias",
}
_LINEAR_PARTS = {
    **_UPDATE_PARTS,
    "visual_linear_static_down.weight": "down.weight",
    "visual_linear_static_up.weight": "up.weight",
}
_STAGE_PARTS = {
    **_UPDATE_PARTS,
    **{
        f"visual_conv_static_{part}.{kind}": f"{part}.{kind}"
        for part in ("down", "up")
        for kind in ("weight", "bias")
    },
}
# Parts of the model that no such file fills.
_FRESH = re.compile(
    r"^(image_projection|text_projection|temperature|contrastive_bias|match_head"
    r"|masked_language_head|box_head\.quality)(\.|$)"
)


@dataclass
class TransvgReport:
    """What went where; `str` gives it as lines to print."""

    path: Path
    layout: str
    config: ModelConfig
    sha256: str = ""
    tensors: Counter[str] = field(default_factory=Counter)
    """Tensors by the part of the model that they went to."""
    parameters: Counter[str] = field(default_factory=Counter)
    """Values in them."""
    dropped: tuple[str, ...] = ()
    """The file's tensors that the model has no use for."""
    cast: dict[str, int] = field(default_factory=dict)
    """Tensors of the file that were of another precision than fp32, by precision."""
    fresh: dict[str, int] = field(default_factory=dict)
    """Parts that the file has not, with the parameters that were drawn at random."""

    def __str__(self) -> str:
        lines = [
            f"file     {self.path} (sha256 {self.sha256})",
            f"kind     {self.layout}",
            *(
                f"{part:<16} {count:>5,} tensors {self.parameters[part]:>12,} parameters"
                for part, count in self.tensors.items()
            ),
            *([f"dropped  {some(self.dropped)}"] if self.dropped else []),
            *(f"cast     {n} tensors of {kind} to float32" for kind, n in self.cast.items()),
            *(
                f"FRESH    {part} ({count:,} parameters) is not in the file: RANDOM, train it "
                "before use"
                for part, count in self.fresh.items()
            ),
        ]
        return "\n".join(lines)


def import_transvg(
    path: Path,
    out: Path,
    *,
    vocab: Path | None,
    image_size: int = 640,
    text_heads: int | None = None,
    overwrite: bool = False,
) -> TransvgReport:
    """Makes a release of a published file. Returns what went where.

    Args:
        path: a checkpoint of TransVG's or MMCA's training.
        out: the release; must not exist, unless `overwrite` and it is a release.
        vocab: BERT's ``vocab.txt``, or a ``tokenizer.json``.
        image_size, text_heads: see `transvg_config`.
        overwrite: replace an earlier release.

    Raises:
        CheckpointError: not such a file, or not whole; names the tensor.
        ConfigError: no vocabulary, or an argument that does not suit the file.
        DataError: the vocabulary cannot be read.
        ReleaseError: the release cannot be written.
    """
    if vocab is None:
        raise ConfigError(
            "no vocabulary is given, and TransVG's files hold none; pass --vocab with the "
            "vocab.txt of bert-base-uncased (30,522 lines)"
        )
    if os.path.lexists(out) and not overwrite:
        raise ReleaseError(f"{out}: the output folder exists; remove it, or ask to overwrite it")
    tokenizer = Tokenizer.load(vocab) if vocab.suffix == ".json" else Tokenizer.from_vocab(vocab)
    file = read_weights(path)
    config = transvg_config(file, image_size=image_size, text_heads=text_heads)
    model, report = convert_transvg(file, config)
    report.sha256 = file_sha256(path)
    assert isinstance(config.fusion, RegFusion)
    extras = {
        "max_tokens": config.fusion.max_text,
        ORIGIN: {"file": path.name, "sha256": report.sha256, "layout": report.layout},
        **release_extras(_AUDIT),
    }
    save_release(out, model, tokenizer, card=_card(report), extras=extras, overwrite=overwrite)
    return report


def convert_transvg(file: WeightFile, config: ModelConfig) -> tuple[MultiGrainModel, TransvgReport]:
    """The model of a file, in evaluation mode, and what went where.

    Args:
        file: of `read_weights`.
        config: of `transvg_config`.

    Raises:
        CheckpointError: the file is not whole, holds what the model has no place for, or lacks the
            adapters that the configuration asks for.
    """
    layout = layout_of(file)
    asked = any(adapter.kind == "mmca" for adapter in config.adapters)
    if asked != (layout == MMCA):
        told, remedy = ("asks for", "leave them out") if asked else ("has no", "add them")
        raise CheckpointError(
            f"{file.path}: holds {layout}, but the configuration {told} adapters of kind `mmca`; "
            f"{remedy}, or take another file"
        )
    mapped = from_transvg(file, layout, config.text.fusion_layer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = MultiGrainModel(config)
    own = model.state_dict()
    fresh = {name: value for name, value in own.items() if _FRESH.match(name)}
    _check(file, mapped, {name: value for name, value in own.items() if name not in fresh})
    model.load_state_dict({**fresh, **mapped.tensors}, strict=True)
    report = TransvgReport(file.path, layout, config, dropped=tuple(mapped.dropped), cast=file.cast)
    for name, value in mapped.tensors.items():
        part = name.partition(".")[0]
        report.tensors[part] += 1
        report.parameters[part] += value.numel()
    for name, value in fresh.items():
        part = "box_head.quality" if name.startswith("box_head.") else name.partition(".")[0]
        report.fresh[part] = report.fresh.get(part, 0) + value.numel()
    return model.eval(), report


# --- names --------------------------------------------------------------------------------------


def from_transvg(file: WeightFile, layout: str, fusion_layer: int) -> Mapped:
    """A file's tensors under our names.

    Args:
        file: of `read_weights`.
        layout: of `transvg_layout`.
        fusion_layer: the text layers; all of BERT's for these files.

    Raises:
        CheckpointError: a tensor that the layout has no place for.
    """
    mapped = Mapped(layout)
    parts: dict[str, dict[str, Tensor]] = {_VISION: {}, _TEXT: {}, _FUSION: {}}
    last = last_layer(file.tensors, r"^bbox_embed\.layers\.(\d+)\.")
    for name, tensor in file.tensors.items():
        if name in _WHOLE:
            mapped.tensors[_WHOLE[name]] = tensor
            if layout == MMCA and name.startswith("text_proj."):
                # In the file adapters and fusion share it; here each has its own.
                mapped.tensors[f"{_TEXT_DIM}.{name.rpartition('.')[2]}"] = tensor
            continue
        ours = _update(name, tensor) or _head(name, tensor, last)
        prefix = next((each for each in parts if name.startswith(each)), None)
        if ours:
            mapped.tensors |= ours
        elif prefix:
            # The fusion's layers are DETR's, by the same names.
            plain = name.removeprefix("vl_" if prefix == _FUSION else prefix)
            parts[prefix][plain] = tensor
        else:
            raise unknown_tensor(file, name, layout)
    detr = from_detr(WeightFile(file.path, parts[_VISION]), DETR)
    bert = from_bert(WeightFile(file.path, parts[_TEXT]), fusion_layer)
    fusion = from_detr(WeightFile(file.path, parts[_FUSION]), DETR)
    mapped.tensors |= detr.tensors | bert.tensors
    mapped.tensors |= {
        f"fusion.{n.removeprefix('vision.')}": each for n, each in fusion.tensors.items()
    }
    mapped.dropped = [_VISION + name for name in detr.dropped]
    mapped.dropped += [_TEXT + name for name in bert.dropped]
    mapped.dropped += [f"vl_{name}" for name in fusion.dropped]
    return mapped


def _update(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of an adapter; empty for others."""
    layer, stage = _LINEAR_PLACE.match(name), _STAGE_PLACE.match(name)
    if layer:
        number, part, inner = layer.groups()
        place = f"vision_block_{int(number) + 1}_{'query' if part == 'q' else 'key'}"
        known = _LINEAR_PARTS.get(inner)
    elif stage:
        # Counted from layer2; the stem's layer1 is never adapted.
        place, inner = f"vision_stage_{int(stage.group(1)) + 2}", stage.group(2)
        known = _STAGE_PARTS.get(inner)
    else:
        return {}
    if known is None:
        return {}
    if inner == "text_linear_w":  # stored the other way round
        tensor = tensor.T.contiguous()
    if known == "coefficients.image.weight":  # a 1 x 1 convolution where it reads a map
        tensor = tensor.flatten(1)
    return {f"adapters.mmca.updates.{place}.{known}": tensor}


def _head(name: str, tensor: Tensor, last: int) -> dict[str, Tensor]:
    """A tensor of the box head; empty for others."""
    found = re.match(r"^bbox_embed\.layers\.(\d+)\.(weight|bias)$", name)
    if not found:
        return {}
    number, kind = int(found.group(1)), found.group(2)
    return {f"box_head.{'box' if number == last else f'hidden.{number}'}.{kind}": tensor}


# --- checks and words ---------------------------------------------------------------------------


def _check(file: WeightFile, mapped: Mapped, expected: Mapping[str, Tensor]) -> None:
    """Every tensor of the model, of its shape, finite, and no other."""
    found = mapped.tensors
    reshaped = [
        f"{name} is {tuple(tensor.shape)} in the file, {tuple(expected[name].shape)} in the model"
        for name, tensor in found.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    problems = [
        f"{what} {some(names)}"
        for what, names in (
            ("the model has no", sorted(found.keys() - expected.keys())),
            ("the file lacks", sorted(expected.keys() - found.keys())),
            ("sizes differ:", reshaped),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{file.path}: {mapped.layout} does not fit the configured model: "
            f"{'; '.join(problems)}. Fetch the file again, or give the configuration of its sizes"
        )
    broken = [name for name, tensor in found.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{file.path}: NaN or infinity in {some(broken)}; fetch it again")


def _card(report: TransvgReport) -> Card:
    name = re.sub(r"[^\w.+-]", "_", report.path.name)
    return Card(
        title=f"{name}, imported",
        summary=(
            f"The weights of the checkpoint `{name}` ({report.layout}, sha256 "
            f"`{report.sha256}`), by this library's names."
        ),
        leak_audit=_AUDIT,
        command=f"python -m wholegrain import-transvg {name} --out DIR --vocab vocab.txt",
        limitations=[
            "Its training padded photos to a square and ended texts with [SEP]; here photos are "
            "squeezed to the square and texts have no [SEP]. Finetune it before figures are "
            "compared with published ones.",
            "The head that tells how well a box fits was not in the file and holds random values: "
            "scores mean nothing before it is trained.",
        ],
    )
