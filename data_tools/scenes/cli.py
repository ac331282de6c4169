"""`python -m data_tools scenes`: render the embedded corpus."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import fields
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_tools.scenes.config import SceneConfig
from data_tools.scenes.write import write_scenes

_COLUMNS: Final = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `data_tools scenes`."""
    parser.add_argument("--out", type=Path, required=True, help="the new folder to write")
    helps = {
        "train": "scenes to train on",
        "val": "scenes to validate on",
        "test": "scenes to test on",
        "size": "side of the pictures in pixels",
        "seed": "another seed is another world",
        "objects": "most objects in a scene; fewer are easier",
        "zoom": "size of the objects, times the usual one",
    }
    for field in fields(SceneConfig):
        parser.add_argument(
            f"--{field.name}",
            type=type(field.default),
            default=field.default,
            help=f"{helps[field.name]} (%(default)s)",
        )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")


def run(args: argparse.Namespace) -> int:
    """Render the scenes that `args` asks for, with a progress bar and counts; the exit code."""
    config = SceneConfig(**{field.name: getattr(args, field.name) for field in fields(SceneConfig)})
    total = config.train + config.val + config.test
    start = time.monotonic()
    with Progress(*_COLUMNS, console=Console(stderr=True)) as bar:
        task = bar.add_task("scenes", total=total)
        counts = write_scenes(
            args.out,
            config,
            workers=args.workers,
            overwrite=args.overwrite,
            progress=lambda split: bar.update(task, advance=1, description=split),
        )
    seconds = time.monotonic() - start
    print(f"{args.out}: {', '.join(f'{count:,} {name}' for name, count in counts.items())}")
    print(f"{seconds:.1f} s, {total / seconds:.0f} scenes/s")
    return 0
