"""A program, not a test: ranks that take all objectives of one batch together; for `test_ranks`.

The batch is eight images with different numbers of concepts. The negatives of matching are a rule
over the whole batch, so that they are the same however it is divided.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.config import ObjectiveConfig
from pretrain.foreign import Capacity
from pretrain.inputs import inputs_of, mark_hidden
from pretrain.objective import run_objectives
from tests.forked_ranks import run_ranks
from wholegrain.data.batch import IMAGE, REGION, Concept, ConceptBatch, Sample, collate
from wholegrain.model.config import ModelConfig, SwinVision, TextConfig, VitVision
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.objectives.matching import Negatives

IMAGES, LONGEST = 8, 9
VISIONS = {
    "swin": SwinVision(
        image_size=32, patch_size=4, embed_dim=8, depths=(1, 1), heads=(1, 2), window=4, drop_path=0
    ),
    "local": VitVision(image_size=32, patch_size=8, width=16, depth=2, heads=2, local_layers=1),
}


def concepts_of(image: int) -> list[Concept]:
    """One to three concepts: a caption, and regions on most images."""
    made = []
    for number in range(1 + image % 3):
        grain = IMAGE if number == 0 and image % 4 else REGION
        width = 0.3 + 0.1 * ((image + number) % 4)
        box = (0.5, 0.5, 1.0, 1.0) if grain == IMAGE else (0.4, 0.6, width, 0.5)
        length = 3 + (2 * image + number) % 6
        ids = [2, *((image + 3 * number + place) % 20 + 5 for place in range(length - 1))]
        masked, labels = list(ids), [-100] * length
        if (image + number) % 3:
            masked[1], labels[1] = 4, ids[1]
        made.append(Concept(grain, box, f"text {(image + number) % 9}", ids, masked, labels))
    return made


def batch_of(images: range) -> ConceptBatch:
    """Some of the eight."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, 32, 32), generator=generator).to(torch.uint8)
    return collate([Sample(f"a/{n}", pixels[n], concepts_of(n)) for n in images])


def counts_of(divided: list[int]) -> list[int]:
    """Concepts of each rank, given its images."""
    found, first = [], 0
    for images in divided:
        found.append(sum(len(concepts_of(n)) for n in range(first, first + images)))
        first += images
    return found


def build(kind: str) -> MultiGrainModel:
    """In double precision, every weight moved."""
    torch.manual_seed(0)
    text = TextConfig(
        vocab_size=30,
        hidden_size=16,
        layers=3,
        fusion_layer=1,
        heads=2,
        intermediate_size=24,
        max_positions=LONGEST,
    )
    model = MultiGrainModel(ModelConfig(vision=VISIONS[kind], text=text, embed_dim=8)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.temperature.fill_(0.2)
    return model.eval()


def take(kind: str, scope: str, divided: list[int], rank: int) -> dict[str, Tensor]:
    """Losses and gradients of one rank; of one process alone where `divided` has one number."""
    first = sum(divided[:rank])
    counts = counts_of(divided)
    model = build(kind)
    batch = mark_hidden(batch_of(range(first, first + divided[rank])), model.vision.grid)
    capacity = Capacity(max(counts) + 1, max(divided) + 1, LONGEST)
    # Gathered index of each concept of the whole batch.
    where = torch.cat([r * capacity.concepts + torch.arange(n) for r, n in enumerate(counts)])
    own = sum(counts[:rank]) + torch.arange(counts[rank])
    total = sum(counts)
    negatives = None
    if scope == "global":
        image, text = (own * 3 + 1) % total, (own + 5) % total
        if len(divided) > 1:
            image, text = where[image], where[text]
        negatives = Negatives(image, text, own % 4 != 3)
    options = ObjectiveConfig(negatives="global" if len(divided) > 1 else "rank")
    inputs = inputs_of(batch, model, options)
    inputs.images = inputs.images.double()
    outputs = run_objectives(
        model, inputs, options, negatives, capacity if len(divided) > 1 else None
    )
    losses = dict(outputs.losses)
    if scope == "drawn":
        losses.pop("matching")  # each rank draws its own
    torch.stack(list(losses.values())).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {**{n: loss.detach().double() for n, loss in losses.items()}, **gradients}


CASES = [(kind, scope) for kind in VISIONS for scope in ("global", "drawn")]


def run_rank(rank: int, divided: list[int], folder: Path) -> None:
    """One rank: takes every case and writes what it found."""
    torch.set_num_threads(1)
    found = {f"{kind} {scope}": take(kind, scope, divided, rank) for kind, scope in CASES}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def main(worlds: list[list[int]], root: Path) -> int:
    """Runs every world in a folder of its own, one process a rank; 1 if a rank failed."""
    failed = False
    for number, divided in enumerate(worlds):
        folder = root / str(number)
        folder.mkdir()
        work = partial(run_rank, divided=divided, folder=folder)
        failed |= any(run_ranks(len(divided), work, folder / "store"))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), Path(sys.argv[2])))
