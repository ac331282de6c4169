"""A program, not a test: ranks that learn to ground together; for `test_grounding_ranks`."""

import json
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from finetune.config import BoxLossConfig
from finetune.grounding import GroundingModule
from tests.forked_ranks import run_ranks
from wholegrain.data.batch import REGION, Concept, ConceptBatch, Sample, collate
from wholegrain.model.config import MlpBoxHead, MmcaConfig, ModelConfig, TextConfig, VitVision
from wholegrain.model.fusion_config import ScanFusion
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.objectives.self_paced import SelfPacedConfig

EXPRESSIONS = [3, 1, 0, 0, 2]
"""Of five photos."""
CASES = ["patch", "self-paced", "scan"]


def photo(number: int) -> Sample:
    """One of the photos, with its expressions."""
    draw = torch.Generator().manual_seed(number)
    concepts = []
    for _ in range(EXPRESSIONS[number]):
        ids = [2, *torch.randint(5, 30, (4,), generator=draw).tolist()]
        box = (0.2 + 0.6 * torch.rand(4, generator=draw)).tolist()
        concepts.append(Concept(REGION, tuple(box), "", ids, ids, [-100] * len(ids)))
    pixels = torch.randint(0, 256, (3, 32, 32), generator=draw, dtype=torch.uint8)
    return Sample(str(number), pixels, concepts)


def build(case: str) -> GroundingModule:
    """A module with adapters that read the texts, in training, that draws nothing by lot."""
    torch.manual_seed(0)
    text = TextConfig(
        vocab_size=30,
        hidden_size=16,
        layers=3,
        fusion_layer=1,
        heads=2,
        intermediate_size=24,
        max_positions=8,
        dropout=0.0,
        attention_dropout=0.0,
    )
    vision = VitVision(image_size=32, patch_size=8, width=16, depth=2, heads=2)
    adapter = MmcaConfig(rank=4, embed_dim=8, gate_dim=4, blocks=1)
    model = MultiGrainModel(ModelConfig(vision=vision, text=text, embed_dim=8, adapters=(adapter,)))
    if case == "scan":
        model.new_fusion(ScanFusion(scales=2, selector_width=8, noise=False), MlpBoxHead(width=16))
    paced = SelfPacedConfig(sigma=1.5) if case == "self-paced" else None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return GroundingModule(model, BoxLossConfig(budget=0.5, self_paced=paced)).train()


def batch_of(photos: range) -> ConceptBatch:
    """The photos with their expressions."""
    return collate([photo(number) for number in photos])


def take(case: str, photos: range) -> dict[str, Tensor]:
    """Figures and gradients of a step on some of the photos."""
    module = build(case)
    found = module(batch_of(photos))
    found["loss"].backward()
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    figures = {n: value.detach() for n, value in found.items() if "self_paced" not in n}
    return figures | gradients


def run_rank(rank: int, divided: list[int], folder: Path) -> None:
    """One rank: takes every case and writes what it found."""
    torch.set_num_threads(1)
    first = sum(divided[:rank])
    photos = range(first, first + divided[rank])
    torch.save({case: take(case, photos) for case in CASES}, folder / f"{rank}.pt")
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
