from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from wholegrain.data.batch import IMAGE, OBJECT, REGION
from wholegrain.data.record import Record, Reference, Region
from wholegrain.data.sampling import (
    Candidate,
    ConceptSampling,
    caption_candidates,
    region_candidates,
    usable_regions,
)

BOX = (1.0, 1.0, 5.0, 5.0)


def _ref(name: str, split: str) -> Reference:
    return Reference(name, 1, (1,), split)


RECORD = Record(
    "x", "s", "train", 50, 40,
    captions=("c0", "c1", "c2"),
    regions=(
        *(Region("region", BOX, (f"r{i} a", f"r{i} b")) for i in range(6)),
        Region("region", BOX, ("R0 A",)),
        Region("object", BOX, ("car",), attributes=("red", "old")),
        Region("object", BOX, ("dog",)),
        Region("region", BOX, ("e",), ref=_ref("refcoco-unc", "testA")),
        Region("region", BOX, ("f",), ref=_ref("refcoco-unc", "val")),
        Region("region", BOX, ("g",), ref=_ref("refcoco-google", "val")),
    ),
)  # fmt: skip


def _regions(
    rules: ConceptSampling, seed: int | None, anchor: int | None = None, **shares: float
) -> list[Candidate]:
    usable = usable_regions(RECORD, rules)
    seen = [shares.get(f"r{i}", 1.0) for i in usable]
    rng = None if seed is None else np.random.default_rng(seed)
    return list(region_candidates(RECORD, usable, seen, anchor, rules, rng))


def _grains(found: list[Candidate]) -> dict[int, int]:
    return {g: sum(c.grain == g for c in found) for g in (IMAGE, REGION, OBJECT)}


def test_limits_of_each_grain_hold() -> None:
    for seed in range(20):
        found = _regions(ConceptSampling(max_regions=3, max_objects=1), seed)
        assert _grains(found) == {IMAGE: 0, REGION: 3, OBJECT: 1}
        assert len({c.region for c in found}) == 4


def test_zero_switches_a_grain_off() -> None:
    assert _grains(_regions(ConceptSampling(max_regions=0), 0))[REGION] == 0
    assert _grains(_regions(ConceptSampling(max_objects=0), 0))[OBJECT] == 0
    assert caption_candidates(RECORD, ConceptSampling(captions_per_image=0), None) == []


def test_chance_reaches_every_region_text_and_caption() -> None:
    rules = ConceptSampling()
    draws = [_regions(rules, seed) for seed in range(150)]
    texts = {c.text for found in draws for c in found}
    assert {"r0 a", "r0 b", "R0 A", "red car", "old car", "dog", "e"} <= texts
    captions = [
        caption_candidates(RECORD, rules, np.random.default_rng(s))[0].text for s in range(60)
    ]
    assert set(captions) == {"c0", "c1", "c2"}


def test_without_a_generator_the_first_are_taken_in_order() -> None:
    found = _regions(ConceptSampling(max_regions=2), None)
    assert found == _regions(ConceptSampling(max_regions=2), None)
    assert [c.text for c in found] == ["r0 a", "r1 a", "red car", "dog"]
    assert [(c.region, c.text_index) for c in found] == [(0, 0), (1, 0), (7, 0), (8, 0)]
    captions = caption_candidates(RECORD, ConceptSampling(captions_per_image=2), None)
    assert [(c.text, c.region, c.text_index, c.grain) for c in captions] == [
        ("c0", -1, 0, IMAGE),
        ("c1", -1, 1, IMAGE),
    ]


def test_regions_that_the_view_cuts_are_dropped() -> None:
    found = _regions(ConceptSampling(max_regions=None), 0, r1=0.5, r2=0.51)
    regions = {c.region for c in found}
    assert 1 not in regions and 2 in regions


def test_the_anchor_is_always_among_the_chosen() -> None:
    for seed in range(20):
        assert _regions(ConceptSampling(max_regions=1), seed, anchor=4)[0].region == 4


def test_the_anchor_may_be_left_to_chance() -> None:
    rules = ConceptSampling(max_regions=1, max_objects=0, anchor_first=False)
    first = {_regions(rules, seed, anchor=4)[0].region for seed in range(60)}
    assert len(first) > 4


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({}, 1 + 5 + 5),
        ({"max_concepts": 5}, 5),
        ({"max_concepts": 20}, 11),
        ({"max_regions": 3, "texts_per_region": None}, 9),  # the limit counts texts
        ({"max_regions": None}, None),
        ({"max_regions": None, "max_concepts": 5}, 5),
    ],
)
def test_the_most_concepts_of_an_image(limits: dict[str, Any], most: int | None) -> None:
    assert ConceptSampling(**limits).most_concepts() == most


def test_phrases_stand_in_for_captions_that_are_not_there() -> None:
    bare = dataclasses.replace(RECORD, captions=())
    rules = ConceptSampling(phrases_as_captions=True)
    assert caption_candidates(bare, ConceptSampling(), None) == []
    draws = [caption_candidates(bare, rules, np.random.default_rng(s)) for s in range(200)]
    assert {c.text for (c,) in draws} == {
        *(f"r{i} {letter}" for i in range(6) for letter in "ab"),
        *("R0 A", "e", "f", "g"),
    }
    assert {(c.grain, c.region) for (c,) in draws} == {(IMAGE, -1)}
    # Its own captions come first.
    (own,) = caption_candidates(RECORD, rules, None)
    assert own.text == "c0"


def test_a_text_is_taken_once_an_image() -> None:
    for seed in range(30):
        rules = ConceptSampling(max_regions=None, texts_per_region=None)
        texts = [c.text.casefold() for c in _regions(rules, seed)]
        assert len(texts) == len(set(texts))
    everything = _regions(ConceptSampling.everything(), None)
    assert len(everything) == 6 * 2 + 6
    assert sum(c.text.casefold() == "r0 a" for c in everything) == 2


def test_all_texts_of_a_region_count_against_its_limit() -> None:
    rules = ConceptSampling(max_regions=3, max_objects=0, texts_per_region=2)
    assert [c.text for c in _regions(rules, None)] == ["r0 a", "r0 b", "r1 a"]


@pytest.mark.parametrize(
    ("reference", "texts"),
    [
        ("refcoco-unc", ["e", "f"]),
        ("refcoco-unc:testA", ["e"]),
        ("refcoco-google:val", ["g"]),
        ("refcoco", []),
        ("refcoco-unc:test", []),
    ],
)
def test_expressions_of_one_reference_set(reference: str, texts: list[str]) -> None:
    rules = ConceptSampling.everything(reference)
    assert [c.text for c in _regions(rules, None)] == texts
    assert caption_candidates(RECORD, rules, None) == []


@pytest.mark.parametrize("field", ["captions_per_image", "max_regions", "max_objects"])
def test_a_negative_count_is_refused(field: str) -> None:
    wrong: dict[str, Any] = {field: -1}
    with pytest.raises(ValueError, match=field):
        ConceptSampling(**wrong)
