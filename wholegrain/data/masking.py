"""Masked language: which tokens of a text are hidden, and behind what.

X-VLM's rule: whole words, now and then two or three neighbouring positions at once, a quarter of
the text but never more than a cap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from wholegrain.config import config
from wholegrain.data.batch import IGNORED

_NGRAMS = (2, 3)  # lengths of a skip-gram, equally likely

Share = Annotated[float, Field(ge=0, le=1)]


@config
class MaskingConfig:
    """How texts are masked for the masked-language objective."""

    probability: Share = 0.25
    """Share of a text's tokens (``[CLS]`` counted) that are predicted; at least one token is."""

    max_masks: Annotated[int, Field(ge=1)] = 8
    """Most tokens predicted in one text."""

    skipgram: Share = 0.2
    """Chance that a drawn position takes its one or two right neighbours along."""

    whole_word: bool = True
    """Whether a word cut into several pieces is hidden as a whole."""

    mask_share: Share = 0.8
    """Share of predicted tokens that are shown as ``[MASK]``."""

    random_share: Share = 0.1
    """Share of predicted tokens shown as a random vocabulary entry; the rest stay as they are."""

    def __post_init__(self) -> None:
        if self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share {self.mask_share} + random_share {self.random_share} exceed 1"
            )


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What masking needs to know of a tokenizer: the id of ``[MASK]`` and how many ids exist."""

    mask_id: int
    size: int


def mask_count(length: int, rules: MaskingConfig) -> int:
    """Tokens to predict in a text of `length` tokens, ``[CLS]`` counted.

    ``min(max_masks, max(1, round(probability * length)))``, halves rounded to the even number.
    """
    return min(rules.max_masks, max(1, round(rules.probability * length)))


def choose_positions(
    word_starts: Sequence[bool], rules: MaskingConfig, rng: np.random.Generator
) -> list[int]:
    """Positions to predict, ascending; never position 0, which holds ``[CLS]``.

    Positions are visited in random order; each takes its skip-gram and the rest of the words it
    touches along, until there are enough. A surplus is dropped at random, so the last word can end
    up hidden in part.

    Args:
        word_starts: one a token, False where the token continues a word.
    """
    length = len(word_starts)
    wanted = min(mask_count(length, rules), length - 1)
    if wanted < 1:
        return []
    # All chance at once, a column for each question: one call costs as much as drawing one number.
    turns, taking, extents, keeping = rng.random((4, length)).tolist()
    chosen: set[int] = set()
    for position in sorted(range(1, length), key=turns.__getitem__):
        if len(chosen) >= wanted:
            break
        if position in chosen:
            continue
        extent = 1
        if taking[position] < rules.skipgram:
            extent = _NGRAMS[int(extents[position] * len(_NGRAMS))]
        first, end = position, min(position + extent, length)
        if rules.whole_word:
            while first > 1 and not word_starts[first]:
                first -= 1
            while end < length and not word_starts[end]:
                end += 1
        chosen.update(range(first, end))
    return sorted(sorted(chosen, key=keeping.__getitem__)[:wanted])


def mask_tokens(
    ids: Sequence[int],
    word_starts: Sequence[bool],
    vocabulary: Vocabulary,
    rules: MaskingConfig,
    rng: np.random.Generator,
) -> tuple[list[int], list[int]]:
    """Hides tokens of one text.

    Args:
        ids: token ids, ``[CLS]`` first.
        word_starts: one a token, False where the token continues a word.

    Returns:
        The ids with masking applied, and labels: the original id at predicted positions, -100
        elsewhere.
    """
    masked, labels = list(ids), [IGNORED] * len(ids)
    positions = choose_positions(word_starts, rules, rng)
    draws = rng.random((len(positions), 2)).tolist()
    for position, (fate, entry) in zip(positions, draws, strict=True):
        labels[position] = ids[position]
        if fate < rules.mask_share:
            masked[position] = vocabulary.mask_id
        elif fate < rules.mask_share + rules.random_share:
            masked[position] = int(entry * vocabulary.size)
    return masked, labels
