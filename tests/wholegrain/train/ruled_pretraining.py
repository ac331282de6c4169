"""The real pretraining module at its smallest, for `engines_program`.

Its negatives follow a rule over the whole batch, so that any number of ranks has the same losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.config import ObjectiveConfig
from pretrain.foreign import Capacity
from pretrain.inputs import inputs_of, mark_hidden
from pretrain.objective import PretrainingModule, run_objectives
from wholegrain.data.batch import IMAGE, REGION, Concept, ConceptBatch, Sample, collate
from wholegrain.model.config import (
    ModelConfig,
    SwinVision,
    TextConfig,
    TimmVision,
    VisionConfig,
    VitVision,
)
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.objectives.matching import Negatives

IMAGES, LONGEST = 8, 9
VISIONS: dict[str, VisionConfig] = {
    "swin": SwinVision(
        image_size=32, patch_size=4, embed_dim=8, depths=(1, 1), heads=(1, 2), window=4, drop_path=0
    ),
    "timm": TimmVision(
        name="resnet18d",
        image_size=32,
        stages=(1, 2, 3),
        options={"channels": [8, 8, 16, 24], "stem_width": 4},
    ),
    "local": VitVision(image_size=32, patch_size=8, width=16, depth=1, heads=2, local_layers=1),
}


@dataclass
class RuledBatch:
    """A batch and its negatives."""

    batch: ConceptBatch
    negatives: Negatives


class RuledPretraining(PretrainingModule):
    """Pretraining with negatives that are given."""

    def forward(self, part: RuledBatch) -> dict[str, Tensor]:  # type: ignore[override]
        inputs = inputs_of(part.batch, self.model, self.options)
        outputs = run_objectives(
            self.model, inputs, self.options, part.negatives, capacity=self.capacity
        )
        return {**outputs.losses, "loss": outputs.total(self.options.weights())}


def concepts_of(image: int) -> list[Concept]:
    """A caption and up to two regions."""
    made = []
    for number in range(1 + image % 3):
        grain = IMAGE if number == 0 else REGION
        box = (0.5, 0.5, 1.0, 1.0) if grain == IMAGE else (0.4, 0.6, 0.3 + 0.1 * number, 0.5)
        length = 3 + (2 * image + number) % 6
        ids = [2, *((image + 3 * number + place) % 20 + 5 for place in range(length - 1))]
        masked, labels = [ids[0], 4, *ids[2:]], [-100, ids[1], *[-100] * (length - 2)]
        made.append(Concept(grain, box, f"text {image} {number}", ids, masked, labels))
    return made


def pretraining(
    kind: str, parts: int, world: int, rank: int
) -> tuple[nn.Module, Callable[[int, int], RuledBatch]]:
    """The module, and this rank's input of a part of a step."""
    text = TextConfig(
        vocab_size=30,
        hidden_size=16,
        layers=2,
        fusion_layer=1,
        heads=2,
        intermediate_size=24,
        max_positions=LONGEST,
    )
    model = MultiGrainModel(ModelConfig(vision=VISIONS[kind], text=text, embed_dim=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.temperature.fill_(0.2)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, 32, 32), generator=generator).to(torch.uint8)
    share = IMAGES // parts // world
    most = max(len(concepts_of(image)) for image in range(IMAGES)) * share + 1
    options = ObjectiveConfig(negatives="global" if world > 1 else "rank")
    capacity = Capacity(most, share + 1, LONGEST) if world > 1 else None

    def at(step: int, part: int) -> RuledBatch:
        ranks = [
            range(first, first + share)
            for first in range(part * world * share, (part + 1) * world * share, share)
        ]
        counts = [sum(len(concepts_of(image)) for image in images) for images in ranks]
        samples = [Sample(f"a/{n}", pixels[n], concepts_of(n)) for n in ranks[rank]]
        own = sum(counts[:rank]) + torch.arange(counts[rank])
        image, text = (own * 3 + 1 + step) % sum(counts), (own + 5) % sum(counts)
        if capacity is not None:
            where = torch.cat([r * most + torch.arange(n) for r, n in enumerate(counts)])
            image, text = where[image], where[text]
        batch = mark_hidden(collate(samples), model.vision.grid)
        return RuledBatch(batch, Negatives(image, text, own % 4 != 3))

    # In evaluation mode: dropout would be another on another number of ranks.
    return RuledPretraining(model, options, capacity).eval(), at
