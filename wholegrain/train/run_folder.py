"""The run folder: what a run was, so that anybody can repeat it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from wholegrain.config import dump_config, to_dict
from wholegrain.errors import ConfigError
from wholegrain.model.tensor_file import write_text
from wholegrain.train import checkpoint

CONFIG = "config.yaml"
_LOGS = frozenset({".log", ".out", ".err", ".txt"})
_LAUNCHED = frozenset({"logs", "restarts.json", "restarts.json.partial"})
# What may change between the starts of a run: it decides where things lie and what is reported,
# not what is learnt. (A corpus that moved is known by its fingerprint.)
_FREE = (
    "out",
    "data.train.path",
    "data.train.*.path",
    "data.region_updates.train.*.path",
    "data.workers",
    "data.audit",
    "data.skips*",
    "data.storage*",
    "data.validation*",
    "data.evaluate*",
    "hidden_input_baselines",
    "run.log_every",
    "run.validate_every",
    "run.save_every",
    "run.keep",
    "run.keep_every",
    "run.save_in_background",
    "run.resume",
    "run.patience_s",
    "run.compare_ranks_every",
    "run.max_skipped",
    "run.deepspeed",
    "run.peak_tflops",
    "run.profile*",
    "run.wandb*",
    "run.compile",
    "run.checkpoint_activations",
)
_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "tokenizers",
    "accelerate",
    "deepspeed",
    "webdataset",
    "safetensors",
    "numpy",
    "pillow",
)


def environment(world: int) -> dict[str, Any]:
    """Versions and hardware of this run."""
    packages = {}
    for name in ("wholegrain", *_PACKAGES):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "absent"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": device or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": world,
        "packages": packages,
    }


def prepare_run_folder(out: Path, config: object, world: int, write: bool = True) -> None:
    """Makes a run's folder, or takes up one that was begun with the same config.

    Every process calls this before it trains, so that all of them refuse together.

    Args:
        out: the run folder.
        config: as resolved.
        world: processes.
        write: whether this process writes ``config.yaml`` and ``environment.json``.

    Raises:
        ConfigError: `out` holds something else, or checkpoints of another config; names each
            setting that differs with both values.
    """
    refuse_foreign(out)
    if (out / CONFIG).exists() and checkpoint.latest(out) is not None:
        _refuse_other_config(out / CONFIG, to_dict(config))
    if not write:
        return
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / CONFIG, dump_config(config))
    replace_text(out / "environment.json", json.dumps(environment(world), indent=1))


def refuse_foreign(out: Path) -> None:
    """A slip of the hand must not spread a run over somebody's other files.

    Raises:
        ConfigError: `out` is a file, or a folder of something else than a run.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"out is {str(out)!r}, which is a file; name a folder")
    if (out / CONFIG).exists():
        return
    # Launchers open their logs before the run begins.
    others = sorted(
        path.name
        for path in out.iterdir()
        if path.suffix not in _LOGS
        and path.name not in _LAUNCHED
        and not path.name.startswith((".", CONFIG))
    )
    if others:
        raise ConfigError(
            f"out is {str(out)!r}, which exists and holds no run ({CONFIG} is missing) but "
            f"{', '.join(others[:3])}; name a new folder"
        )


def _refuse_other_config(path: Path, ours: Mapping[str, Any]) -> None:
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}), so nobody knows what the checkpoints beside it "
            "belong to; give another --out"
        ) from error
    old, new = _flat(before), _flat(ours)
    absent = "absent"
    changed = [
        f"{key} was {old.get(key, absent)!r}, is now {new.get(key, absent)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent) and not _is_free(key)
    ]
    if changed:
        raise ConfigError(
            f"{path.parent} holds a run of another config: {'; '.join(changed)}. Give another "
            "--out, or the old values to continue it"
        )


def _is_free(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in _FREE)


def _flat(values: object, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to plain values."""
    if isinstance(values, Mapping):
        items: Iterable[tuple[object, object]] = values.items()
    elif isinstance(values, Sequence) and not isinstance(values, str):
        items = enumerate(values)
    else:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def replace_text(path: Path, text: str) -> None:
    """Makes `text` the content of a file, which is the old one or the new one at any moment.

    Raises:
        OSError: the storage does not take it.
    """
    aside = path.with_name(f"{path.name}.partial")
    # Flushed first: after a crash of the machine the new name would hold what had come so far.
    write_text(aside, text)
    aside.replace(path)
