"""Imports X-VLM's checkpoints: a published file becomes a release.

Every tensor of the file is taken, or known to be redundant and found equal to what it repeats; what
a file of its kind does not hold is initialised freshly, and said. Anything else is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from wholegrain.data.corpus_manifest import file_sha256
from wholegrain.data.leak_audit import release_extras
from wholegrain.errors import CheckpointError, ConfigError, ReleaseError
from wholegrain.hub.card import Card
from wholegrain.hub.release import save_release
from wholegrain.hub.resize import geometric_ratio, resize_bias_table, resize_positions
from wholegrain.hub.xvlm_config import model_config_of
from wholegrain.hub.xvlm_file import XvlmFile, read_xvlm, read_xvlm_file
from wholegrain.hub.xvlm_layout import (
    LAYOUTS,
    ORIGIN,
    as_layout,
    as_pretrained,
    inventory,
    layout_of,
)
from wholegrain.hub.xvlm_names import BACKBONE, TIED, WORDS, from_xvlm, is_index
from wholegrain.hub.xvlm_report import ImportReport
from wholegrain.model.config import ModelConfig, SwinVision, VitVision
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.text import Tokenizer

__all__ = ["convert_xvlm", "from_xvlm", "import_xvlm", "read_xvlm"]

_AUDIT = "What the original training saw is told where the file was published."
_MAX_TOKENS = 40  # the longest text of X-VLM's training
_SEED = 0  # of fresh heads, so that one file always gives the same release
_SHOWN = 4
_LARGEST_GROWTH = 8  # of the image's side; bounds what a slip of the finger can ask for
_FRESH_MODULES = {
    "contrastive": ("image_projection", "text_projection", "temperature"),
    "matching": ("match_head",),
    "masked language": ("masked_language_head",),
    "box": ("box_head",),
}
"""Our modules of each head of `HEADS`."""


def import_xvlm(
    path: Path,
    out: Path,
    *,
    vocab: Path | None,
    image_size: int | None = None,
    text_heads: int | None = None,
    vision_heads: int | None = None,
    local_layers: int | None = None,
    overwrite: bool = False,
) -> ImportReport:
    """Makes a release of a published file. Returns what went where.

    Args:
        path: a pretrained, retrieval or box-grounding file.
        out: the release; must not exist, unless `overwrite` and it is a release.
        vocab: BERT's ``vocab.txt``, or a ``tokenizer.json``.
        image_size: pixels; tables of positions are resized where it is not the file's own.
        text_heads, vision_heads, local_layers: see `model_config_of`.
        overwrite: replace an earlier release.

    Raises:
        CheckpointError: not such a file, or not whole; names tensor, found, expected and remedy.
        ConfigError: an argument does not suit the model.
        DataError: the vocabulary cannot be read.
        ReleaseError: the release cannot be written.
    """
    # What costs nothing to refuse, before a file of gigabytes is read.
    if vocab is None:
        raise ConfigError(
            "no vocabulary is given, and X-VLM's files hold none; pass --vocab with the vocab.txt "
            "of bert-base-uncased (30,522 lines)"
        )
    if os.path.lexists(out) and not overwrite:
        raise ReleaseError(f"{out}: the output folder exists; remove it, or ask to overwrite it")
    tokenizer = Tokenizer.load(vocab) if vocab.suffix == ".json" else Tokenizer.from_vocab(vocab)
    file = read_xvlm_file(path)
    try:
        config = model_config_of(
            file.state,
            file.config,
            text_heads=text_heads,
            vision_heads=vision_heads,
            local_layers=local_layers,
        )
        _check_vocabulary(vocab, tokenizer, config)
        model, report = convert_xvlm(file, config, image_size=image_size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    report.path, report.sha256 = path, file_sha256(path)
    extras = {
        "max_tokens": min(_MAX_TOKENS, config.text.max_positions),
        ORIGIN: {"file": path.name, "sha256": report.sha256, "layout": report.layout},
        **release_extras(_AUDIT),
    }
    card = _card(report, image_size)
    save_release(out, model, tokenizer, card=card, extras=extras, overwrite=overwrite)
    return report


def convert_xvlm(
    file: XvlmFile, config: ModelConfig, image_size: int | None = None
) -> tuple[MultiGrainModel, ImportReport]:
    """The model of a file, in evaluation mode, and what went where.

    Args:
        file: of `read_xvlm_file`.
        config: of `model_config_of`, at the file's own image size.
        image_size: pixels; None keeps the file's.

    Raises:
        CheckpointError: the file is not whole, or holds what its kind does not.
        ConfigError: the image size does not suit the encoder.
    """
    layout = layout_of(file.state)
    expected = as_layout(inventory(config), layout)
    _check(file.state, expected, layout)
    theirs = as_pretrained(file.state, layout)
    _check_tied(theirs)
    report = ImportReport(layout, config)
    report.count(theirs)
    state = from_xvlm(theirs, config.text.fusion_layer)
    if image_size is not None:
        config = _at_size(config, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = MultiGrainModel(config)
    own = model.state_dict()
    state = {name: _resized(name, value, own[name], report) for name, value in state.items()}
    for head in LAYOUTS["pretrained"]:
        if head not in LAYOUTS[layout]:
            fresh = {n: v for n, v in own.items() if n.startswith(_FRESH_MODULES[head])}
            report.fresh[head] = sum(value.numel() for value in fresh.values())
            state.update(fresh)
    model.load_state_dict(state, strict=True)
    report.config = config
    return model.eval(), report


def _check_vocabulary(vocab: Path, tokenizer: Tokenizer, config: ModelConfig) -> None:
    if tokenizer.vocab_size != config.text.vocab_size:
        raise CheckpointError(
            f"tensor {WORDS!r} has {config.text.vocab_size:,} rows, but the vocabulary {vocab} has "
            f"{tokenizer.vocab_size:,} pieces; pass the vocabulary of the file's training, which "
            "for X-VLM is the vocab.txt of bert-base-uncased (30,522 lines)"
        )


# --- checks -------------------------------------------------------------------------------------


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], layout: str) -> None:
    """Every tensor that a file of this kind has, of its shape and type, finite, and no other."""
    extra = [name for name in state if name not in expected]
    if extra:
        raise CheckpointError(
            f"{_some(extra)} not part of a {layout} file of X-VLM; import the file as X-VLM wrote "
            "it, or the one it was finetuned from"
        )
    # Tables of indices hold nothing that the configuration does not tell.
    missing = [name for name in expected if name not in state and not is_index(name)]
    if missing:
        raise CheckpointError(
            f"{_some(missing)} missing, expected in a {layout} file of X-VLM; fetch the file again"
        )
    for name, found in state.items():
        want = expected[name]
        if found.shape != want.shape or found.dtype != want.dtype:
            raise CheckpointError(
                f"tensor {name!r} is {_described(found)}, expected {_described(want)} beside the "
                "other tensors; fetch the file again, or convert it to that type"
            )
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            bad = int((~torch.isfinite(found)).sum())
            raise CheckpointError(
                f"tensor {name!r} holds NaN or infinity at {bad:,} of {found.numel():,} places, "
                "expected finite numbers; import an earlier file"
            )
        if is_index(name) and not torch.equal(found, want):
            raise CheckpointError(
                f"tensor {name!r} is another table than follows from the model's shapes; the file "
                "is of a changed X-VLM, which this cannot import"
            )


def _check_tied(theirs: Mapping[str, Tensor]) -> None:
    for second, first in TIED.items():
        if second in theirs and not torch.equal(theirs[second], theirs[first]):
            raise CheckpointError(
                f"tensor {second!r} differs from {first!r}, expected the same values under both "
                "names (tied weights); the file is of a changed X-VLM, which this cannot import"
            )


def _described(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _some(names: list[str]) -> str:
    """``tensor 'a' is``, or ``tensors 'a', 'b' and 7 more are``."""
    if len(names) == 1:
        return f"tensor {names[0]!r} is"
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    rest = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"tensors {shown}{rest} are"


# --- image size ---------------------------------------------------------------------------------


def _at_size(config: ModelConfig, image_size: int) -> ModelConfig:
    vision = config.vision
    if image_size > _LARGEST_GROWTH * vision.image_size:
        raise ConfigError(
            f"image size {image_size} is over {_LARGEST_GROWTH} times the file's "
            f"{vision.image_size}; choose one nearer to it"
        )
    if isinstance(vision, VitVision):
        return replace(config, vision=replace(vision, image_size=image_size))
    if not isinstance(vision, SwinVision) or image_size == vision.image_size:
        return config
    if vision.window * vision.final_patch != vision.image_size:
        raise ConfigError(
            f"the file's windows of {vision.window} at {vision.image_size} px are not X-VLM's (the "
            f"side over {vision.final_patch}); import it at its own size"
        )
    # The last stage stays one window, as X-VLM has it at every size.
    window = max(1, image_size // vision.final_patch)
    resized = replace(vision, image_size=image_size, window=window)
    _ratio(2 * vision.window - 1, 2 * window - 1)  # refuses sizes too far apart
    return replace(config, vision=resized)


def _ratio(old: int, new: int) -> float:
    return geometric_ratio(min(old, new), max(old, new))


def _resized(name: str, value: Tensor, own: Tensor, report: ImportReport) -> Tensor:
    if value.shape == own.shape:
        return value
    if name == f"{BACKBONE}pos_embed":
        side = round((own.shape[1] - 1) ** 0.5)
        old = round((value.shape[1] - 1) ** 0.5)
        report.resized[f"positions of {old} x {old} patches to {side} x {side}, bicubic"] += 1
        return resize_positions(value, side)
    side, old = round(len(own) ** 0.5), round(len(value) ** 0.5)
    how = "geometric rule" if side > old else "the geometric rule's inverse"
    key = f"relative positions of {old} x {old} offsets to {side} x {side}, {how}, "
    key += f"q {_ratio(old, side):.6f}"
    report.resized[key] += 1
    return resize_bias_table(value, side)


def _card(report: ImportReport, image_size: int | None) -> Card:
    # A file may have any name; the card is a document of its own markup.
    name = re.sub(r"[^\w.+-]", "_", report.path.name)
    command = ["python -m wholegrain import-xvlm", name, "--out DIR --vocab vocab.txt"]
    if image_size is not None:
        command.append(f"--image-size {image_size}")
    limits = [
        f"Its {head} head was not in the file and holds random values: train it before use."
        for head in report.fresh
    ]
    return Card(
        title=f"{name}, imported",
        summary=(
            f"The weights of X-VLM's {report.layout} checkpoint `{name}` "
            f"(sha256 `{report.sha256}`), by this library's names.\n\n"
            f"```\n{replace(report, path=Path(name))}\n```"
        ),
        leak_audit=_AUDIT,
        command=" ".join(command),
        limitations=limits,
    )
