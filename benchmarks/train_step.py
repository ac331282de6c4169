"""Speed, memory and use of the hardware of a training step: the fast path and its slow reference.

    python -m benchmarks.train_step --json step.json

Each step is forward, backward and optimizer update of all objectives, with dropout and stochastic
depth as in the recipe, on texts of natural length. The reference (`pretrain.reference`) computes as
X-VLM does. The paths and precisions take turns, step by step, so that whatever else the machine
does falls on all of them. FLOP are those that real tokens need (`wholegrain.model.flops`), for both
paths: the reference's waste does not count as work.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import PRECISIONS, Facts, facts, matmul_peak, peak_notes, release
from benchmarks.train_step_cases import SIZES, VISIONS, Setup
from benchmarks.train_step_sections import (
    Plan,
    Say,
    add_memory,
    measure_inference,
    measure_memory,
    measure_regions,
    measure_steps,
)
from wholegrain.errors import ConfigError

SECTIONS = ("step", "memory", "regions", "inference")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--json", type=Path, help="file for everything that was measured")
    made.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    made.add_argument("--size", choices=SIZES, default="base", help="of the model")
    made.add_argument(
        "--vision", choices=(*VISIONS, "both"), help="default: swin on a CPU, both on a GPU"
    )
    made.add_argument("--only", choices=SECTIONS, action="append", help="may be given repeatedly")
    made.add_argument("--texts", type=int, help="texts a step (default: 8 on a CPU, 256 on a GPU)")
    made.add_argument("--rounds", type=int, help="measured steps a case (default: 3, 10 on a GPU)")
    made.add_argument("--quick", action="store_true", help="as little as shows that it works")
    made.add_argument("--compile", action="store_true", help="torch.compile the fast path's blocks")
    made.add_argument(
        "--checkpoint-activations",
        action="store_true",
        help="compute the fast path's activations again in its backward pass",
    )
    return made


def plan_of(arguments: argparse.Namespace, device: str) -> Plan:
    """How much is measured."""
    cuda = device == "cuda"
    if arguments.quick:
        plan = Plan(
            texts=8,
            rounds=1,
            warm=1,
            region_images=2,
            regions=(1, 2),
            region_rounds=1,
            expressions=(1, 2),
        )
    elif cuda:
        # Compiled blocks see several shapes before what follows counts as a recompile.
        plan = Plan(texts=256, rounds=10, warm=5, region_images=64)
    else:
        plan = Plan(texts=8, rounds=3, warm=3 if arguments.compile else 1, region_images=2)
    if arguments.texts is not None:
        plan = replace(plan, texts=arguments.texts)
    if arguments.rounds is not None:
        plan = replace(plan, rounds=arguments.rounds)
    if plan.texts < 2 or plan.rounds < 1:
        raise ConfigError(
            f"--texts is {plan.texts} and --rounds {plan.rounds}; give at least 2 texts, so that "
            "there are negatives, and 1 round"
        )
    return plan


def measure(arguments: argparse.Namespace, say: Say) -> Facts:
    """Everything that was asked for, as one record."""
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device is cuda, but torch sees no GPU; use --device cpu")
    plan = plan_of(arguments, device)
    sections = arguments.only or SECTIONS
    wanted = arguments.vision or ("both" if device == "cuda" else "swin")
    setups = [
        Setup(arguments.size, vision, device, arguments.compile, arguments.checkpoint_activations)
        for vision in (VISIONS if wanted == "both" else (wanted,))
    ]
    side = 512 if arguments.quick else 8192 if device == "cuda" else 2048
    peaks = {name: matmul_peak(torch.device(device), name, side) for name in PRECISIONS}
    record: Facts = {
        "machine": facts(torch.device(device)),
        "settings": {**vars(arguments), "json": None, "device": device, "plan": vars(plan)},
        "matrix_peaks": {"side": side, "flop_per_second": peaks},
        "steps": [],
        "memory": [],
        "regions": [],
        "inference": [],
        "notes": peak_notes(peaks),
    }
    for setup in setups:
        if "step" in sections:
            record["steps"] += measure_steps(setup, plan, peaks, say)
            release()
        if "memory" in sections:
            rows, notes = measure_memory(setup, plan, PRECISIONS, say)
            record["memory"] += rows
            record["notes"] += [note for note in notes if note not in record["notes"]]
        if "regions" in sections:
            faster = max(PRECISIONS, key=lambda name: peaks[name])
            record["regions"].append(measure_regions(setup, plan, faster, say))
            release()
        if "inference" in sections:
            record["inference"] += measure_inference(setup, plan, say)
            release()
    add_memory(record["steps"], record["memory"], arguments.checkpoint_activations)
    return record


# --- tables -------------------------------------------------------------------------------------


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column[0] not in "PEIWV" else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:,.0f}"


def _step_table(record: Facts) -> Table:
    columns = (
        "Vision Iteration",
        "Path",
        "Precision",
        "texts/step",
        "s/step",
        "pairs/s",
        "GFLOP useful",
        "GFLOP/s",
        "of peak",
        "MiB peak",
        "MiB of step",
        "recompiles",
        "x reference fp32",
    )
    rows = [
        (
            f"{row['vision']} {row['iteration']}",
            row["path"],
            row["precision"],
            str(row["texts"]),
            f"{row['median_seconds']:.3f}",
            f"{row['pairs_per_second']:.2f}",
            f"{sum(row['useful']) / len(row['useful']) / 1e9:,.2f}",
            f"{row['flop_per_second'] / 1e9:,.0f}",
            f"{row['share_of_peak']:.1%}",
            _mebibytes(row["peak_bytes"]),
            _mebibytes(row["step_bytes"]),
            str(row["recompiles"]),
            f"{row['ratio_to_reference_fp32']:.2f}",
        )
        for row in record["steps"]
    ]
    return _table("A training step", columns, rows)


def _memory_table(record: Facts) -> Table:
    columns = (
        "Vision Iteration",
        "Path",
        "Precision",
        "texts/step",
        "MiB peak",
        "MiB of step",
        "x reference",
    )
    rows = [
        (
            f"{row['vision']} {row['iteration']}",
            row["path"] + (", checkpointed" if row["checkpointed"] else ""),
            row["precision"],
            str(row["texts"]),
            _mebibytes(row["peak_bytes"]),
            _mebibytes(row["step_bytes"]),
            f"{row['ratio_to_reference']:.2f}",
        )
        for row in record["memory"]
    ]
    title = "Peak memory (of step: beyond weights and optimizer state; the ratio is of that)"
    return _table(title, columns, rows)


def _region_table(found: Facts) -> Table:
    columns = ("regions/image", "texts", "s/step", "ms/region", "images' share of FLOP")
    rows = [
        (
            str(row["regions_per_image"]),
            str(row["texts"]),
            f"{row['median_seconds']:.3f}",
            f"{1e3 * row['seconds_per_region']:,.1f}",
            f"{row['vision_share_of_flop']:.1%}",
        )
        for row in found["rows"]
    ]
    title = (
        f"Price of regions: {found['vision']} {found['precision']}, {found['images']} images; "
        f"images alone {found['image_seconds']:.3f} s; fit {found['fixed_seconds']:.3f} s "
        f"+ {1e3 * found['seconds_per_region']:.1f} ms a region"
    )
    return _table(title, columns, rows)


def _inference_table(record: Facts) -> Table:
    rows = [
        (
            row["vision"],
            row["way"],
            str(row["expressions"]),
            f"{row['median_seconds']:.3f}",
            f"{row['expressions_per_second']:,.1f}",
        )
        for row in record["inference"]
    ]
    columns = ("Vision", "Way", "expressions", "s", "expressions/s")
    return _table("Expressions on one photo, fp32, photo included", columns, rows)


def show(record: Facts, console: Console) -> None:
    """Prints the tables and the notes."""
    machine = record["machine"]
    console.print(f"{machine['name']}, {machine['threads']} threads, torch {machine['torch']}")
    if record["steps"]:
        console.print(_step_table(record))
    if record["memory"]:
        console.print(_memory_table(record))
    for found in record["regions"]:
        console.print(_region_table(found))
    if record["inference"]:
        console.print(_inference_table(record))
    for note in record["notes"]:
        console.print(note)


def main(given: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes."""
    arguments = parser().parse_args(given)
    # A table is read as a whole: wider than a pipe's 80 columns if need be.
    console = Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "180")))
    progress = Console(stderr=True)
    try:
        record = measure(arguments, progress.print)
    except ConfigError as error:
        progress.print(f"error: {error}")
        return 2
    show(record, console)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
