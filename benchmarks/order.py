"""The order of 10^9 samples: opening, memory of a rank, and positions a second.

    python -m benchmarks.order [--rows 1000000000] [--json FILE]

The corpus has an index of that many rows (a sparse file, nearly without disk) and a million shards.
One process opens it as a rank does, asks for the samples of many global batches in both orders and
looks up the index rows of its share. Another process opens an empty Python with the same imports:
the difference of their peaks is what the corpus costs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import facts
from wholegrain.data.index_file import INDEX, INDEX_DTYPE, npy_header
from wholegrain.data.shard_table import SHARDS, ShardTable

SHARD_ROWS = 1000
BATCH = 4096
RANKS = 64
SECONDS = 3.0


def make_corpus(folder: Path, rows: int) -> None:
    """Index, table of shards and manifest of a corpus without photos."""
    shards = -(-rows // SHARD_ROWS)
    header = npy_header(rows)
    with open(folder / INDEX, "wb") as file:
        file.write(header)
        file.truncate(len(header) + rows * INDEX_DTYPE.itemsize)
    dtype = [("sha256", "u1", (32,)), ("bytes", "<u8"), ("samples", "<u8"), ("file", "S18")]
    table = np.zeros(shards, dtype=dtype)
    table["file"] = [b"shard-%08d.tar" % number for number in range(shards)]
    table["samples"] = SHARD_ROWS
    ShardTable(table).save(folder / SHARDS)
    # Opening looks for some of the shards.
    for number in {*range(0, shards, max(1, -(-shards // 256))), shards - 1}:
        (folder / f"shard-{number:08d}.tar").touch()
    manifest = {
        "schema": 2,
        "name": "billion",
        "layout": "records",
        "source": {},
        "counts": {"images": rows},
        "splits": {"train": rows},
        "fingerprint": "f" * 64,
        "index": {"rows": rows, "sha256": ""},
        "shards": {"count": shards, "bytes": 0, "sha256": ""},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def measure(folder: Path) -> dict[str, Any]:
    """What a rank does, timed; in this process."""
    from wholegrain.data.corpus import Corpus
    from wholegrain.data.order import Order, Part

    before = _peak_mib()
    opening = []
    for _ in range(7):
        began = time.perf_counter()
        corpus = Corpus.open(folder).select("train")
        opening.append(time.perf_counter() - began)
    figures: dict[str, Any] = {
        "rows": len(corpus),
        "opening_s": float(np.median(opening)),
        "opening_first_s": opening[0],
        "after_opening_mib": _peak_mib() - before,
    }
    for name, block in (("uniform", None), ("block-wise", SHARD_ROWS)):
        part = Part("a", len(corpus), corpus.fingerprint, BATCH, block=block)
        order = Order(1, [part])
        order.batch(0)
        began, step = time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            order.batch(step * 7919 % (len(corpus) // BATCH))  # anywhere in the epoch
            step += 1
        spent = time.perf_counter() - began
        figures[f"{name}_positions_per_s"] = step * BATCH / spent
        began, looked = time.perf_counter(), 0
        step = 0
        while time.perf_counter() - began < SECONDS:
            share = order.rank_slice(step * 7919 % (len(corpus) // BATCH), step % RANKS, RANKS)
            for row in share.index.tolist():
                corpus._index[row]
            looked += len(share)
            step += 1
        figures[f"{name}_rows_looked_up_per_s"] = looked / (time.perf_counter() - began)
        figures[f"after_{name}_mib"] = _peak_mib() - before
    return figures


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=10**9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.measure is not None:
        print(json.dumps(measure(args.measure)))
        return 0
    with tempfile.TemporaryDirectory() as place:
        make_corpus(Path(place), args.rows)
        command = [sys.executable, "-m", "benchmarks.order", "--measure", place]
        figures = json.loads(subprocess.check_output(command, text=True))
    table = Table(title=f"{figures['rows']:,} samples, batches of {BATCH}", title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for name, value in figures.items():
        shown = f"{value:,.4f}" if value < 10 else f"{value:,.0f}"
        table.add_row(name.replace("_", " "), shown)
    Console().print(table)
    if args.json:
        args.json.write_text(
            json.dumps({"machine": facts(torch.device("cpu")), "figures": figures}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
