"""Texts of which nothing reaches the model are no concepts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from wholegrain.data.augment import AugmentConfig
from wholegrain.data.decode import ImageError
from wholegrain.data.masking import MaskingConfig
from wholegrain.data.prepare import Preparer
from wholegrain.data.sampling import ConceptSampling
from wholegrain.text import Tokenizer

Make = Callable[..., Any]


@pytest.mark.parametrize("blank", ["???", "\u200b", "\ufeff\u200d \u2060"])
def test_a_text_without_a_word_is_passed_over(
    memory_corpus: Make, tokenizer: Tokenizer, blank: str
) -> None:
    corpus = memory_corpus(1)
    first = corpus.records[0]
    preparer = Preparer(tokenizer, AugmentConfig(resolution=64), MaskingConfig())
    sampling = ConceptSampling(max_regions=0, max_objects=0, captions_per_image=None)
    corpus.records[0] = dataclasses.replace(first, captions=(blank, "a dog"))
    sample = preparer(corpus, 0, sampling, np.random.default_rng(0))
    assert [concept.text for concept in sample.concepts] == ["a dog"]
    corpus.records[0] = dataclasses.replace(first, captions=(blank,))
    with pytest.raises(ImageError, match="gives a text with a word in it"):
        preparer(corpus, 0, sampling, np.random.default_rng(0))
