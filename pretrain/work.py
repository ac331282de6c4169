"""The work of a batch, counted on the host before the batch leaves it."""

from __future__ import annotations

import numpy as np
import torch

from pretrain.config import ObjectiveConfig
from pretrain.foreign import Capacity
from wholegrain.data.batch import ConceptBatch
from wholegrain.model.config import ModelConfig
from wholegrain.model.flops import StepCost, StepSums
from wholegrain.train.meters import Work


class StepWork:
    """Counts what a training step of one rank does with a batch.

    ``work(batch)`` gives of this rank's batch:

    samples
        Images.
    pairs
        Concepts with their texts.
    tokens
        Tokens of the texts, each counted once, [CLS] too.
    padded_tokens
        `tokens` times places over real tokens of all the step's text: the text encoder's call
        over whole and masked texts, and the rows of the cross encoder. On a CPU they lie without
        gaps, and both numbers are equal. Elsewhere the host does not know which texts are drawn as
        negatives, and gives each the places of the longest text there may be; the real tokens of
        the drawn texts are taken to be those of the own ones, which they are on the average where
        no text is likelier than another.
    flops
        Useful FLOP of forward and backward (`wholegrain.model.flops.step_flops`).

    Args:
        config: of the model.
        options: the run's.
        capacity: of the run's batches.
        device: where the batch will be trained on.
    """

    def __init__(
        self,
        config: ModelConfig,
        options: ObjectiveConfig,
        capacity: Capacity | None,
        device: torch.device | str,
    ) -> None:
        self._cost = StepCost(config)
        self._gaps = torch.device(device).type != "cpu"
        # Drawn from all ranks, a text comes in a slot that any of theirs fits into.
        fetched = options.negatives == "global" and capacity is not None
        self._longest = capacity.tokens if fetched and capacity is not None else 0

    def __call__(self, batch: ConceptBatch) -> Work:
        """Of a batch that `pretrain.inputs.mark_hidden` has seen, still on the host."""
        sums = step_sums(batch, self._cost.patches)
        boxed_tokens = batch.extras["boxed_tokens"]
        real = places = 6 * sums.tokens + boxed_tokens
        if self._gaps:
            longest = max(self._longest, batch.max_length)
            places = 5 * sums.tokens + sums.texts * longest + boxed_tokens
        return Work(
            samples=sums.images,
            pairs=sums.texts,
            tokens=sums.tokens,
            padded_tokens=round(sums.tokens * places / real) if real else 0,
            flops=self._cost(sums),
        )


def step_sums(batch: ConceptBatch, patches: int) -> StepSums:
    """What the FLOP of a step over a batch depend on.

    Args:
        batch: on the host, as `pretrain.inputs.mark_hidden` left it.
        patches: of an image. Without the batch's ``patches_seen`` every concept sees them all.
    """
    extras, count = batch.extras, batch.num_concepts
    starts = batch.cu_seqlens.numpy().astype(np.int64)
    lengths = starts[1:] - starts[:-1]
    keys = extras["patches_seen"] + 1 if "patches_seen" in extras else np.full(count, patches + 1)
    boxed = np.zeros(count, dtype=np.int64)
    if extras["boxed"] is not None:
        boxed[extras["boxed"].numpy()] = 1
    words = extras["hidden_counts"].numpy()
    local = (keys <= patches).astype(np.int64)  # a concept that sees everything is its image
    rows = np.stack([np.ones_like(lengths), lengths, keys, words, boxed, local])
    # Every sum of a product of two; those of three go by the last line.
    sums = (rows @ rows.T).tolist()
    one, length, key, word, box, own = range(len(rows))
    box_squares = int(boxed @ (lengths * lengths))
    local_squares = int(local @ (keys * keys))
    return StepSums(
        images=batch.num_images,
        searched=0 if extras["boxed"] is None else batch.num_images,
        texts=count,
        similarities=count * count,
        tokens=sums[one][length],
        squares=sums[length][length],
        words=sums[one][word],
        boxed=sums[one][box],
        visible=sums[one][key] - count,
        local=sums[own][key],
        local_patches=sums[own][key] - sums[one][own],
        local_squares=local_squares,
        row_tokens=4 * sums[one][length] + sums[box][length],
        row_squares=4 * sums[length][length] + box_squares,
        row_keys=4 * sums[length][key] + (1 + patches) * sums[box][length],
        reads=3 * count + sums[one][word] + sums[one][box],
        read_tokens=3 * sums[one][length] + sums[word][length] + sums[box][length],
        read_keys=3 * sums[one][key] + sums[word][key] + (1 + patches) * sums[one][box],
    )
