"""Weight files of other libraries, read as data and checked before anything is made of them.

A file is safetensors or a PyTorch checkpoint (``.pth``, ``.bin``): a state dict, bare or under
``model``, of which nothing but tensors and plain values is unpickled. What comes out is in fp32.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wholegrain.errors import CheckpointError
from wholegrain.hub.xvlm_file import read_xvlm_file

# What a folder of Hugging Face's holds, in the order of preference.
FOLDER_NAMES = ("model.safetensors", "pytorch_model.bin")
_CONFIG = "config.json"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit

_PRECISIONS = (torch.float16, torch.bfloat16, torch.float64)
# Tables that follow from the configuration: the only integers that a weight file may hold.
_COUNTED = re.compile(
    r"(^|\.)(relative_position_index|position_ids|token_type_ids|num_batches_tracked)$"
)


@dataclass(frozen=True)
class WeightFile:
    """What a file of weights holds."""

    path: Path
    tensors: dict[str, Tensor]
    """fp32, by the file's own names."""
    cast: dict[str, int] = field(default_factory=dict)
    """Tensors that were of another precision: its name to their number."""
    integers: tuple[str, ...] = ()
    """Index tables and counters, which nothing is taken from."""
    described: Mapping[str, Any] = field(default_factory=dict)
    """The ``config.json`` beside a file that Hugging Face named."""


@dataclass
class Mapped:
    """A file's tensors under our names."""

    layout: str
    """What the file was recognised as, for people."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    """Names in the file of parts that this model has no use for: classifiers, decoders."""
    redundant: list[str] = field(default_factory=list)
    """Names of what follows from the configuration or from other tensors."""


def read_weights(path: Path) -> WeightFile:
    """Reads a file of weights, or the one that a folder of Hugging Face's holds.

    Raises:
        CheckpointError: not such a file, or a tensor that holds no floats.
    """
    path = _located(path)
    tensors: dict[str, Tensor] = {}
    cast: Counter[str] = Counter()
    integers = []
    for name, tensor in _state(path).items():
        if tensor.dtype in _PRECISIONS:
            cast[str(tensor.dtype).removeprefix("torch.")] += 1
            tensors[name] = tensor.float()
        elif tensor.dtype == torch.float32:
            tensors[name] = tensor
        elif _COUNTED.search(name):
            integers.append(name)
        else:
            raise CheckpointError(
                f"{path}: tensor {name!r} is of {tensor.dtype}; weights are float32, float16, "
                "bfloat16 or float64: take the file that was not quantised"
            )
    return WeightFile(path, tensors, dict(cast), tuple(integers), _description(path))


def unknown_tensor(file: WeightFile, name: str, layout: str) -> CheckpointError:
    """The error of a tensor that a layout has no place for."""
    return CheckpointError(
        f"{file.path}: tensor {name!r} is not part of {layout}; nothing was loaded. Take the file "
        "that was published for this architecture, or remove the tensor if you know it"
    )


def missing_tensor(file: WeightFile, name: str, layout: str) -> CheckpointError:
    """The error of a tensor that a layout must have."""
    return CheckpointError(
        f"{file.path}: {layout} lacks tensor {name!r}; fetch the file again or take another"
    )


def without_prefix(file: WeightFile, prefix: re.Pattern[str], layout: str) -> dict[str, str]:
    """Names without what `prefix` matches, each with the file's own.

    Raises:
        CheckpointError: two names are one without it.
    """
    plain: dict[str, str] = {}
    for name in file.tensors:
        short = prefix.sub("", name, count=1)
        if short in plain:
            raise unknown_tensor(file, name, f"{layout}, which has {plain[short]!r} already")
        plain[short] = name
    return plain


def _located(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in FOLDER_NAMES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path}: the folder holds neither {' nor '.join(FOLDER_NAMES)}; name the file itself "
        "(weights in several shards must be joined first)"
    )


def _state(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER_BYTES:
            return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: not a whole file of weights ({error}); fetch it again"
        ) from None
    # DETR's training script stores its arguments beside the weights: a plain bag of values.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return read_xvlm_file(path).state


def _description(path: Path) -> Mapping[str, Any]:
    beside = path.with_name(_CONFIG)
    if path.name not in FOLDER_NAMES or not beside.is_file():
        return {}
    try:
        if beside.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"over {_MAX_CONFIG_BYTES:,} bytes")
        described = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(described, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{beside}: does not describe the weights beside it ({error}); fetch it again or "
            "remove it"
        ) from None
    return described
