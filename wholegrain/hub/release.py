"""A release: the folder that is a model, for whoever wants to use it.

It holds ``model.safetensors``, ``config.json``, ``tokenizer.json``, ``README.md`` (the model card)
and ``checksums.json`` with the sha256 of the others. Loading one reads data only: nothing in it is
executed or unpickled, and nothing is read before its checksum is right.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wholegrain.config import from_dict, to_dict
from wholegrain.data.corpus_manifest import file_sha256
from wholegrain.data.shard_folder import atomic_folder
from wholegrain.errors import CheckpointError, ConfigError, DataError, ReleaseError
from wholegrain.hub.card import Card, render_card
from wholegrain.model.config import ModelConfig
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.weights import load_weights, save_weights
from wholegrain.text import Tokenizer

FORMAT = 1
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
CARD, CHECKSUMS = "README.md", "checksums.json"
FILES = (WEIGHTS, CONFIG, TOKENIZER, CARD)

_MAX_JSON_BYTES = 64 << 20
_CONFIG_KEYS = {"format", "model", "extras"}


@dataclass(frozen=True, slots=True)
class ReleaseInfo:
    """What a release says of itself beside its weights."""

    folder: Path
    config: ModelConfig
    extras: dict[str, Any] = field(default_factory=dict)
    """Facts that use depends on, such as ``max_tokens``; plain JSON values."""
    checksums: dict[str, str] = field(default_factory=dict)
    """File name to sha256."""


def save_release(
    folder: Path | str,
    model: MultiGrainModel,
    tokenizer: Tokenizer,
    *,
    card: Card,
    extras: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a release; the folder appears whole or not at all. Returns it.

    Args:
        folder: must not exist, unless `overwrite` and it is a release.
        model: its weights are written in their own precision.
        tokenizer: that of the training.
        card: what the README tells.
        extras: see `ReleaseInfo`; JSON values only.
        overwrite: replace an earlier release.

    Raises:
        ReleaseError: the folder exists, or tokenizer and model disagree.
    """
    folder = Path(folder)
    _check_vocabulary(folder, model.config, tokenizer)
    described = {
        "format": FORMAT,
        "model": to_dict(model.config_now()),
        "extras": dict(extras or {}),
    }
    try:
        with atomic_folder(folder, overwrite=overwrite, marker=CHECKSUMS) as partial:
            save_weights(model, partial / WEIGHTS)
            _write_json(partial / CONFIG, described)
            tokenizer.save(partial / TOKENIZER)
            (partial / CARD).write_text(render_card(card, model), encoding="utf-8")
            sums = {name: file_sha256(partial / name) for name in FILES}
            _write_json(partial / CHECKSUMS, {"sha256": sums})
            for name in (*FILES, CHECKSUMS):
                _make_durable(partial / name)
    except ReleaseError:
        raise
    except DataError as error:
        raise ReleaseError(str(error)) from error
    return folder


def load_release(folder: Path | str) -> tuple[MultiGrainModel, Tokenizer, ReleaseInfo]:
    """Reads a release: the model on the CPU in evaluation mode, its tokenizer, and the rest.

    Raises:
        ReleaseError: names the file that is missing, altered or foreign, and the remedy.
    """
    info = read_info(folder)
    try:
        tokenizer = Tokenizer.load(info.folder / TOKENIZER)
        _check_vocabulary(info.folder, info.config, tokenizer)
        model = MultiGrainModel(info.config)
    except (ConfigError, DataError) as error:
        raise ReleaseError(f"{info.folder}: {error}") from error
    try:
        load_weights(model, info.folder / WEIGHTS)
    except CheckpointError as error:
        raise ReleaseError(str(error)) from error
    return model.eval(), tokenizer, info


def read_info(folder: Path | str) -> ReleaseInfo:
    """Verifies every file of a release and reads its configuration, without building the model.

    Raises:
        ReleaseError: as `load_release`.
    """
    folder = Path(folder)
    sums = verify_release(folder)
    path = folder / CONFIG
    described = read_json(path)
    if described.get("format") != FORMAT:
        raise ReleaseError(
            f"{path}: format is {described.get('format')!r}, this version reads {FORMAT}; "
            "update wholegrain, or fetch a release made for this version"
        )
    unknown = sorted(set(described) - _CONFIG_KEYS)
    if unknown or not isinstance(described.get("extras", {}), dict):
        raise ReleaseError(f"{path}: unknown or malformed keys {unknown or ['extras']}; update")
    try:
        config = model_config(described.get("model") or {}, where=f"{path}: model")
    except ConfigError as error:
        raise ReleaseError(str(error)) from error
    return ReleaseInfo(folder, config, described.get("extras", {}), sums)


def model_config(described: Mapping[str, Any], where: str) -> ModelConfig:
    """The configuration of a model that was kept, also by versions before this one.

    Raises:
        ConfigError: it cannot be read, or its adapters are of a kind that is no more.
    """
    described = dict(described)
    # Until adapters had hooks, a model had one at most, inside the host's own modules.
    if described.pop("adapter", None) is not None:
        raise ConfigError(
            f"{where}: its adapters are of an earlier version, whose names have changed; finetune "
            "again with `adapters`"
        )
    return from_dict(ModelConfig, described, where=where)


def verify_release(folder: Path) -> dict[str, str]:
    """Compares every file with ``checksums.json``; returns the checksums by file name.

    Raises:
        ReleaseError: no release, or one with a missing or altered file.
    """
    return read_checksums(folder, FILES)


def read_checksums(folder: Path, files: Sequence[str]) -> dict[str, str]:
    """As `verify_release`, of a folder with these files."""
    if not folder.is_dir():
        raise ReleaseError(f"{folder}: no such release folder; check the path")
    if not (folder / CHECKSUMS).is_file():
        raise ReleaseError(f"{folder / CHECKSUMS}: missing; {_remedy(folder)}")
    sums = read_json(folder / CHECKSUMS).get("sha256")
    if not isinstance(sums, dict):
        raise ReleaseError(f"{folder / CHECKSUMS}: sha256 is {sums!r:.80}; fetch it again")
    for name in files:
        path = folder / name
        if name not in sums:
            raise ReleaseError(f"{folder / CHECKSUMS}: sha256 lacks {name}; fetch it again")
        if not path.is_file():
            raise ReleaseError(f"{path}: missing; fetch it again from where the release came")
        if file_sha256(path) != sums[name]:
            raise ReleaseError(
                f"{path}: altered or damaged, its sha256 is not that of {CHECKSUMS}; "
                "fetch it again from where the release came"
            )
    return {name: str(sums[name]) for name in files}


def _remedy(folder: Path) -> str:
    nested = folder / "release"
    if (nested / CHECKSUMS).is_file():
        return f"this is a run folder, its release is {nested}"
    return "a release is written at the end of a stage, or fetched whole: check the path"


def _check_vocabulary(folder: Path, config: ModelConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size != config.text.vocab_size:
        raise ReleaseError(
            f"{folder / TOKENIZER}: {tokenizer.vocab_size} word pieces, but text.vocab_size of the "
            f"model is {config.text.vocab_size}; use the tokenizer of its training"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of bounded size.

    Raises:
        ReleaseError: it cannot be read, or holds something else.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ReleaseError(f"{path}: over {_MAX_JSON_BYTES >> 20} MiB; fetch it again")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ReleaseError(f"{path}: cannot be read ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise ReleaseError(f"{path}: holds a {type(content).__name__}, not an object; fetch again")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ReleaseError(f"{path.name}: extras are not plain JSON values ({error})") from None
    path.write_text(text + "\n", encoding="utf-8")


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
