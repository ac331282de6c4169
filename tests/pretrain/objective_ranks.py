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


CASES = [(kind, scope) for kind in VISIONS for scope in ("global", "drawn")]
OWN_WAYS = [("swin", "own means"), ("swin", "xvlm gradient")]
"""Cases in which ranks do not equal one process."""


def take(
    kind: str, scope: str, divided: list[int], rank: int, alone: bool = False
) -> dict[str, Tensor]:
    """Losses and gradients of one rank; of one process alone where `divided` has one number.

    Args:
        kind: of the image encoder.
        scope: negatives by the rule over the whole batch are `global`, over the rank's own pairs
            with `own means`; otherwise they are drawn.
        divided: images of each rank.
        rank: of these.
        alone: whether other ranks are left out of it.
    """
    first = sum(divided[:rank])
    counts = counts_of(divided)
    model = build(kind)
    batch = mark_hidden(batch_of(range(first, first + divided[rank])), model.vision.grid)
    capacity = None
    if len(divided) > 1 and not alone:
        capacity = Capacity(max(counts) + 1, max(divided) + 1, LONGEST)
    options = options_of(scope, capacity)
    inputs = inputs_of(batch, model, options)
    inputs.images = inputs.images.double()
    negatives = negatives_of(scope, counts, rank, capacity)
    losses = dict(run_objectives(model, inputs, options, negatives, capacity).losses)
    if scope == "drawn":
        losses.pop("matching")  # each rank draws its own
    elif scope == "own means":
        losses.pop("contrastive")  # over all ranks' concepts whatever `means` says
    elif scope == "xvlm gradient":
        losses = {"contrastive": losses["contrastive"]}
    torch.stack(list(losses.values())).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {**{n: loss.detach().double() for n, loss in losses.items()}, **gradients}


def options_of(scope: str, capacity: Capacity | None) -> ObjectiveConfig:
    """X-VLM's ways in their cases, and none of them in one process."""
    if capacity is None:
        return ObjectiveConfig()
    if scope == "own means":
        return ObjectiveConfig(means="rank")
    if scope == "xvlm gradient":
        return ObjectiveConfig(contrastive_gradient="xvlm")
    return ObjectiveConfig(negatives="global")


def negatives_of(
    scope: str, counts: list[int], rank: int, capacity: Capacity | None
) -> Negatives | None:
    """By rule; None has them drawn."""
    own = sum(counts[:rank]) + torch.arange(counts[rank])
    total = sum(counts)
    if scope == "own means":
        mine = torch.arange(counts[rank])
        return Negatives((mine + 1) % counts[rank], (mine + 2) % counts[rank], mine % 4 != 3)
    if scope != "global":
        return None
    image, text = (own * 3 + 1) % total, (own + 5) % total
    if capacity is not None:
        # Gathered index of each concept of the whole batch.
        where = torch.cat([r * capacity.concepts + torch.arange(n) for r, n in enumerate(counts)])
        image, text = where[image], where[text]
    return Negatives(image, text, own % 4 != 3)


def run_rank(rank: int, divided: list[int], folder: Path) -> None:
    """One rank: takes every case and writes what it found."""
    torch.set_num_threads(1)
    cases = [*CASES, *OWN_WAYS]
    found = {f"{kind} {scope}": take(kind, scope, divided, rank) for kind, scope in cases}
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
