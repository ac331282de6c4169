"""X-VLM's files: ``{"model": state_dict, "config": dict}`` as ``torch.save`` writes it.

Reading takes tensors and plain values alone; whatever else a file holds is refused unrun.
"""

from __future__ import annotations

import os
import re
import secrets
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wholegrain.data.shard_folder import sync_folder
from wholegrain.errors import CheckpointError, DataError

_AGAIN = "Fetch the file again from where it was published"
_PARALLEL = "module."  # what data-parallel training puts before every name
# In torch's own report, the rest of which advises to read the file unprotected.
_CAUSE = re.compile(r"WeightsUnpickler error: (.+)")
_FOREIGN = re.compile(r"GLOBAL ([\w.]+)")


@dataclass(frozen=True, slots=True)
class XvlmFile:
    """What a file holds."""

    state: dict[str, Tensor]
    """Tensors by X-VLM's names."""
    config: dict[str, Any]
    """The configuration of its training; empty where none is stored."""


def read_xvlm(path: Path) -> dict[str, Tensor]:
    """The state dict of a published file; tensors and plain values alone are read.

    Raises:
        CheckpointError: not such a file.
    """
    return read_xvlm_file(path).state


def read_xvlm_file(path: Path) -> XvlmFile:
    """State dict and configuration of a published file, or of a bare state dict.

    Raises:
        CheckpointError: not such a file; says what it is instead where that can be told.
    """
    _check_container(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a foreign or damaged file
        raise CheckpointError(
            f"{path}: not a checkpoint of tensors and plain values ({_reason(error)}); nothing of "
            f"it was run. {_AGAIN}"
        ) from None
    state = content.get("model", content) if isinstance(content, Mapping) else None
    named = isinstance(state, Mapping) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    )
    if not isinstance(state, Mapping) or not named:
        raise CheckpointError(
            f"{path}: holds no state dict (tensors by name), neither bare nor under 'model'. "
            f"{_AGAIN}"
        )
    config = content.get("config") if state is not content else None
    tensors = {name: value.detach() for name, value in state.items()}
    if tensors and all(name.startswith(_PARALLEL) for name in tensors):
        tensors = {name.removeprefix(_PARALLEL): value for name, value in tensors.items()}
    for name, value in tensors.items():
        _check_dense(path, name, value)
    return XvlmFile(tensors, dict(config) if isinstance(config, Mapping) else {})


def write_xvlm_file(path: Path, file: XvlmFile, *, overwrite: bool = False) -> None:
    """Writes a file in the published layout; it appears whole or not at all.

    Args:
        path: must not exist, unless `overwrite` and it is a file.
        file: tensors that share memory are stored once.
        overwrite: replace a file of that name once the new one is complete.

    Raises:
        DataError: the file exists, or cannot be written.
    """
    check_free(path, overwrite=overwrite)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("xb") as stream:
            torch.save({"model": file.state, "config": file.config}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        check_free(path, overwrite=overwrite)
        os.replace(aside, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:200]
        raise DataError(
            f"{path}: cannot be written ({reason}); choose a place with room that you may write to"
        ) from error
    finally:
        with suppress(OSError):  # mostly because it is in place, or its folder could not be made
            aside.unlink()


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuses, before any work, a file that must not be written.

    Raises:
        DataError: `path` is there already, and is no file or is not to be overwritten.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file():
        raise DataError(f"{path}: exists and is no plain file; choose another path")
    if not overwrite:
        raise DataError(f"{path}: the file exists; remove it, or ask to overwrite it")


def _check_container(path: Path) -> None:
    """Tells apart what is often found under a checkpoint's name, which torch would not name."""
    try:
        with path.open("rb") as stream:
            head = stream.read(256)
    except OSError as error:
        raise CheckpointError(
            f"{path}: not a checkpoint that can be read ({error.strerror}); check the path"
        ) from None
    begin = head.lstrip()[:9].lower()
    wrong = ""
    if not head:
        wrong = "it is empty"
    elif begin.startswith((b"<html", b"<!doctype")):
        wrong = "it is a web page: the link has expired or asks for a confirmation"
    elif head.startswith(b"version https://git-lfs"):
        wrong = "it is a pointer of Git LFS; `git lfs pull` fetches the file itself"
    elif head.startswith(b"PK"):
        wrong = _wrong_archive(path)
    if wrong:
        raise CheckpointError(f"{path}: not a checkpoint; {wrong}. {_AGAIN}")


def _wrong_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "it is cut short or damaged"
    if not any(member.filename.endswith("/data.pkl") for member in members):
        return "it is a zip archive of other files; unpack it and give the checkpoint inside"
    # torch stores without compression; unpacking what is compressed could fill any memory.
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        return "its parts are compressed, as torch never writes them"
    return ""


def _check_dense(path: Path, name: str, value: Tensor) -> None:
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        raise CheckpointError(
            f"{path}: tensor {name!r} is sparse, quantised or without values; export it as a dense "
            "tensor"
        )
    # A repeated view can claim any size at no cost to the file.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(
            f"{path}: tensor {name!r} claims shape {tuple(value.shape)}, more than the file holds "
            f"of it. {_AGAIN}"
        )


def _reason(error: Exception) -> str:
    """What went wrong, without torch's advice to read the file unprotected."""
    message = str(error)
    foreign = _FOREIGN.search(message)
    if foreign:
        return f"it holds a {foreign.group(1)}, which is code rather than data"
    cause = _CAUSE.search(message)
    first = cause.group(1) if cause else message.partition("\n")[0]
    return "its content is damaged" if "weights_only" in first else first[:200]
