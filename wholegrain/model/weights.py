"""A model's weights as one safetensors file, read back without tolerance.

Tensors that share memory (tied embeddings) are written once, under the first of their names; the
fresh model that reads them shares in the same way, so filling one fills all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wholegrain.errors import CheckpointError
from wholegrain.model.tensor_file import write_tensors

_SHOWN = 4


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the model's state to `path` (safetensors), on the CPU, in its own precision."""
    save_tensors(distinct(model.state_dict()), path)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors by name to `path` (safetensors), on the CPU, in their own precision."""
    write_tensors(path, {n: value.detach().cpu().contiguous() for n, value in tensors.items()}, {})


def load_weights(model: nn.Module, path: Path) -> None:
    """Fills the model's parameters and buffers from `path`, exactly, or leaves them as they are.

    Raises:
        CheckpointError: not a safetensors file; a tensor is missing, left over, of another shape,
            or not finite.
    """
    load_tensors(distinct(model.state_dict()), path)


def load_tensors(expected: Mapping[str, Tensor], path: Path) -> None:
    """Fills tensors by name from `path`, exactly, or leaves them as they are.

    Raises:
        CheckpointError: as `load_weights`.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); fetch it again, or remove its folder "
            "and use an earlier one"
        ) from None
    problems = _differences(expected, state)
    if problems:
        raise CheckpointError(
            f"{path}: the weights do not fit the configured model: {'; '.join(problems)}. "
            "Use the config.json that is stored beside them"
        )
    broken = [name for name, value in state.items() if not _finite(value)]
    if broken:
        raise CheckpointError(f"{path}: NaN or infinity in {_some(broken)}; use an earlier one")
    with torch.no_grad():
        for name, value in state.items():
            expected[name].copy_(value)


def distinct(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict without those that are another name for an earlier one."""
    kept: dict[tuple[object, ...], str] = {}
    for name, value in state.items():
        place = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        # Tensors without elements have no address of their own.
        kept.setdefault(place if value.numel() else (name,), name)
    return {name: state[name] for name in kept.values()}


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    reshaped = [
        f"{name} is {tuple(found[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    problems = []
    if missing:
        problems.append(f"missing {_some(missing)}")
    if extra:
        problems.append(f"not in the model {_some(extra)}")
    if reshaped:
        problems.append(_some(reshaped))
    return problems


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _some(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    rest = len(names) - _SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown
