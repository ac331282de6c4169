"""Expressions are unambiguous, shown by reading the written sentences with other eyes.

The reader below knows nothing of `programs.py`: it parses the words and looks at boxes and
attributes as they stand in the files' entries. It has a narrow and a wide idea of every word; the
target must satisfy the narrow one, and nothing else in the picture even the wide one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from data_tools.scenes.config import COLOURS, SceneConfig
from data_tools.scenes.expressions import write_expressions
from data_tools.scenes.kinds import KINDS
from data_tools.scenes.programs import FORMS, Item
from data_tools.scenes.sprites import Look
from data_tools.scenes.write import make_entry

CONFIG = SceneConfig(size=96, seed=5)
SCENES = 120


@dataclass(frozen=True)
class Seen:
    """An annotation as a reader sees it; centre and sides in shares of the picture."""

    id: int
    kind: str
    attributes: frozenset[str]
    x: float
    y: float
    area: float


Reading = Callable[[list[Seen]], list[Seen]]

NOUN = (
    r"(?:(?:small|little|large|big) )?(?:(?:plain|striped|dotted|checked) )?"
    rf"(?:(?:{'|'.join(COLOURS)}) )?(?:{'|'.join(KINDS)}|thing|object)"
    r"(?: with (?:stripes|dots|checks))?"
)
MEANING = {
    "little": "small",
    "big": "large",
    "stripes": "striped",
    "dots": "dotted",
    "checks": "checked",
}
AXES = {"left": (1, 0), "right": (-1, 0), "top": (0, 1), "bottom": (0, -1)}
SIDES = r"(left|right|top|bottom)"
RELATIONS = {
    "to the left of": "left",
    "left of": "left",
    "to the right of": "right",
    "right of": "right",
    "above": "top",
    "over": "top",
    "below": "bottom",
    "under": "bottom",
}
SUPERLATIVES = {"leftmost": "left", "rightmost": "right", "highest": "top", "lowest": "bottom"}


def fits(noun: str, seen: Seen) -> bool:
    words = [MEANING.get(word, word) for word in noun.split()]
    return all(
        word in ("thing", "object", "with") or word == seen.kind or word in seen.attributes
        for word in words
    )


def only(noun: str, scene: list[Seen]) -> Seen:
    (found,) = [seen for seen in scene if fits(noun, seen)]
    return found


def distance(seen: Seen, side: str) -> float:
    """From the left or top edge, or minus that, so that smaller is nearer to `side`."""
    dx, dy = AXES[side]
    return seen.x * dx + seen.y * dy


def read(text: str, scene: list[Seen], wide: bool) -> list[Seen]:
    """All that the expression may mean, in the wide or in the narrow sense of its words."""
    text = text.removeprefix("the ")
    for pattern, reader in READERS:
        match = re.fullmatch(pattern.replace("NOUN", f"({NOUN})"), text)
        if match:
            return reader([group for group in match.groups() if group], scene, wide)
    raise AssertionError(f"cannot read {text!r}")


def read_relation(groups: list[str], scene: list[Seen], wide: bool) -> list[Seen]:
    noun, relation, anchor_noun = groups
    anchor, side = only(anchor_noun, scene), RELATIONS[relation]
    found = []
    for seen in scene:
        ahead = distance(anchor, side) - distance(seen, side)
        across = abs(seen.y - anchor.y) if side in ("left", "right") else abs(seen.x - anchor.x)
        clear = ahead > 0.02 if wide else ahead >= 0.119 and ahead >= across
        if seen is not anchor and fits(noun, seen) and clear:
            found.append(seen)
    return found


def read_between(groups: list[str], scene: list[Seen], wide: bool) -> list[Seen]:
    noun, *anchor_nouns = groups
    a, b = (only(anchor, scene) for anchor in anchor_nouns)
    assert a is not b
    start, end = np.array([a.x, a.y]), np.array([b.x, b.y])
    found = []
    for seen in scene:
        point = np.array([seen.x, seen.y])
        # Between is where the way over the point is hardly longer than the straight way.
        detour = np.linalg.norm(point - start) + np.linalg.norm(end - point)
        detour /= np.linalg.norm(end - start)
        if seen not in (a, b) and fits(noun, seen) and detour < (1.27 if wide else 1.11):
            found.append(seen)
    return found


def read_extreme(side: str, noun: str, scene: list[Seen], wide: bool) -> list[Seen]:
    fitting = [seen for seen in scene if fits(noun, seen)]
    assert len(fitting) > 1
    nearest = min(distance(seen, side) for seen in fitting)
    return [seen for seen in fitting if distance(seen, side) <= nearest + (0.055 if wide else 0)]


def read_size(groups: list[str], scene: list[Seen], wide: bool) -> list[Seen]:
    word, noun = groups
    fitting = [seen for seen in scene if fits(noun, seen)]
    assert len(fitting) > 1
    sign = 1 if word == "smallest" else -1
    best = min(sign * np.log(seen.area) for seen in fitting)
    slack = np.log(1.4) if wide else 1e-9
    return [seen for seen in fitting if sign * np.log(seen.area) <= best + slack]


def read_ordinal(rank: str, noun: str, side: str, scene: list[Seen], wide: bool) -> list[Seen]:
    fitting = sorted(
        (seen for seen in scene if fits(noun, seen)), key=lambda seen: distance(seen, side)
    )
    place = {"second": 1, "third": 2}[rank]
    here = distance(fitting[place], side)
    return [seen for seen in fitting if abs(distance(seen, side) - here) <= 0.055 * wide]


def read_side(side: str, noun: str, scene: list[Seen], wide: bool) -> list[Seen]:
    limit = 0.57 if wide else 0.4
    offset = 0 if side in ("left", "top") else 1
    return [seen for seen in scene if fits(noun, seen) and distance(seen, side) + offset <= limit]


def read_noun(groups: list[str], scene: list[Seen], wide: bool) -> list[Seen]:
    return [seen for seen in scene if fits(groups[0], seen)]


READERS: list[tuple[str, Callable[[list[str], list[Seen], bool], list[Seen]]]] = [
    ("NOUN", read_noun),
    ("NOUN between the NOUN and the NOUN", read_between),
    (rf"NOUN ({'|'.join(RELATIONS)}) the NOUN", read_relation),
    ("(largest|biggest|smallest) NOUN", read_size),
    (
        rf"({'|'.join(SUPERLATIVES)}) NOUN",
        lambda g, scene, wide: read_extreme(SUPERLATIVES[g[0]], g[1], scene, wide),
    ),
    (
        rf"NOUN (?:farthest to|nearest) the {SIDES}",
        lambda g, scene, wide: read_extreme(g[1], g[0], scene, wide),
    ),
    (
        rf"(second|third) NOUN from the {SIDES}",
        lambda g, scene, wide: read_ordinal(g[0], g[1], g[2], scene, wide),
    ),
    (
        rf"NOUN (second|third) from the {SIDES}",
        lambda g, scene, wide: read_ordinal(g[1], g[0], g[2], scene, wide),
    ),
    (rf"{SIDES} NOUN", lambda g, scene, wide: read_side(g[0], g[1], scene, wide)),
    (
        rf"NOUN (?:on|at) the {SIDES}(?: side)?",
        lambda g, scene, wide: read_side(g[1], g[0], scene, wide),
    ),
]


def look_at(annotations: list[dict[str, Any]], size: int) -> list[Seen]:
    names = list(KINDS)
    scene = []
    for annotation in annotations:
        x, y, w, h = (value / size for value in annotation["bbox"])
        attributes = frozenset(annotation["attributes"])
        kind = names[annotation["category_id"] - 1]
        scene.append(Seen(annotation["id"], kind, attributes, x + w / 2, y + h / 2, w * h))
    return scene


@pytest.fixture(scope="module")
def sentences() -> list[tuple[str, str, int, list[Seen]]]:
    """(text, form, id of the target, scene) of many expressions."""
    found = []
    for index in range(SCENES):
        entry = make_entry(CONFIG, "test", index)
        scene = look_at(entry.annotations, CONFIG.size)
        for ref in entry.refs:
            for sentence in ref["sentences"]:
                form = sentence["program"]["form"]
                found.append((sentence["sent"], form, ref["ann_id"], scene))
    return found


def test_each_expression_means_one_object_to_a_narrow_and_to_a_wide_reader(
    sentences: list[tuple[str, str, int, list[Seen]]],
) -> None:
    for text, _, target, scene in sentences:
        for wide in (False, True):
            meant = [seen.id for seen in read(text, scene, wide)]
            assert meant == [target], f"{text!r} ({'wide' if wide else 'narrow'}): {scene}"


def test_all_forms_occur_and_half_are_simple(
    sentences: list[tuple[str, str, int, list[Seen]]],
) -> None:
    shares = Counter(form for _, form, _, _ in sentences)
    assert set(shares) == set(FORMS)
    assert 0.4 < shares["attributes"] / len(sentences) < 0.6
    assert 4 * SCENES < len(sentences) <= 8 * SCENES
    per_scene = Counter(id(scene) for _, _, _, scene in sentences)
    assert min(per_scene.values()) >= 3


def test_the_vocabulary_is_small(sentences: list[tuple[str, str, int, list[Seen]]]) -> None:
    assert len({word for text, *_ in sentences for word in text.split()}) < 150


def test_twins_are_told_apart_by_place_only() -> None:
    look = Look("ball", "red", "plain", "medium")
    twins = [Item(look, 0.2, 0.5, 0.07), Item(look, 0.8, 0.5, 0.07)]
    expressions = write_expressions(twins, np.random.default_rng(0))
    assert {expression.target for expression in expressions} == {0, 1}
    assert not {expression.program.form for expression in expressions} & {"attributes", "relation"}


def test_nothing_is_said_where_nothing_is_clear() -> None:
    look = Look("ball", "red", "plain", "medium")
    close = [Item(look, 0.5, 0.5, 0.07), Item(look, 0.52, 0.51, 0.07)]
    assert write_expressions(close, np.random.default_rng(0)) == []
