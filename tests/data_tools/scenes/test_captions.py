from __future__ import annotations

import re

import numpy as np

from data_tools.scenes.captions import write_captions, write_phrases
from data_tools.scenes.config import COLOURS, SceneConfig
from data_tools.scenes.kinds import KINDS
from data_tools.scenes.programs import Item
from data_tools.scenes.sprites import Look
from data_tools.scenes.write import make_entry

ITEMS = [
    Item(Look("ball", "red", "striped", "small"), 0.2, 0.5, 0.04),
    Item(Look("ball", "blue", "plain", "large"), 0.8, 0.5, 0.14),
    Item(Look("apple", "red", "dotted", "medium"), 0.5, 0.2, 0.07),
]


def test_captions_are_several_and_speak_of_what_is_there() -> None:
    absent = (set(KINDS) | set(COLOURS)) - {"ball", "apple", "red", "blue"}
    texts: set[str] = set()
    for seed in range(20):
        captions = write_captions(ITEMS, "in the snow", np.random.default_rng(seed))
        assert len(captions) >= 3 and len(set(captions)) == len(captions)
        assert sum("in the snow" in caption for caption in captions) >= 2
        texts.update(captions)
    words = {word for text in texts for word in re.findall("[a-z]+", text)}
    assert not words & absent
    assert any("two balls" in text for text in texts)
    assert not any(re.search(r"\ba (apple|orange)|\ban [^aeiou]", text) for text in texts)
    # The only blue thing is a plain, large ball.
    assert not any(re.search(r"(striped|dotted|small|little) blue|blue apple", t) for t in texts)


def test_phrases_are_true_of_their_object() -> None:
    seen: set[str] = set()
    for seed in range(20):
        phrases = write_phrases(0, ITEMS, np.random.default_rng(seed))
        assert 2 <= len(phrases) <= 4
        seen.update(phrases)
    for phrase in seen:
        assert re.match(r"(a |an )?((small|little|striped|red) )*ball", phrase), phrase
        for relation, other in re.findall(
            r"(left|right|above|below|over|under).*?(ball|apple)$", phrase
        ):
            allowed = {"ball": {"left"}, "apple": {"left", "below", "under"}}
            assert relation in allowed[other], phrase


def test_every_object_of_a_scene_has_phrases() -> None:
    entry = make_entry(SceneConfig(size=64), "val", 0)
    assert len(entry.phrases) == len(entry.annotations)
    assert all(annotation["phrases"] for annotation in entry.annotations)
    assert len(entry.captions) >= 3
