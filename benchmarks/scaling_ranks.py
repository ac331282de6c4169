"""Collectives and the exchange of the contrastive loss between processes of this machine, timed.

`measure` starts this module under torchrun: each rank times, and the first one writes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wholegrain.objectives.gather import gather_concepts

RANKS = 2
REPOSITORY = Path(__file__).resolve().parent.parent
_PATIENCE = timedelta(minutes=5)


def measure(sizes: Sequence[int], gathers: Sequence[tuple[int, int]], rounds: int) -> Any:
    """Median seconds of each collective of so many bytes, and of gathers (concepts, embed_dim)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(RANKS), "-m", "benchmarks.scaling_ranks"]
    command += ["--sizes", json.dumps(list(sizes)), "--gathers", json.dumps(list(gathers))]
    command += ["--rounds", str(rounds)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=one_thread(), check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def one_thread() -> dict[str, str]:
    """The environment of one of several processes: without a launcher's, one thread each."""
    ours = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "OMP_NUM_THREADS": "1"}


def _timed(work: Callable[[], object], rounds: int) -> float:
    """Median over rounds of the slowest rank's seconds."""
    work()
    spent = []
    for _ in range(rounds):
        dist.barrier()
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    slowest = torch.tensor(spent, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return statistics.median(slowest.tolist())


def _collectives(size: int, rounds: int) -> dict[str, float]:
    """An all-reduce of `size` bytes, and an all-gather of as many in all."""
    whole = torch.ones(max(RANKS, size // 4 // RANKS * RANKS))
    part, gathered = whole[: len(whole) // RANKS].clone(), torch.empty_like(whole)

    def reduce() -> None:
        whole.fill_(1.0)
        dist.all_reduce(whole)

    def gather() -> None:
        dist.all_gather_single(gathered, part)

    filling = _timed(lambda: whole.fill_(1.0), rounds)
    return {
        "bytes": 4 * len(whole),
        "all_reduce": max(0.0, _timed(reduce, rounds) - filling),
        "all_gather": _timed(gather, rounds),
    }


def _gather(concepts: int, width: int, rounds: int) -> dict[str, float]:
    """Vectors and keys of all ranks, and the vectors' gradients back."""
    keys = torch.arange(concepts)

    def vectors() -> tuple[Tensor, Tensor]:
        image, text = torch.ones(2, concepts, width).unbind()
        return image.requires_grad_(), text.requires_grad_()

    def exchange(capacity: int | None) -> Callable[[], object]:
        def work() -> None:
            everyone = gather_concepts(*vectors(), keys, keys, capacity)
            (everyone.image.sum() + everyone.text.sum()).backward()

        return work

    # What the same takes without other ranks is no exchange.
    alone = _timed(exchange(None), rounds)
    together = _timed(exchange(concepts), rounds)
    return {"concepts": concepts, "embed_dim": width, "seconds": max(0.0, together - alone)}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=json.loads, required=True, help="bytes, as JSON")
    parser.add_argument("--gathers", type=json.loads, required=True, help="pairs, as JSON")
    parser.add_argument("--rounds", type=int, default=20)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=_PATIENCE)
    found = {
        "ranks": dist.get_world_size(),
        "collectives": [_collectives(size, args.rounds) for size in args.sizes],
        "gathers": [_gather(count, width, args.rounds) for count, width in args.gathers],
    }
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
