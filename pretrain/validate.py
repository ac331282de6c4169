"""Validation while pretraining: one figure for each objective, and boxes by grain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.config import ObjectiveConfig
from pretrain.inputs import inputs_of
from pretrain.objective import Outputs, run_objectives
from wholegrain.boxes import cxcywh_to_xyxy, iou
from wholegrain.data.batch import GRAINS, IMAGE, ConceptBatch
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.objectives.gather import world

_SEED = 20  # of the drawn negatives: the same at each validation


class Tally:
    """Sums and counts of named figures."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    def add(self, name: str, values: Tensor) -> None:
        """Adds observations (N,) of a figure."""
        self.sums[name] += float(values.double().sum())
        self.counts[name] += len(values)

    def merge(self, other: Tally) -> None:
        """Adds another rank's."""
        for name, total in other.sums.items():
            self.sums[name] += total
            self.counts[name] += other.counts[name]

    def means(self) -> dict[str, float]:
        """Figures that were observed at all."""
        return {n: self.sums[n] / self.counts[n] for n in sorted(self.sums) if self.counts[n]}


@dataclass(frozen=True)
class _Seen:
    """What one batch showed."""

    step: int
    tally: Tally
    images: Tensor
    """(N, E) vectors of its whole images, one a caption."""
    texts: Tensor
    """(N, E) vectors of their captions."""
    image: Tensor
    """(N,) tells the images apart."""


def validate(
    model: MultiGrainModel,
    batches: Iterable[ConceptBatch],
    options: ObjectiveConfig,
    device: torch.device,
) -> dict[str, float]:
    """Measures a model; every rank gets the figures of all ranks' batches.

    Returns:
        ``match_accuracy`` over positives and drawn negatives, ``masked_token_accuracy``,
        ``box_acc@0.5_region`` and ``_object``, ``box_iou``, ``image_to_text_r@1`` and
        ``text_to_image_r@1`` among whole images and their captions, and the losses.
    """
    seen: list[_Seen] = []
    state = torch.get_rng_state()
    for batch in batches:
        # By batch, not by rank: the negatives must not depend on who measures it.
        torch.manual_seed(_SEED + batch.extras["step"])
        batch = batch.to(device)
        inputs = inputs_of(batch, model, options)
        outputs = run_objectives(model, inputs, options)
        tally = Tally()
        _observe(tally, outputs, batch, inputs.hidden.label)
        whole = batch.grain == IMAGE
        seen.append(
            _Seen(
                batch.extras["step"],
                tally,
                outputs.image_vector[whole].cpu(),
                outputs.text_vector[whole].cpu(),
                batch.extras["image_key"][whole].cpu(),
            )
        )
    torch.set_rng_state(state)
    return _figures(_gathered(seen))


def _observe(tally: Tally, outputs: Outputs, batch: ConceptBatch, labels: Tensor) -> None:
    count = batch.num_concepts
    for name, loss in outputs.losses.items():
        tally.add(name, loss[None].expand(batch.num_images))
    said_match = outputs.match_logits.argmax(dim=-1) == 1
    valid = outputs.negatives.valid
    tally.add("match_accuracy", said_match[:count])
    tally.add("match_accuracy", ~said_match[count:][valid.repeat(2)])
    tally.add("masked_token_accuracy", outputs.token_logits.argmax(dim=-1) == labels)
    boxed = batch.extras["boxed"]
    overlap = iou(cxcywh_to_xyxy(outputs.boxes), cxcywh_to_xyxy(batch.concept_box[boxed]))
    tally.add("box_iou", overlap)
    for grain in batch.grain[boxed].unique().tolist():
        chosen = batch.grain[boxed] == grain
        tally.add(f"box_acc@0.5_{GRAINS[grain]}", overlap[chosen] >= 0.5)


def _gathered(mine: list[_Seen]) -> list[_Seen]:
    """All ranks' batches in their order, so that no sum depends on the number of ranks."""
    everyone = [mine]
    if world()[1] > 1:
        everyone = [mine] * world()[1]
        dist.all_gather_object(everyone, mine)
    return sorted((one for each in everyone for one in each), key=lambda one: one.step)


def _figures(seen: list[_Seen]) -> dict[str, float]:
    total = Tally()
    for one in seen:
        total.merge(one.tally)
    figures = total.means()
    if not sum(len(one.image) for one in seen):
        return figures
    key = torch.cat([one.image for one in seen])
    similarity = torch.cat([one.images for one in seen]) @ torch.cat([one.texts for one in seen]).T
    # An image may have several captions here: each of them is right.
    to_text = key[similarity.argmax(dim=1)] == key
    to_image = key[similarity.argmax(dim=0)] == key
    figures["image_to_text_r@1"] = to_text.double().mean().item()
    figures["text_to_image_r@1"] = to_image.double().mean().item()
    figures["retrieval_images"] = float(len(key.unique()))
    return figures
