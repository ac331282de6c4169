"""How many concepts a batch holds: no more than fit, or exactly as many as are asked for.

Images bring as many texts as their records have, so a batch's number of concepts varies. A budget
bounds it: memory is known in advance, and shapes can be static.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wholegrain.data.batch import Sample


@dataclass(frozen=True, slots=True)
class ConceptBudget:
    """The concepts of one rank's batch.

    Attributes:
        concepts: at most so many; a random subset stays when there are more.
        exact: repeats some of them when there are fewer, as X-VLM does. A repeated concept is a
            false negative of itself, unless the objectives tell equal texts apart.
    """

    concepts: int
    exact: bool = False

    def kept(self, samples: Sequence[Sample], rng: np.random.Generator) -> list[Sample]:
        """The samples with the concepts that fit; images stay, also those left without a text."""
        places = [(row, at) for row, each in enumerate(samples) for at in range(len(each.concepts))]
        count = len(places)
        if count > self.concepts:
            chosen = rng.permutation(count)[: self.concepts]
        elif self.exact and 0 < count < self.concepts:
            again = (rng.random(self.concepts - count) * count).astype(np.int64)
            chosen = np.concatenate([np.arange(count), again])
        else:
            return list(samples)
        concepts: list[list[int]] = [[] for _ in samples]
        for row, at in (places[place] for place in np.sort(chosen).tolist()):
            concepts[row].append(at)
        return [
            dataclasses.replace(sample, concepts=[sample.concepts[at] for at in kept])
            for sample, kept in zip(samples, concepts, strict=True)
        ]
