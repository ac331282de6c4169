"""What the switches that depart from X-VLM's recipe are worth, on generated scenes.

    python -m benchmarks.switches --corpus runs/demo/corpus --out runs/switches --json switches.json

Each variant is the scenes recipe with one thing changed, trained on the same number of images from
the same seed, and measured on the same validation scenes. `make demo` writes the corpus. One seed:
differences of a point or two are chance.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

RECIPE = Path("configs/pretrain/scenes.yaml").resolve()
FIGURES = (
    "box_acc@0.5_object",
    "box_iou",
    "match_accuracy",
    "masked_token_accuracy",
    "image_to_text_r@1",
    "text_to_image_r@1",
)
Settings = dict[str, Any]


def variants(corpus: Path, steps: int) -> dict[str, Settings]:
    """Name of each variant to what it changes."""
    train = str(corpus / "train")
    separate = {
        "run": {"steps": round(steps / 1.5)},  # every second step reads a batch of regions too
        "data": {
            "sampling": {"captions_per_image": 1, "max_regions": 0, "max_objects": 0},
            "region_updates": {
                "probability": 0.5,
                "images": 32,
                "texts": 128,
                "train": [{"path": train, "split": "train"}],
            },
            "validation": {
                "path": str(corpus / "val"),
                "split": "val",
                "sampling": {"captions_per_image": 1, "max_regions": 3, "max_objects": 2},
            },
        },
    }
    return {
        "ours": {},
        "all others are negatives": {"objective": {"all_others_are_negatives": True}},
        "flips that exchange left and right": {"data": {"augment": {"flip": "swap"}}},
        "flips whatever the text says": {"data": {"augment": {"flip": "blind"}}},
        "updates on regions alone": separate,
    }


def settings_of(name: str, changes: Settings, corpus: Path, out: Path, steps: int) -> Settings:
    """The config of one variant, on top of the scenes recipe."""
    return _merged(
        {
            "defaults": str(RECIPE),
            "out": str(out / name.replace(" ", "_")),
            "run": {"steps": steps, "validate_every": 0, "save_every": 0, "log_every": 20},
            "data": {
                "train": [{"path": str(corpus / "train"), "split": "train"}],
                "validation": {"path": str(corpus / "val"), "split": "val"},
            },
        },
        changes,
    )


def run(settings: Settings) -> Settings:
    """Trains one variant; returns its last validation."""
    folder = Path(settings["out"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "pretrain", "--config", str(config)], check=True)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last: Settings = [e for e in map(json.loads, lines) if e["split"] == "val"][-1]
    return last


def _merged(base: Settings, changes: Settings) -> Settings:
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def table(found: dict[str, Settings]) -> Table:
    """A row a variant."""
    result = Table(title="Switches, on held-out scenes, %")
    result.add_column("variant")
    for figure in FIGURES:
        result.add_column(figure, justify="right")
    for name, values in found.items():
        result.add_row(name, *(f"{100 * values[figure]:.1f}" for figure in FIGURES))
    return result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.switches", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--corpus", type=Path, default=Path("runs/demo/corpus"))
    made.add_argument("--out", type=Path, default=Path("runs/switches"), help="for the runs")
    made.add_argument("--steps", type=int, default=300, help="of 32 images")
    made.add_argument("--only", action="append", help="a variant; may be given repeatedly")
    made.add_argument("--json", type=Path, help="file for the figures")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs every variant, prints a table, and writes JSON when asked."""
    arguments = parser().parse_args(argv)
    corpus, steps = arguments.corpus.resolve(), arguments.steps
    found = {
        name: run(settings_of(name, changes, corpus, arguments.out, steps))
        for name, changes in variants(corpus, steps).items()
        if arguments.only is None or name in arguments.only
    }
    Console(width=140).print(table(found))
    if arguments.json is not None:
        report = {"steps": arguments.steps, "figures": found}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
