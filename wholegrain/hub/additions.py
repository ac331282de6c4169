"""What finetuning added to a released model, kept by itself: a few megabytes beside the release.

The folder holds ``additions.safetensors`` (adapters, box head, and the fusion where it is a new
one), ``additions.json`` (their configuration, and which release they belong to) and
``checksums.json``. It is no model: it is loaded together with its base, whose weights must be those
that it was learnt on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wholegrain.config import to_dict
from wholegrain.data.corpus_manifest import file_sha256
from wholegrain.data.shard_folder import atomic_folder
from wholegrain.errors import CheckpointError, ConfigError, DataError, ReleaseError
from wholegrain.hub.release import (
    CHECKSUMS,
    WEIGHTS,
    ReleaseInfo,
    load_release,
    model_config,
    read_checksums,
    read_json,
)
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.weights import distinct, load_tensors, save_tensors
from wholegrain.text import Tokenizer

FORMAT = 1
TENSORS, ABOUT = "additions.safetensors", "additions.json"
_PARTS = ("adapters.", "box_head.", "fusion.")
_KEYS = ("adapters", "box_head", "fusion")


def added(model: MultiGrainModel) -> dict[str, Tensor]:
    """The tensors of a model that its base does not bring, by name."""
    state = distinct(model.state_dict())
    return {name: value for name, value in state.items() if name.startswith(_PARTS)}


def save_additions(
    folder: Path | str,
    model: MultiGrainModel,
    base: Path | str,
    *,
    extras: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes what a finetuned model has and its base has not; returns the folder.

    Args:
        folder: must not exist, unless `overwrite` and it holds additions.
        model: finetuned with ``train_host: false``.
        base: the release that it started from.
        extras: facts that use depends on, in place of the base's; JSON values only.
        overwrite: replace earlier additions.

    Raises:
        ReleaseError: the folder exists, `base` is no whole release, or its weights are not the
            model's: then only a release of the whole model can give it back.
    """
    folder = Path(folder)
    host, _, info = load_release(base)
    _check_same_host(model, host, info)
    about = {
        "format": FORMAT,
        "base": info.checksums[WEIGHTS],
        "base_name": info.folder.name,
        "model": {key: to_dict(model.config_now())[key] for key in _KEYS},
        "extras": {**info.extras, **dict(extras or {})},
    }
    try:
        with atomic_folder(folder, overwrite=overwrite, marker=ABOUT) as partial:
            save_tensors(added(model), partial / TENSORS)
            text = json.dumps(about, indent=1, allow_nan=False)
            (partial / ABOUT).write_text(text + "\n", encoding="utf-8")
            sums = {name: file_sha256(partial / name) for name in (TENSORS, ABOUT)}
            (partial / CHECKSUMS).write_text(json.dumps({"sha256": sums}) + "\n", encoding="utf-8")
    except DataError as error:
        raise ReleaseError(str(error)) from error
    return folder


def load_additions(
    folder: Path | str, base: Path | str
) -> tuple[MultiGrainModel, Tokenizer, ReleaseInfo]:
    """The finetuned model, from its additions and its base; results as of `load_release`.

    Raises:
        ReleaseError: a file of either is missing, altered or foreign, or the additions were learnt
            on another base.
    """
    folder = Path(folder)
    read_checksums(folder, (TENSORS, ABOUT))
    about = read_json(folder / ABOUT)
    if about.get("format") != FORMAT:
        raise ReleaseError(
            f"{folder / ABOUT}: format is {about.get('format')!r}, this version reads {FORMAT}; "
            "update wholegrain"
        )
    model, tokenizer, info = load_release(base)
    if about.get("base") != info.checksums[WEIGHTS]:
        raise ReleaseError(
            f"{folder}: learnt on the release {about.get('base_name')!r} whose {WEIGHTS} has the "
            f"sha256 {about.get('base')}, but that of {info.folder} is {info.checksums[WEIGHTS]}; "
            "give the release that it belongs to"
        )
    try:
        described = {**to_dict(model.config), **dict(about.get("model") or {})}
        config = model_config(described, where=str(folder / ABOUT))
        model.new_fusion(config.fusion, config.box_head)
        for adapter in config.adapters[len(model.config.adapters) :]:
            model.add_adapter(adapter)
        load_tensors(added(model), folder / TENSORS)
    except (ConfigError, CheckpointError, TypeError, ValueError) as error:
        raise ReleaseError(f"{folder}: {error}") from error
    extras = dict(about.get("extras") or {})
    return model.eval(), tokenizer, replace(info, config=model.config, extras=extras)


def _check_same_host(model: MultiGrainModel, host: MultiGrainModel, info: ReleaseInfo) -> None:
    """ReleaseError unless all that is not added is as the base has it."""
    ours, theirs = distinct(model.state_dict()), distinct(host.state_dict())
    for name, value in theirs.items():
        if name.startswith(_PARTS):
            continue
        if name not in ours or not torch.equal(ours[name].cpu(), value):
            raise ReleaseError(
                f"{name} is not as the base {info.folder} has it, so additions alone would not "
                "give the model back; finetune with train_host: false, or keep a whole release"
            )
