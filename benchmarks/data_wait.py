"""How much of a training run's time is spent waiting for data: the tiny model on this machine."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_REPOSITORY = Path(__file__).resolve().parent.parent
_BATCH = 32
_LOGGED = 5  # steps
WORKERS = (0, 1, 2)


def wait_shares(
    folder: Path, corpora: Mapping[str, Path], seconds: float
) -> dict[str, dict[str, float]]:
    """Share of time in which the training process waits, and its images a second.

    Args:
        folder: for run folders.
        corpora: name to corpus.
        seconds: about how long each run trains.
    """
    found = {}
    for name, corpus in corpora.items():
        for workers in WORKERS:
            found[f"{name}, {workers} workers"] = _run(folder, corpus, workers, seconds)
    return found


def _run(folder: Path, corpus: Path, workers: int, seconds: float) -> dict[str, float]:
    out = folder / f"run-{corpus.name}-{workers}"
    config: dict[str, Any] = {
        "defaults": str(_REPOSITORY / "configs" / "model" / "tiny.yaml"),
        "out": str(out),
        "data": {
            "train": [{"path": str(corpus), "split": None}],
            "tokenizer": {"size": 2000},
            "workers": workers,
            "sampling": {"captions_per_image": 1, "max_regions": 4, "max_objects": 4},
        },
        "run": {
            "steps": 4 * _LOGGED + _LOGGED * max(1, round(seconds / 5)),
            "batch_size": _BATCH,
            "log_every": _LOGGED,
            "save_every": 10**6,
        },
    }
    path = folder / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(config))
    # The model has every core, as in a user's run; workers limit themselves to one thread each.
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    subprocess.run(
        [sys.executable, "-m", "pretrain", "--config", str(path)],
        cwd=_REPOSITORY,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    logged = [line for line in lines if "data_wait_share" in line][2:]  # after warming up
    return {
        "waiting": statistics.median(line["data_wait_share"] for line in logged),
        "images_per_s": statistics.median(line["samples_per_second"] for line in logged),
    }
