"""Ranks of `test_divergence`: FOLDER. Each writes what it was told to ``WORLD-RANK.json``."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.forked_ranks import run_ranks
from wholegrain.train.divergence import RankDivergence, compare_ranks, weights_checksum


def compare(rank: int) -> None:
    weights = [torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(3)]
    said = [outcome(weights, 500)]
    if rank == 1:
        weights[0].view(torch.int32)[3, 2] ^= 1
    said.append(outcome(weights, 1000))
    out = Path(sys.argv[1]) / f"{dist.get_world_size()}-{rank}.json"
    out.write_text(json.dumps(said))


def outcome(weights: list[torch.Tensor], step: int) -> str:
    try:
        compare_ranks(weights_checksum(weights), step)
    except RankDivergence as error:
        return f"{error.exit_status} {error}"
    return "equal"


if __name__ == "__main__":
    for world in (2, 3):
        store = Path(sys.argv[1]) / f"store-{world}"
        assert run_ranks(world, compare, store) == [0] * world
