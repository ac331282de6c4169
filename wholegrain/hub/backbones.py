"""Starts a model from pretrained backbones: an image encoder's file and a BERT's.

Each file's layout is recognised from its names. Everything in it is either taken, dropped knowingly
(classifiers, decoders, poolers) or an error, and so is everything that the model still lacks. Both
files are checked whole before the first weight of the model changes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wholegrain.errors import CheckpointError, ConfigError
from wholegrain.hub import import_bert, import_detr, import_vision
from wholegrain.hub.backbone_files import Mapped, WeightFile, read_weights
from wholegrain.hub.resize import resize_bias_table, resize_positions
from wholegrain.model.config import ModelConfig, TextConfig, VisionConfig, VitVision
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.weights import distinct

# What each layout of an image encoder asks of the configuration.
_WANTED = {
    import_vision.SWIN: "swin",
    import_vision.SWIN_TIMM: "swin",
    import_vision.VIT_TIMM: "vit",
    import_vision.VIT_HF: "vit",
    import_vision.CLIP_HF: "clip",
    import_vision.CLIP_TIMM: "clip",
    import_detr.DETR: "detr",
    import_detr.DETR_HF: "detr",
}
_SETTINGS = {
    "swin": "vision.kind: swin",
    "vit": "vision.kind: vit with clip: false",
    "clip": "vision.kind: vit with clip: true",
    "detr": "vision.kind: detr",
}
_SIZES = {
    "swin": "vision.embed_dim, depths and heads",
    "vit": "vision.width, depth, patch_size and mlp_ratio",
    "clip": "vision.width, depth, patch_size and mlp_ratio",
    "detr": "vision.name, width, layers and feed_forward",
    "text": "text.vocab_size, hidden_size, layers, intermediate_size and max_positions",
}
_XVLM = re.compile(r"^(vision_encoder|text_encoder)\.")
_SHOWN = 4
_NO_SETTING = "no setting changes it; take another file"


@dataclass(frozen=True)
class PartReport:
    """What became of one file."""

    path: Path
    layout: str
    """What it was recognised as."""
    taken: dict[str, int]
    """Where its tensors went: part of the model to number of tensors there."""
    parameters: int
    """Numbers in them."""
    resized: tuple[str, ...] = ()
    """Tables that were fitted to the model's image size: ``name (169, 4) to (529, 4)``."""
    cast: dict[str, int] = field(default_factory=dict)
    """Tensors of the file that were of another precision than fp32, by precision."""
    dropped: tuple[str, ...] = ()
    """The file's tensors that the model has no use for."""
    redundant: tuple[str, ...] = ()
    """Those that follow from others: index tables, masks, counters, second names of tied ones."""
    notes: tuple[str, ...] = ()
    """What else a reader should know."""


@dataclass(frozen=True)
class BackboneReport:
    """What `load_backbones` did."""

    parts: tuple[PartReport, ...]
    fresh: dict[str, int]
    """Parts of the model that keep their fresh initialisation, and their numbers of tensors."""

    def __str__(self) -> str:
        lines = []
        for part in self.parts:
            where = ", ".join(f"{place} {count}" for place, count in part.taken.items())
            shapes = Counter(each.partition(" ")[2] for each in part.resized)
            lines += [
                f"{part.path}: {part.layout}",
                f"  taken    {part.parameters:,} numbers, tensors: {where}",
                *(f"  resized  {count} tables {sizes}" for sizes, count in shapes.items()),
                *(f"  cast     {n} tensors of {kind} to float32" for kind, n in part.cast.items()),
                *([f"  dropped  {_some(part.dropped)}"] if part.dropped else []),
                *([f"  implied  {_some(part.redundant)}"] if part.redundant else []),
                *(f"  note     {note}" for note in part.notes),
            ]
        fresh = ", ".join(f"{place} {count}" for place, count in self.fresh.items())
        return "\n".join([*lines, f"fresh: {fresh or 'nothing'}"])


@dataclass
class _Fitted:
    """Tensors ready to be copied, and the report of them."""

    tensors: dict[str, Tensor]
    report: PartReport


