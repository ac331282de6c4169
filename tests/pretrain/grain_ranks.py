"""A program, not a test: ranks that take figures by grain together; for `test_grains`."""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.grains import BOXED, Terms, grain_means
from tests.forked_ranks import run_ranks
from wholegrain.data.batch import IMAGE, OBJECT, REGION

GRAINS = [IMAGE, REGION, REGION, IMAGE, OBJECT, REGION, IMAGE]
"""Of seven concepts."""


def figures(concepts: slice, across: bool) -> dict[str, Tensor]:
    """Of some of the concepts: three terms of one loss each, and a box where they have one."""
    everyone = torch.arange(len(GRAINS))
    grain = torch.tensor(GRAINS)[concepts]
    own = torch.arange(len(grain))
    matching = (everyone[concepts] + torch.tensor([0.1, 0.2, 0.4])[:, None]).flatten()
    kept = (torch.arange(len(matching)) + everyone[concepts].repeat(3)) % 4 > 0
    boxed = (grain != IMAGE).nonzero().squeeze(1)
    terms = {
        "matching": Terms(matching, own.repeat(3), kept),
        "box_l1": Terms(everyone[concepts][boxed] / 3, boxed, grains=BOXED),
    }
    return grain_means(terms, grain, across=across)


def run_rank(rank: int, divided: list[int], folder: Path) -> None:
    """One rank: writes what it found."""
    torch.set_num_threads(1)
    first = sum(divided[:rank])
    own = slice(first, first + divided[rank])
    found = {name: figures(own, name == "across") for name in ("across", "alone")}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def main(divided: list[int], folder: Path) -> int:
    """One process a rank; 1 if a rank failed."""
    work = partial(run_rank, divided=divided, folder=folder)
    return int(any(run_ranks(len(divided), work, folder / "store")))


if __name__ == "__main__":
    sys.exit(main([int(count) for count in sys.argv[2:]], Path(sys.argv[1])))
