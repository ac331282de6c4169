"""Ranks of `test_vote`: FOLDER. What they saw is written to ``CASE-RANK.json``."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from tests.forked_ranks import run_ranks
from wholegrain.train.vote import StopVote

FOLDER = Path(sys.argv[1])


def save(case: str, rank: int, value: object) -> None:
    (FOLDER / f"{case}-{rank}.json").write_text(json.dumps(value))


def together(rank: int) -> None:
    """Every rank asks at another cast, and none is in step with the others."""
    saw = []
    for asked in (0, 1, 2):
        with StopVote(3) as vote:
            answers = []
            for cast in range(10):
                time.sleep(0.002 * (rank + cast) % 3)
                answers.append(vote.cast(rank == asked and cast >= 3))
            saw.append(answers)
    with StopVote(3, lag=0) as vote:
        saw.append([vote.cast(rank == 1 and cast == 2) for cast in range(4)])
    save("together", rank, saw)


def one_fails(rank: int) -> None:
    """Rank 0 fails between two casts, while rank 1 waits for it in another collective."""
    began = time.monotonic()
    try:
        with StopVote(2, patience_s=0.3) as vote:
            vote.cast(False)
            dist.all_reduce(torch.zeros(1))
            if rank == 0:
                vote.cast(False)
                raise ValueError("ours")
            dist.all_reduce(torch.zeros(1))
    finally:
        save("one fails", rank, time.monotonic() - began)


def one_dies(rank: int) -> None:
    """Rank 0 ends without a word; rank 1 learns of it when it casts."""
    with StopVote(2) as vote:
        for _ in range(5):
            if rank == 0:
                return
            vote.cast(False)


CASES: dict[str, tuple[int, Callable[[int], None]]] = {
    "together": (3, together),
    "one fails": (2, one_fails),
    "one dies": (2, one_dies),
}

if __name__ == "__main__":
    for name, (world, work) in CASES.items():
        began = time.monotonic()
        statuses = run_ranks(world, work, FOLDER / f"store {name}")
        print(name, statuses, time.monotonic() - began, flush=True)
