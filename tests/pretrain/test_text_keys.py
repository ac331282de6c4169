"""Texts that are one to the model are no negatives of each other, however they are written."""

from typing import Any

import torch

from pretrain.config import ObjectiveConfig
from pretrain.inputs import inputs_of, mark_hidden
from tests.pretrain.test_objective import build
from wholegrain.data.batch import IMAGE, WHOLE_IMAGE, Concept, ConceptBatch, Sample, collate
from wholegrain.objectives.matching import draw_negatives
from wholegrain.text import Tokenizer

TEXTS = (
    "A man riding a wave.",
    "a man riding a wave",
    "A man, riding a wave on a blue board",  # cut to six tokens
    "a man riding a board",
    "a man",
)
ONE = [0, 0, 0, 1, 2]
"""Which of the texts are one to a model that reads six tokens."""


def batch_of(texts: tuple[str, ...], hidden: int = 0) -> ConceptBatch:
    """An image for each text, of which some have their first word hidden."""
    tokenizer = Tokenizer.train([text for text in TEXTS for _ in range(3)], 60)
    samples = []
    for number, text in enumerate(texts):
        ids = tokenizer.encode(text, max_tokens=6)
        masked = [ids[0], tokenizer.mask_id, *ids[2:]] if number < hidden else ids
        labels = [token if token != seen else -100 for token, seen in zip(ids, masked, strict=True)]
        concept = Concept(IMAGE, WHOLE_IMAGE, text, ids, masked, labels)
        image = torch.zeros(3, 32, 32, dtype=torch.uint8)
        samples.append(Sample(f"a/{number}", image, [concept]))
    return mark_hidden(collate(samples))


def alike(values: Any) -> torch.Tensor:
    """Bool (C, C)."""
    values = torch.as_tensor(values)
    return values[:, None] == values


def test_a_texts_key_is_that_of_its_tokens() -> None:
    key = batch_of(TEXTS).extras["text_key"]
    assert torch.equal(alike(key), alike(ONE))
    assert (key > 0).all(), "a filler row's key, 0, is no one's"


def test_neither_hidden_words_nor_neighbours_change_a_key() -> None:
    whole = batch_of(TEXTS).extras["text_key"]
    assert torch.equal(batch_of(TEXTS, hidden=2).extras["text_key"], whole)
    assert torch.equal(batch_of(TEXTS[::-1]).extras["text_key"], whole.flip(0))


def test_keys_are_the_same_in_every_process() -> None:
    """A number written down: other ranks compare it with theirs."""
    ids = [2, 11, 300, 30521]
    concept = Concept(IMAGE, WHOLE_IMAGE, "whatever", ids, ids, [-100] * 4)
    sample = Sample("a/0", torch.zeros(3, 8, 8, dtype=torch.uint8), [concept])
    assert mark_hidden(collate([sample])).extras["text_key"].item() == 4_287_585_753_950_116_154


def test_a_batch_without_a_text_has_no_key() -> None:
    sample = Sample("a/0", torch.zeros(3, 8, 8, dtype=torch.uint8), [])
    key = mark_hidden(collate([sample])).extras["text_key"]
    assert key.shape == (0,)
    assert key.dtype == torch.long


def test_no_text_is_drawn_against_its_like() -> None:
    inputs = inputs_of(batch_of(TEXTS), build(), ObjectiveConfig())
    torch.manual_seed(0)
    image, text = torch.nn.functional.normalize(torch.randn(2, 5, 8), dim=-1)
    forbidden = alike(ONE)
    seen = torch.zeros(5, 5, dtype=torch.bool)
    for _ in range(60):
        drawn = draw_negatives(image, text, torch.tensor(1.0), inputs.image_key, inputs.text_key)
        assert drawn.valid.all()
        for which in (drawn.image, drawn.text):
            seen[torch.arange(5), which] = True
    assert torch.equal(seen, ~forbidden)
