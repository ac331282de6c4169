"""A program, not a test: ranks that take objectives together; for `test_ranks`.

The batch is a function of its size; the model is two matrices, a temperature and a bias: what a
data-parallel wrapper averages the gradients of.
"""

import itertools
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from tests.forked_ranks import run_ranks
from wholegrain.objectives import gather
from wholegrain.objectives.contrastive import contrastive_loss
from wholegrain.objectives.gather import fetch_rows, gather_concepts, gathered_index
from wholegrain.objectives.matching import draw_negatives

Found = dict[str, Tensor]

CONTRASTIVE: dict[str, dict[str, Any]] = {
    f"{form}{' keyed' * keyed}{' chunked' * (chunk is not None)}": {
        "form": form,
        "keyed": keyed,
        "chunk": chunk,
    }
    for form in ("softmax", "sigmoid")
    for keyed in (False, True)
    for chunk in (None, 2)
}
CONTRASTIVE["softmax xvlm"] = {"gradient": "xvlm"}
CONTRASTIVE["sigmoid keyed chunked xvlm"] = {
    "form": "sigmoid",
    "keyed": True,
    "chunk": 1,
    "gradient": "xvlm",
}


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
        "bias": torch.tensor(-0.7).double().requires_grad_(),
    }


def vectors(weights: dict[str, Tensor], rows: slice, total: int) -> tuple[Tensor, ...]:
    """Unit vectors and keys of some rows of the batch."""
    image, text, *keys = (each[rows] for each in batch(total))
    made = (F.normalize(image @ weights["image"], dim=1), F.normalize(text @ weights["text"]))
    return *made, *keys


def with_gradients(loss: Tensor, weights: dict[str, Tensor]) -> Found:
    """A loss and what it asks of each weight that it reads."""
    loss.backward()
    return {"loss": loss.detach()} | {n: w.grad for n, w in weights.items() if w.grad is not None}


def contrastive(case: str, rows: slice, total: int, capacity: int | None) -> Found:
    """The loss of some rows of the batch in one of the cases."""
    options = dict(CONTRASTIVE[case])
    weights = parameters()
    image, text, image_key, text_key = vectors(weights, rows, total)
    if options.pop("keyed", False):
        options |= {"image_key": image_key, "text_key": text_key}
    if options.get("form") == "sigmoid":
        options["bias"] = weights["bias"]
    loss = contrastive_loss(image, text, weights["temperature"], capacity=capacity, **options)
    return with_gradients(loss, weights)


def foreign(total: int) -> Tensor:
    """(total,) of the whole batch, a concept that belongs to each text by decree."""
    return (torch.arange(total) * 3 + 1) % total


def exchanged(rows: slice, total: int, places: Tensor, capacity: int | None) -> Found:
    """A matching loss of texts with concepts of other ranks: padded states, masks and numbers.

    Args:
        rows: this rank's.
        total: rows of the whole batch.
        places: (total,) gathered indices of the batch's rows.
        capacity: of a rank; None in one process.
    """
    weights = parameters()
    image, text, image_key, _ = vectors(weights, rows, total)
    count = len(image)
    states = torch.stack([image, image * 2, image**2], dim=1)
    mask = torch.arange(3) <= (image_key % 3)[:, None]
    place = gathered_index(torch.arange(count), capacity)
    index = places[foreign(total)[rows]]
    got = fetch_rows([states, mask, image, place, place[:, None] % 7], index, capacity)
    assert [each.dtype for each in got] == [states.dtype, torch.bool, image.dtype] + 2 * [
        place.dtype
    ]
    assert (got[3] == index).all()
    assert (got[4] == index[:, None] % 7).all()
    read = (got[0] * got[1][:, :, None]).sum(1) + got[2]
    terms = F.softplus((read * text).sum(1) / weights["temperature"])
    # Two means that weigh rows differently, one of them with a count that the device knows.
    kept = image_key % 2 == 0
    sums = [terms.sum(), (terms.square() * kept).sum()]
    means = gather.mean_over_ranks(sums, [count, kept.sum()], across=capacity is not None)
    return with_gradients(means[0] + 3 * means[1], weights)


def drawn(rows: slice, total: int, capacity: int) -> Found:
    """Negatives from all ranks, of good vectors, and after one rank's became NaN."""
    torch.manual_seed(rows.start)
    image, text, *keys = (each.detach() for each in vectors(parameters(), rows, total))
    temperature = torch.tensor(0.01)
    options: dict[str, Any] = {"scope": "global", "capacity": capacity}
    many = [draw_negatives(image, text, temperature, *keys, **options) for _ in range(40)]
    everyone = gather_concepts(image, text, *keys, capacity)
    shared = draw_negatives(image, text, temperature, scope="global", everyone=everyone, chunk=1)
    if rows.start == 0:
        image[0] = torch.nan
    lost = draw_negatives(image, text, temperature, *keys, **options)
    loss = contrastive_loss(image, text, temperature, capacity=capacity)
    return {
        "image": torch.stack([each.image for each in [*many, shared, lost]]),
        "text": torch.stack([each.text for each in [*many, shared, lost]]),
        "valid": torch.stack([each.valid for each in [*many, shared, lost]]),
        "loss": loss,
    }


def half_gradients(capacity: int) -> Found:
    """Of bf16 rows, of which four ranks, or one of them four times, ask 256, 1, -256 and 1.

    A column for each order of the four: in bf16 any order of adding up loses a 1 in some.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    orders = torch.tensor(list(itertools.permutations([256, 1, -256, 1])), dtype=torch.bfloat16)
    asks = orders.T  # (4, 24)
    everyone = torch.arange(size) * capacity
    found = {}
    for way in ("gathered", "fetched", "fetched four times"):
        rows = torch.ones(1, len(orders), dtype=torch.bfloat16, requires_grad=True)
        if way == "gathered":
            (gather.gather_rows(rows, capacity) * asks[rank]).sum().backward()
        else:
            often = way == "fetched four times"
            index = everyone[(rank + 1) % size].expand(4) if often else everyone
            (fetched,) = fetch_rows([rows], index, capacity)
            (fetched * (asks if often else asks[rank])).sum().backward()
        assert rows.grad is not None
        found[way] = rows.grad
    return found


def run_rank(rank: int, counts: list[int], folder: Path) -> None:
    """One rank: takes every case and writes what it found."""
    # One above the largest number, so that padding is always there.
    first, total, capacity = sum(counts[:rank]), sum(counts), max(counts) + 1
    rows = slice(first, first + counts[rank])
    found = {case: contrastive(case, rows, total, capacity) for case in CONTRASTIVE}
    # Gloo always takes the long way; the short one is the backend's to offer, and gloo has it too.
    gather._scatters = lambda device: True
    found["softmax keyed scattered"] = contrastive("softmax keyed", rows, total, capacity)
    places = torch.cat([r * capacity + torch.arange(n) for r, n in enumerate(counts)])
    found["exchanged"] = exchanged(rows, total, places, capacity)
    found["drawn"] = drawn(rows, total, capacity)
    if len(counts) == 4:
        found["half"] = half_gradients(capacity)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def main(worlds: list[list[int]], root: Path) -> int:
    """Runs every world in a folder of its own, one process a rank; 1 if a rank failed."""
    failed = False
    for number, counts in enumerate(worlds):
        folder = root / str(number)
        folder.mkdir()
        work = partial(run_rank, counts=counts, folder=folder)
        failed |= any(run_ranks(len(counts), work, folder / "store"))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), Path(sys.argv[2])))
