"""Steps of real pretraining runs: one process, two ranks, and two processes without each other.

Two processes that share a machine slow each other down without exchanging a byte. What they
exchange is therefore the difference between a run of two ranks and two runs of one rank with half
the batch, which train at the same time.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.scaling_ranks import RANKS, REPOSITORY, one_thread
from pretrain.config import PretrainConfig
from pretrain.data import open_data
from wholegrain.config import load_config
from wholegrain.train.plan import Gather

_LOGGED = 4  # steps between two figures
_SKIPPED = 2  # figures, while the process warms up
_NEVER = 10**6

_TINY = {"defaults": str(REPOSITORY / "configs" / "model" / "tiny.yaml")}
_MIDDLE = {
    "model": {
        "vision": {
            "kind": "swin",
            "image_size": 128,
            "embed_dim": 96,
            "depths": [2, 2, 6, 2],
            "heads": [3, 6, 12, 24],
            "window": 4,
        },
        "text": {
            "hidden_size": 384,
            "layers": 6,
            "fusion_layer": 3,
            "heads": 6,
            "intermediate_size": 1536,
            "max_positions": 64,
        },
        "embed_dim": 256,
        "box_head": {"kind": "cls"},
    }
}
MODELS: dict[str, dict[str, Any]] = {"tiny": _TINY, "middle": _MIDDLE}


@dataclass(frozen=True)
class Case:
    """One model at one size of the global batch."""

    model: str
    batch_size: int
    steps: int


CASES = (Case("tiny", 32, 60), Case("tiny", 8, 100), Case("middle", 8, 28))


def make_corpus(folder: Path, images: int, side: int = 128) -> Path:
    """Generated scenes, converted."""
    from data_tools.__main__ import main

    scenes, out = folder / "scenes", folder / "corpus"
    counts = ["--train", str(images), "--val", "8", "--test", "8", "--size", str(side)]
    files = [f"--{kind}={scenes}/{kind}_train.json" for kind in ("captions", "instances")]
    given = ["--images", str(scenes / "images"), *files, "--out", str(out)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        failed = main(["scenes", "--out", str(scenes), *counts, "--workers", "1"])
        failed = failed or main(["convert", "coco", *given])
    if failed:
        raise SystemExit(f"{folder}: the scenes cannot be made")
    return out


def measure(folder: Path, corpus: Path, case: Case) -> dict[str, Any]:
    """Seconds a step in four settings, and what the run's plan is made of.

    `half` and `whole` are one process with half the batch and with all of it; `apart` is the slower
    of two processes with half the batch each; `ranks` is one run of two ranks.
    """
    half, whole = case.batch_size // RANKS, case.batch_size
    name = f"{case.model}-{case.batch_size}"
    settings = {
        "half": [_config(folder, f"{name}-half", corpus, case, half, 0)],
        "whole": [_config(folder, f"{name}-whole", corpus, case, whole, 0)],
        "apart": [
            _config(folder, f"{name}-apart-{n}", corpus, case, half, n) for n in range(RANKS)
        ],
        "ranks": [_config(folder, f"{name}-ranks", corpus, case, whole, 0)],
    }
    seconds = {}
    for setting, paths in settings.items():
        _run(paths, RANKS if setting == "ranks" else 1)
        batch = half if setting in {"half", "apart"} else whole
        outs = [path.with_suffix("") for path in paths]
        seconds[setting] = max(step_seconds(out / "metrics.jsonl", batch) for out in outs)
    facts = _facts(settings["ranks"][0])
    saved = next((folder / f"{name}-ranks" / "checkpoints").glob("step_*"))
    written = sum(path.stat().st_size for path in saved.iterdir())
    return {**vars(case), "seconds": seconds, "checkpoint_bytes": written, **facts}


def step_seconds(metrics: Path, batch: int) -> float:
    """Median seconds of a step, by the run's own figures after it has warmed up."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    rates = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    kept = rates[_SKIPPED:] or rates[-1:]
    return batch / statistics.median(kept)


def _facts(config: Path) -> dict[str, Any]:
    loaded = load_config(PretrainConfig, config, [])
    weights = load_size(config.with_suffix("") / "release" / "model.safetensors")
    with contextlib.redirect_stdout(io.StringIO()):
        data = open_data(loaded)
    rows = Gather(data.capacity(RANKS).concepts, loaded.model.embed_dim, scatters=False)
    return {"parameters": weights, "concepts": rows.concepts, "embed_dim": rows.embed_dim}


def load_size(path: Path) -> int:
    """Numbers of fp32 in a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        shapes = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118  no mapping
        return sum(_product(s.get_shape()) for s in shapes if s.get_dtype() == "F32")


def _product(sizes: Sequence[int]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count


def _config(folder: Path, name: str, corpus: Path, case: Case, batch: int, seed: int) -> Path:
    config: Mapping[str, Any] = {
        **MODELS[case.model],
        "out": str(folder / name),
        "data": {
            "train": [{"path": str(corpus), "split": None}],
            "tokenizer": {"size": 1000},
            "max_tokens": 32,
            "sampling": {"captions_per_image": 1, "max_regions": 3, "max_objects": 2},
        },
        "run": {
            "steps": case.steps,
            "batch_size": batch,
            "seed": seed,
            "log_every": _LOGGED,
            "save_every": _NEVER,
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(dict(config)))
    return path


def _run(configs: Sequence[Path], ranks: int) -> None:
    """Runs at the same time, each of so many ranks."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    started = [
        subprocess.Popen(
            [sys.executable, *(launch if ranks > 1 else []), "-m", "pretrain", "--config", config],
            cwd=REPOSITORY,
            env=one_thread(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for config in configs
    ]
    for config, process in zip(configs, started, strict=True):
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(f"{config.name} failed:\n{said[-2000:]}")
