"""The run folder: what a run was, so that anybody can repeat it."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from wholegrain.config import dump_config

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


def prepare_run_folder(out: Path, config: object, world: int) -> None:
    """Writes ``config.yaml`` and ``environment.json``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    text = json.dumps(environment(world), indent=1)
    (out / "environment.json").write_text(text, encoding="utf-8")
