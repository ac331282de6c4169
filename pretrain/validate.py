"""Validation while pretraining: figures for each objective, all in all and by grain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.config import ObjectiveConfig
from pretrain.grains import Terms
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
        ``text_to_image_r@1`` among whole images and their captions, and the losses, each the mean
        over its terms in all batches. Losses, accuracies and overlap also by grain, as
        ``matching/region``: the mean over the terms of that grain. A figure of which there is
        nothing is left out.
    """
    seen: list[_Seen] = []
    state = torch.get_rng_state()
    for batch in batches:
        # By batch, not by rank: the negatives must not depend on who measures it.
        torch.manual_seed(_SEED + batch.extras["step"])
        batch = batch.to(device, non_blocking=True)
        inputs = inputs_of(batch, model, options)
        outputs = run_objectives(model, inputs, options)
        tally = Tally()
        _observe(tally, outputs, batch, inputs.hidden.row, inputs.hidden.label)
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


def _observe(
    tally: Tally, outputs: Outputs, batch: ConceptBatch, row: Tensor, label: Tensor
) -> None:
    """Adds what a batch showed, whose hidden words are `label` (K,) of concepts `row` (K,)."""
    grain = batch.grain.cpu()
    for name, terms in outputs.terms.items():
        # Not the batch's own mean, which is 0 where nothing was measured.
        tally.add(name, terms.values if terms.counted is None else terms.values[terms.counted])
        _by_grain(tally, name, terms, grain)
    own = torch.arange(batch.num_concepts, device=row.device)
    valid = outputs.negatives.valid
    right = outputs.match_logits.argmax(dim=-1) == torch.cat([own < len(own), own < 0, own < 0])
    counted = torch.cat([own < len(own), valid, valid])
    tally.add("match_accuracy", right[counted])
    _by_grain(tally, "match_accuracy", Terms(right, own.repeat(3), counted), grain)
    right = outputs.token_logits.argmax(dim=-1) == label
    tally.add("masked_token_accuracy", right)
    _by_grain(tally, "masked_token_accuracy", Terms(right, row), grain)
    boxed = batch.extras["boxed"]
    assert outputs.boxes is not None  # every validation batch is asked for boxes
    overlap = iou(cxcywh_to_xyxy(outputs.boxes), cxcywh_to_xyxy(batch.concept_box[boxed]))
    tally.add("box_iou", overlap)
    _by_grain(tally, "box_iou", Terms(overlap, boxed), grain)
    _by_grain(tally, "box_acc@0.5", Terms(overlap >= 0.5, boxed), grain, "_")


def _by_grain(tally: Tally, name: str, terms: Terms, grain: Tensor, mark: str = "/") -> None:
    values, of = terms.values.cpu(), grain[terms.concept.cpu()]
    if terms.counted is not None:
        values, of = values[terms.counted.cpu()], of[terms.counted.cpu()]
    for kind, name_of in enumerate(GRAINS):
        tally.add(f"{name}{mark}{name_of}", values[of == kind])


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
