"""Scaling: what ranks exchange here, and what a model of the network says of clusters.

    python -m benchmarks.scaling --json benchmarks/results/scaling.json --write-docs
    python -m benchmarks.scaling --write-docs        # the tables anew, from the stored results

The first form measures: collectives and the contrastive loss's exchange between two processes over
gloo, steps of real pretraining runs with one and two ranks, and checkpoints. It wants an idle
machine of two cores. `docs/scaling.md` holds tables that are computed from its results.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import scaling_ranks, scaling_steps
from benchmarks.machine import facts
from benchmarks.scaling_steps import CASES, Case
from benchmarks.scaling_tables import tables
from wholegrain.train.checkpoint_writer import Writer
from wholegrain.train.optimizer_state import MOMENTS, Fragment

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "scaling.md"
RESULTS = REPOSITORY / "benchmarks" / "results"
STORED = RESULTS / "scaling.json"
DATA, MEMORY = RESULTS / "data_2_cores.json", RESULTS / "train_step_2_cores.json"

_KIB, _MIB = 2**10, 2**20
SIZES = (64, 4 * _KIB, 64 * _KIB, _MIB, 4 * _MIB, 16 * _MIB, 25 * _MIB, 64 * _MIB)
GATHERS = ((24, 128), (96, 128), (192, 256), (512, 256))
CHECKPOINTS = (4_000_000, 16_000_000, 42_000_000)  # parameters
_TENSOR = 1_000_000
_BLOCK = re.compile(r"(?<=<!-- table: )(\w+)( -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)


def measure(folder: Path, quick: bool, say: Console) -> dict[str, Any]:
    """Everything that is measured here."""
    machine, rounds = facts(torch.device("cpu")), 3 if quick else 30
    sizes, gathers = (SIZES[1:5:3], GATHERS[:1]) if quick else (SIZES, GATHERS)
    say.print("collectives", style="dim")
    exchanges = scaling_ranks.measure(sizes, gathers, rounds)
    say.print("checkpoints", style="dim")
    count = CHECKPOINTS[:1] if quick else CHECKPOINTS
    checkpoints = [save(folder / f"saved-{size}", size) for size in count]
    corpus = scaling_steps.make_corpus(folder, 32 if quick else 512)
    steps = []
    for case in (Case("tiny", 4, 12),) if quick else CASES:
        say.print(f"steps of {case.model}, batch {case.batch_size}", style="dim")
        steps.append(scaling_steps.measure(folder, corpus, case))
    return {
        "machine": machine,
        "cores": os.cpu_count(),
        "exchanges": exchanges,
        "checkpoints": checkpoints,
        "steps": steps,
    }


def save(run: Path, parameters: int, rounds: int = 3) -> dict[str, Any]:
    """A checkpoint of so many parameters with their moments: bytes, and the fastest of some saves.

    `waited` is what training waits, `seconds` until it is complete on disk.
    """
    shapes = [_TENSOR] * (parameters // _TENSOR)
    weights = {f"weight {number}": torch.ones(size) for number, size in enumerate(shapes)}
    fragments = [
        Fragment(name, 0, (len(each),), 1.0, {kind: torch.ones_like(each) for kind in MOMENTS})
        for name, each in weights.items()
    ]
    writer = Writer(
        run, rank=0, world=1, keep=1, keep_every=0, background=True, say=print, patience_s=600.0
    )
    waited, seconds = [], []
    for step in range(rounds + 1):  # the first one makes room for the copies
        began = time.perf_counter()
        writer.save(step, weights, fragments, {}, {})
        waited.append(time.perf_counter() - began)
        writer.wait()
        seconds.append(time.perf_counter() - began)
    writer.close()
    saved = next((run / "checkpoints").glob("step_*"))
    return {
        "parameters": sum(shapes),
        "bytes": sum(path.stat().st_size for path in saved.iterdir()),
        "waited": min(waited[1:]),
        "seconds": min(seconds[1:]),
    }


def stored_tables(path: Path = STORED) -> dict[str, str]:
    """Tables of the stored results."""
    read = [json.loads(each.read_text(encoding="utf-8")) for each in (path, DATA, MEMORY)]
    return tables(*read)


def filled(page: str, found: Mapping[str, str]) -> str:
    """The page with its tables replaced.

    Raises:
        SystemExit: it asks for a table that there is none of, or leaves one out.
    """
    asked = [name for name, _, _ in _BLOCK.findall(page)]
    if sorted(asked) != sorted(found):
        wrong = sorted(set(asked) ^ set(found)) or "one of them twice"
        raise SystemExit(f"{PAGE.name}: its tables and those computed differ: {wrong}")
    return _BLOCK.sub(lambda block: f"{block[1]}{block[2]}{found[block[1]]}\n", page)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="measure, and write the results to this file")
    parser.add_argument("--quick", action="store_true", help="few and small measurements")
    parser.add_argument("--write-docs", action="store_true", help="rewrite the tables of the page")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.quick and args.write_docs:
        raise SystemExit("--quick measures too little for the page; leave --write-docs out")
    say = Console(stderr=True)
    if args.json is not None:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as place:
            found = measure(Path(place), args.quick, say)
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    computed = stored_tables(args.json or STORED)
    if args.write_docs:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), computed), encoding="utf-8")
        return 0
    for name, text in computed.items():
        print(f"{name}\n\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
