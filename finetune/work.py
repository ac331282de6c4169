"""The work of a batch of expressions, counted on the host before the batch leaves it."""

from __future__ import annotations

from functools import cached_property

import torch

from wholegrain.data.batch import ConceptBatch
from wholegrain.model.grounding_flops import GroundingCost
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.train.meters import Work


class GroundingWork:
    """Counts what a training step of one rank does with a batch; called with it on the host.

    Samples are images, pairs are expressions. The texts take their tokens' places on a CPU, and a
    rectangle as wide as the longest elsewhere.

    Args:
        model: with its adapters and head; what is frozen is frozen.
        device: where the batch will be trained on.
    """

    def __init__(self, model: MultiGrainModel, device: torch.device | str) -> None:
        self._model = model
        self._gaps = torch.device(device).type != "cpu"

    @cached_property
    def _cost(self) -> GroundingCost:
        # Seconds, that a run without a step need not spend.
        return GroundingCost(self._model)

    def __call__(self, batch: ConceptBatch) -> Work:
        """Of a batch on the host."""
        lengths = batch.cu_seqlens.diff().tolist()
        tokens = sum(lengths)
        return Work(
            samples=batch.num_images,
            pairs=len(lengths),
            tokens=tokens,
            padded_tokens=len(lengths) * batch.max_length if self._gaps else tokens,
            flops=self._cost(batch.num_images, lengths),
        )
