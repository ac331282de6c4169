"""Which texts the cross encoder reads with which concepts: every pass of a step as one call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.foreign import Foreign
from pretrain.inputs import ConceptInputs
from wholegrain.model.packing import Chosen, Packing
from wholegrain.model.text import Reads
from wholegrain.objectives.matching import Negatives


@dataclass(frozen=True)
class Passes:
    """R rows of texts and concepts.

    The C pairs, C texts with foreign concepts, C concepts with foreign texts, the C pairs with
    words hidden, and B texts with their whole images.
    """

    sources: Packing
    """[C whole texts, C masked texts, foreign texts], whose states are fused."""
    chosen: Chosen
    """R texts of those."""
    concepts: Tensor
    """(R,) which of [C concepts, I whole images, foreign concepts] each text is read with."""
    reads: Reads
    """[CLS] of the first 3 C rows, hidden places of the next C, [CLS] of the last B."""
    sizes: tuple[int, int, int]
    """How many places are read for matching, for masked language and for boxes."""


def plan_passes(
    inputs: ConceptInputs,
    negatives: Negatives,
    foreign: Foreign | None = None,
    ask: bool | None = None,
) -> Passes:
    """Lays the passes out.

    Args:
        inputs: C concepts on I images.
        negatives: of the C pairs.
        foreign: the negatives themselves where they come from all ranks; their states then stand
            behind the own texts', their concepts behind the whole images.
        ask: whether the lengths of the drawn texts may be asked of the device; None asks on the
            CPU alone, where that costs nothing. Otherwise each drawn text is given the place of the
            longest.
    """
    texts, hidden = inputs.texts, inputs.hidden
    count, device = len(texts), texts.starts.device
    own = torch.arange(count, device=device)
    boxed = inputs.boxed if inputs.boxed is not None else own[:0]
    sources, text, concept = texts.repeated(2), negatives.text, negatives.image
    if foreign is not None:
        sources = sources.followed_by(foreign.texts)
        text, concept = 2 * count + own, count + len(inputs.images) + own
    rows = torch.cat([own, own, text, count + own, boxed])
    concepts = torch.cat([own, concept, own, own, count + inputs.image[boxed]])
    slots = total = None
    if not (device.type == "cpu" if ask is None else ask):
        lengths = texts.lengths
        drawn = torch.full_like(lengths, sources.longest)
        slots = torch.cat([lengths, lengths, drawn, lengths, lengths[boxed]])
        total = 3 * texts.total + count * sources.longest + inputs.boxed_tokens
    chosen = sources.choose(rows, slots, total)
    cls = chosen.texts.starts
    masked = cls[3 * count : 4 * count][hidden.row] + hidden.column
    sizes = (3 * count, len(masked), len(boxed))
    one_each = torch.ones(3 * count + len(boxed), dtype=torch.long, device=device)
    places = torch.cat([one_each[: 3 * count], hidden.counts, one_each[3 * count :]])
    reads = Reads(
        torch.cat([cls[: 3 * count], masked, cls[4 * count :]]),
        Packing.of_lengths(places, sum(sizes), max(1, hidden.most)),
    )
    return Passes(sources, chosen, concepts, reads, sizes)
