"""A program, not a test: ranks that take a contrastive loss together; for `test_contrastive`.

The batch is a function of its size, the model two matrices and a temperature: what a data-parallel
wrapper averages over ranks.
"""

import json
import multiprocessing
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from wholegrain.objectives.contrastive import contrastive_loss


def batch(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image and text features (count, 5), and keys: some concepts share an image, some a text."""
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, count, 5, generator=generator).double()
    return image, text, 1 + torch.arange(count) // 2, 1 + torch.arange(count) % 5


def parameters() -> dict[str, Tensor]:
    """The weights that learn."""
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(5, 4, generator=generator).double().requires_grad_(),
        "text": torch.randn(5, 4, generator=generator).double().requires_grad_(),
        "temperature": torch.tensor(0.2).double().requires_grad_(),
    }


def loss_of(weights: dict[str, Tensor], rows: slice, total: int, capacity: int | None) -> Tensor:
    """The loss of some rows of the batch."""
    image, text, image_key, text_key = (each[rows] for each in batch(total))
    return contrastive_loss(
        F.normalize(image @ weights["image"], dim=1),
        F.normalize(text @ weights["text"], dim=1),
        weights["temperature"],
        image_key=image_key,
        text_key=text_key,
        capacity=capacity,
    )


def run_rank(rank: int, counts: list[int], capacity: int, folder: Path) -> None:
    """One rank: writes its loss and its gradients."""
    store = dist.FileStore(str(folder / "store"), len(counts))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(counts))
    first = sum(counts[:rank])
    weights = parameters()
    loss = loss_of(weights, slice(first, first + counts[rank]), sum(counts), capacity)
    loss.backward()
    found = {"loss": loss.detach(), **{name: w.grad for name, w in weights.items()}}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def main(cases: list[list[int]], root: Path) -> int:
    """Runs every case in a folder of its own, one process a rank; 1 if a rank failed."""
    # Forked, so that torch is imported once and not once a rank.
    context = multiprocessing.get_context("fork")
    status = 0
    for number, counts in enumerate(cases):
        folder = root / str(number)
        folder.mkdir()
        ranks = [
            context.Process(target=run_rank, args=(rank, counts, max(counts) + 1, folder))
            for rank in range(len(counts))
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
            status |= process.exitcode != 0
    return status


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), Path(sys.argv[2])))
