"""Negatives of other ranks: what the cross encoder needs of them, fetched."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.inputs import ConceptInputs
from wholegrain.model.concepts import VisualConcepts
from wholegrain.model.indexing import take
from wholegrain.model.packing import Packing
from wholegrain.objectives.gather import fetch_rows, gathered_index
from wholegrain.objectives.matching import Negatives


@dataclass(frozen=True)
class Capacity:
    """The most that any rank's part of a batch can hold; the same numbers on all ranks."""

    concepts: int
    images: int
    tokens: int
    """Of one text."""


@dataclass(frozen=True)
class Foreign:
    """C texts and C concepts that were drawn as negatives."""

    states: Tensor
    """(C L, D) whole texts' states; L is the capacity's."""
    texts: Packing
    """C texts, each in a slot of L."""
    concepts: VisualConcepts
    """C, each with the patches of its image for itself."""


def fetch_negatives(
    inputs: ConceptInputs,
    concepts: VisualConcepts,
    states: Tensor,
    negatives: Negatives,
    capacity: Capacity,
) -> Foreign:
    """Fetches drawn negatives from the ranks that hold them; gradients find their way back.

    Args:
        inputs: C concepts on I images.
        concepts: of `inputs`.
        states: (2 T, D), the whole texts first.
        negatives: gathered indices.
        capacity: the most of any rank.
    """
    texts = inputs.texts
    column = torch.arange(capacity.tokens, device=states.device)
    place = texts.starts[:, None] + torch.minimum(column, texts.lengths[:, None] - 1)
    rows = [take(states, place), texts.lengths]
    text_states, lengths = fetch_rows(rows, negatives.text, capacity.concepts)
    # Regions of a ViT with local blocks bring patches of their own.
    most = capacity.images + (capacity.concepts if concepts.base is not None else 0)
    cls, mask, row = fetch_rows(
        [concepts.cls, concepts.mask, gathered_index(concepts.patch_row, most)],
        negatives.image,
        capacity.concepts,
    )
    patches = fetch_rows([concepts.patches], row, most)[0]
    own = torch.arange(len(cls), device=cls.device)
    longest = capacity.tokens
    packing = Packing(own * longest, lengths, len(own) * longest, longest)
    return Foreign(text_states.flatten(0, 1), packing, VisualConcepts(cls, patches, own, mask))