def load_backbones(
    model: MultiGrainModel, vision: Path | None = None, text: Path | None = None
) -> BackboneReport:
    """Fills a fresh model's encoders from published weights, in place.

    Args:
        model: without adapters; its configuration says what is expected of the files.
        vision: a file of Swin, ViT, DeiT, CLIP or DETR, or the folder of Hugging Face's that
            holds one; None leaves the image encoder fresh.
        text: the same of a BERT, which fills the text encoder, the cross encoder but for its
            cross-attention, and the masked-language head where it has one.

    Returns:
        What went where, what was dropped, what stays fresh.

    Raises:
        CheckpointError: a file that is unreadable, of another architecture or other sizes; the
            model is then as it was.
        ConfigError: the model carries adapters, or an image encoder that no layout describes.
    """
    if model.adapters:
        raise ConfigError("the model has adapters; load its backbones first, then attach them")
    expected = distinct(model.state_dict())
    fitted = []
    if vision is not None:
        fitted.append(_fit_vision(model, expected, Path(vision)))
    if text is not None:
        fitted.append(_fit_text(model.config, expected, Path(text)))
    taken = {name: tensor for each in fitted for name, tensor in each.tensors.items()}
    with torch.no_grad():
        for name, tensor in taken.items():
            expected[name].copy_(tensor)
    return BackboneReport(tuple(each.report for each in fitted), _fresh(expected, taken))


# --- one file -----------------------------------------------------------------------------------


def _fit_vision(model: MultiGrainModel, expected: Mapping[str, Tensor], path: Path) -> _Fitted:
    config = model.config.vision
    asked = _asked(config)
    file = read_weights(path)
    layout = import_vision.vision_layout(file.tensors) or import_detr.detr_layout(file.tensors)
    if layout is None:
        hint = "it is a BERT: name it under 'text'" if import_bert.is_bert(file.tensors) else ""
        raise _unrecognised(file, "image encoder", sorted(_WANTED), hint)
    wanted = _WANTED[layout]
    if asked != wanted:
        raise CheckpointError(
            f"{file.path}: holds {layout}, but the model has {_SETTINGS[asked]}; set "
            f"{_SETTINGS[wanted]}, or name another file"
        )
    notes = _check_description(file, wanted, model.config)
    mapped = (import_detr.from_detr if wanted == "detr" else import_vision.from_vision)(
        file, layout
    )
    resized = _resize(file, mapped, expected, model.vision.grid)
    return _fit(file, mapped, expected, _SIZES[wanted], ["vision."], tuple(resized), notes)


def _fit_text(config: ModelConfig, expected: Mapping[str, Tensor], path: Path) -> _Fitted:
    file = read_weights(path)
    if not import_bert.is_bert(file.tensors):
        other = import_vision.vision_layout(file.tensors) or import_detr.detr_layout(file.tensors)
        hint = f"it is {other}: name it under 'vision'" if other else ""
        raise _unrecognised(file, "text encoder", [import_bert.LAYOUT], hint)
    notes = _check_description(file, "text", config)
    mapped = import_bert.from_bert(file, config.text.fusion_layer)
    scope = ["text.", "cross."]
    if any(name.startswith(import_bert.HEAD) for name in mapped.tensors):
        scope.append(import_bert.HEAD)
    return _fit(file, mapped, expected, _SIZES["text"], scope, (), notes)


def _asked(config: VisionConfig) -> str:
    kind = "clip" if isinstance(config, VitVision) and config.clip else config.kind
    if kind not in _SETTINGS:
        raise ConfigError(
            f"vision.kind is {config.kind!r}, for which no layout of published weights is known; "
            f"choose one of {', '.join(_SETTINGS.values())}, or start it fresh"
        )
    return kind


def _unrecognised(
    file: WeightFile, part: str, layouts: Iterable[str], hint: str
) -> CheckpointError:
    names = sorted(file.tensors)
    if any(_XVLM.match(name) for name in names):
        hint = "it is a whole X-VLM: read it with `python -m wholegrain import-xvlm`"
    return CheckpointError(
        f"{file.path}: no {part} of a known layout ({', '.join(layouts)}); its tensors are "
        f"{_some(names)}{'; ' if hint else ''}{hint}"
    )


