"""Peak memory of the contrastive loss, forward and backward, against the global batch.

``python -m benchmarks.contrastive_memory [--json FILE]``

One rank of several, without the others: its vectors and those of all ranks are given. Compared are
the whole matrix, as every rank of X-VLM computes it, a rank's own rows, and those in chunks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import HONEST_ALLOCATOR, Facts, PeakMemory, can_watch, facts
from wholegrain.objectives.contrastive import contrastive_loss
from wholegrain.objectives.gather import GatheredConcepts

_REPOSITORY = Path(__file__).resolve().parent.parent
METHODS = ("whole matrix", "own rows", "own rows, chunked")


def vectors(count: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Unit vectors of images and texts (count, width), leaves of the graph."""
    generator = torch.Generator().manual_seed(count)
    image, text = torch.randn(2, count, width, generator=generator).to(device)
    return (
        F.normalize(image, dim=1).requires_grad_(),
        F.normalize(text, dim=1).requires_grad_(),
    )


def whole_matrix(everyone: GatheredConcepts, temperature: Tensor) -> Tensor:
    """X-VLM's way: both directions over all columns, on every rank."""
    logits = everyone.image @ everyone.text.T / temperature
    partner = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, partner) + F.cross_entropy(logits.T, partner)) / 2


def peak_bytes(method: str, total: int, order: Facts) -> int:
    """What one loss with its gradients needs beyond the vectors themselves."""
    device = torch.device(order["device"])
    everyone = GatheredConcepts(
        *vectors(total, order["width"], device),
        valid=torch.ones(total, dtype=torch.bool, device=device),
        image_key=None,
        text_key=None,
        first=0,
        ranks=order["ranks"],
    )
    local = total // order["ranks"]
    image, text = (each.detach()[:local].requires_grad_() for each in everyone[:2])
    temperature = torch.full((), 0.07, device=device, requires_grad=True)
    memory = PeakMemory(device)
    with memory.watch():
        if method == "whole matrix":
            loss = whole_matrix(everyone, temperature)
        else:
            chunk = order["chunk"] if "chunked" in method else None
            loss = contrastive_loss(image, text, temperature, everyone=everyone, chunk=chunk)
        loss.backward()
    return memory.peak - memory.before


def measure(order: Facts) -> list[Facts]:
    """In the child: every method at every global batch."""
    torch.set_num_threads(1)
    # The first call of anything loads code and makes pools; that is not what is measured.
    for method in METHODS:
        peak_bytes(method, 8 * order["ranks"], order)
    return [
        {"global": total, "local": total // order["ranks"], "method": method}
        | {"peak_bytes": peak_bytes(method, total, order)}
        for total in order["totals"]
        for method in METHODS
    ]


def measure_in_child(order: Facts) -> list[Facts]:
    """The same in a fresh process, whose memory nothing else moves."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.contrastive_memory", "--child", json.dumps(order)],
        cwd=_REPOSITORY,
        env=os.environ | HONEST_ALLOCATOR,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: list[Facts] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(found: list[Facts], order: Facts) -> Table:
    """Global batch by method, in MiB."""
    result = Table(
        title=f"Contrastive loss, forward and backward: peak MiB of one of {order['ranks']} ranks, "
        f"vectors of {order['width']}, chunks of {order['chunk']}"
    )
    for heading in ("global batch B", "a rank's rows", "one B x B", *METHODS):
        result.add_column(heading, justify="right")
    for total in order["totals"]:
        peaks = {each["method"]: each["peak_bytes"] for each in found if each["global"] == total}
        sizes = [4 * total**2, *(peaks[method] for method in METHODS)]
        shown = [f"{size / 2**20:,.1f}" for size in sizes]
        result.add_row(f"{total:,}", f"{total // order['ranks']:,}", *shown)
    return result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="benchmarks.contrastive_memory", description=__doc__)
    made.add_argument(
        "--totals", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384], metavar="B"
    )
    made.add_argument("--ranks", type=int, default=8, help="among which a batch is divided")
    made.add_argument("--width", type=int, default=256, help="of the vectors")
    made.add_argument("--chunk", type=int, default=128, help="rows")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    made.add_argument("--child", help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints a table, and writes JSON when asked."""
    options = parser().parse_args(arguments)
    if options.child is not None:
        print(json.dumps(measure(json.loads(options.child))))
        return 0
    order = {name: getattr(options, name) for name in ("totals", "ranks", "width", "chunk")}
    order["device"] = options.device
    for total in options.totals:
        if total < 1 or total % options.ranks:
            parser().error(f"--totals {total} is no multiple of --ranks {options.ranks}")
    device = torch.device(options.device)
    if not can_watch(device):
        print("this system does not tell a process its peak memory; use Linux or CUDA")
        return 1
    found = measure_in_child(order)
    Console(width=120).print(table(found, order))
    if options.json is not None:
        report = {"machine": facts(device), "order": order, "figures": found}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