def _fit(
    file: WeightFile,
    mapped: Mapped,
    expected: Mapping[str, Tensor],
    sizes: str,
    scope: list[str],
    resized: tuple[str, ...],
    notes: tuple[str, ...],
) -> _Fitted:
    """Holds the file's tensors against what the model expects under the prefixes of `scope`."""
    tensors = mapped.tensors
    wanted = {
        name
        for name in expected
        if name.startswith(tuple(scope)) and not import_bert.FRESH.match(name)
    }
    reshaped = [
        f"{name} is {tuple(tensor.shape)} in the file, {tuple(expected[name].shape)} in the model"
        for name, tensor in tensors.items()
        if name in wanted and tensor.shape != expected[name].shape
    ]
    problems = [
        f"{what} {_some(names)}"
        for what, names in (
            ("the model has no", sorted(tensors.keys() - wanted)),
            ("the file lacks", sorted(wanted - tensors.keys())),
            ("sizes differ:", reshaped),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{file.path}: {mapped.layout} does not fit the configured model: "
            f"{'; '.join(problems)}. Set {sizes} to those of the file"
        )
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{file.path}: NaN or infinity in {_some(broken)}; fetch it again")
    report = PartReport(
        path=file.path,
        layout=mapped.layout,
        taken=dict(Counter(_part(name) for name in tensors)),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        resized=resized,
        cast=file.cast,
        dropped=tuple(mapped.dropped),
        redundant=(*mapped.redundant, *file.integers),
        notes=notes,
    )
    return _Fitted(tensors, report)


# --- what depends on the image size -------------------------------------------------------------


def _resize(
    file: WeightFile, mapped: Mapped, expected: Mapping[str, Tensor], grid: tuple[int, int]
) -> list[str]:
    """Fits Swin's bias tables and ViT's positions to the model; returns what was done."""
    resized = []
    for name, tensor in mapped.tensors.items():
        goal = expected.get(name)
        if goal is None or goal.shape == tensor.shape or goal.dim() != tensor.dim():
            continue
        try:
            if name.endswith(".relative_position_bias_table") and tensor.shape[1] == goal.shape[1]:
                fitted = resize_bias_table(tensor, math.isqrt(len(goal)))
            elif name.endswith(".pos_embed") and tensor.shape[2] == goal.shape[2]:
                fitted = resize_positions(tensor, grid[0])
            else:
                continue
        except CheckpointError as error:
            raise CheckpointError(f"{file.path}: {name}: {error}") from None
        mapped.tensors[name] = fitted
        resized.append(f"{name} {tuple(tensor.shape)} to {tuple(goal.shape)}")
    return resized


# --- what tensors do not tell -------------------------------------------------------------------


def _check_description(file: WeightFile, wanted: str, config: ModelConfig) -> tuple[str, ...]:
    """Compares ``config.json``, where there is one, with what no shape shows; returns notes."""
    described: Any = file.described
    if wanted == "clip":
        described = described.get("vision_config", described)
    if not isinstance(described, Mapping):
        return ()
    part = config.text if wanted == "text" else config.vision
    head_key = "encoder_attention_heads" if wanted == "detr" else "num_attention_heads"
    checks = [_activation_check(described, wanted, part)]
    if wanted != "swin":  # whose tables show the heads
        field_name = "text.heads" if wanted == "text" else "vision.heads"
        checks.append((head_key, getattr(part, "heads", None), f"set {field_name} to the file's"))
    if wanted == "detr":  # a dilated network has the same tensors and twice the grid
        checks.append(("dilation", False, "take the DETR without DC5"))
    for key, ours, remedy in checks:
        if described.get(key, ours) != ours:
            raise CheckpointError(
                f"{file.path}: its config.json has {key} {described[key]!r}, the model {ours!r}; "
                f"{remedy}"
            )
    eps = {"text": config.text.norm_eps, "vit": 1e-6, "clip": 1e-5}.get(wanted)
    theirs = described.get("layer_norm_eps", eps)
    if theirs != eps:
        return (f"layer norms were trained with epsilon {theirs}, here it is {eps}",)
    return ()


def _activation_check(
    described: Mapping[str, Any], wanted: str, part: TextConfig | VisionConfig
) -> tuple[str, Any, str]:
    """The key of the activation, the model's own, and the remedy where the file's is another."""
    if wanted == "detr":
        return "activation_function", "relu", _NO_SETTING
    key = "hidden_act"
    if not isinstance(part, VitVision):
        return key, "gelu", _NO_SETTING
    # Of CLIP there are both: OpenAI's with quick GELU, LAION's with GELU.
    known = described.get(key) in ("gelu", "quick_gelu")
    return key, part.gelu, "set vision.activation to the file's" if known else _NO_SETTING


# --- words --------------------------------------------------------------------------------------


def _part(name: str) -> str:
    """The part of the model that a tensor belongs to: ``text.layers``, ``match_head``."""
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if first in {"vision", "text", "cross"} else first


def _detail(name: str) -> str:
    """The same, closer: ``cross.layers.*.cross_attention``."""
    return ".".join(re.sub(r"\.\d+\.", ".*.", name).split(".")[:-1][:4])


def _fresh(expected: Mapping[str, Tensor], taken: Mapping[str, Tensor]) -> dict[str, int]:
    started = {name.partition(".")[0] for name in taken}
    fresh: Counter[str] = Counter()
    for name in expected:
        if name not in taken:
            top = name.partition(".")[0]
            fresh[_detail(name) if top in started else top] += 1
    return dict(fresh)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:_SHOWN])
    rest = len(names) - _SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown
