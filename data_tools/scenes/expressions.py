"""Referring expressions that fit exactly one object of a scene."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from data_tools.scenes.programs import SIDES, Item, Program, Words, along, points_at
from data_tools.scenes.sprites import Look
from data_tools.scenes.wording import say

_MOST: Final = 8
_SIMPLE_SHARE: Final = 0.5
"""Share of the expressions that name attributes only."""

_SIMPLE: Final = (
    (0.62, ("kind", "colour")),
    (0.12, ("kind",)),
    (0.12, ("kind", "texture")),
    (0.08, ("kind", "size")),
    (0.02, ("colour",)),
    (0.04, ("kind", "colour", "texture")),
)
_FALLBACKS: Final = (
    ("kind", "colour", "texture"),
    ("kind", "colour", "size"),
    ("kind", "texture", "size"),
    ("kind", "colour", "texture", "size"),
)
_HEADS: Final = (("kind",), ("kind",), ("kind", "colour"), ("colour",), ())
_COMPLEX: Final = (
    (0.28, "relation"),
    (0.26, "side"),
    (0.20, "extreme"),
    (0.12, "ordinal"),
    (0.14, "between"),
)


@dataclass(frozen=True, slots=True)
class Expression:
    """A sentence for the object `target`, with the meaning that was checked."""

    target: int
    text: str
    program: Program


def describe(look: Look, fields: Sequence[str]) -> Words | None:
    """The words that state these fields of a look; None where there is no word ("medium")."""
    stated = {field: str(getattr(look, field)) for field in fields}
    return None if stated.get("size") == "medium" else Words(**stated)


def write_expressions(items: Sequence[Item], rng: np.random.Generator) -> list[Expression]:
    """4 to 8 different expressions in the order of their targets; at least one for nearly each."""
    total = max(len(items), int(rng.integers(5, _MOST + 1)))
    order = rng.permutation(len(items)).tolist()
    targets = (order * _MOST)[:total]
    anchors = [_unique_words(k, items, rng) for k in range(len(items))]
    found: dict[Program, Expression] = {}
    for target in targets:
        simple, complex_ = _simple(target, items, rng), _complex(target, items, anchors, rng)
        for candidates in (
            (simple, complex_) if rng.random() < _SIMPLE_SHARE else (complex_, simple)
        ):
            program = next((p for p in candidates if p not in found), None)
            if program is not None:
                found[program] = Expression(target, say(program, rng), program)
                break
    return sorted(found.values(), key=lambda expression: expression.target)


def _unique_words(target: int, items: Sequence[Item], rng: np.random.Generator) -> Words | None:
    """Attributes that only the target has, as simple as a random choice allows."""
    program = next(_simple(target, items, rng), None)
    return None if program is None else program.head


def _simple(target: int, items: Sequence[Item], rng: np.random.Generator) -> Iterator[Program]:
    """Unique expressions by attributes alone, likelier ones first."""
    for fields in (*(_SIMPLE[k][1] for k in _race(_SIMPLE, rng)), *_FALLBACKS):
        words = describe(items[target].look, fields)
        if words is not None:
            yield from _checked(Program("attributes", words), target, items)


def _complex(
    target: int, items: Sequence[Item], anchors: Sequence[Words | None], rng: np.random.Generator
) -> Iterator[Program]:
    """Unique expressions by place, order, size or relation, likelier forms first."""
    for k in _race(_COMPLEX, rng):
        for h in rng.permutation(len(_HEADS)).tolist():
            head = describe(items[target].look, _HEADS[h])
            if head is not None and _worthwhile(head, items, rng):
                for program in _variants(_COMPLEX[k][1], head, target, items, anchors, rng):
                    yield from _checked(program, target, items)


def _race(weighted: Sequence[tuple[float, object]], rng: np.random.Generator) -> list[int]:
    """A random order in which the weight is the chance to come first among those left."""
    times = rng.exponential(size=len(weighted)).tolist()
    return sorted(range(len(weighted)), key=lambda k: float(times[k]) / weighted[k][0])


def _worthwhile(head: Words, items: Sequence[Item], rng: np.random.Generator) -> bool:
    """Whether the head alone leaves a choice; now and then people say more than is needed."""
    return sum(head.fit(item.look) for item in items) > 1 or rng.random() < 0.15


def _variants(
    form: str,
    head: Words,
    target: int,
    items: Sequence[Item],
    anchors: Sequence[Words | None],
    rng: np.random.Generator,
) -> Iterator[Program]:
    """Programs of one form that may be true of the target, in random order."""
    sides = [SIDES[k] for k in rng.permutation(len(SIDES))]
    others = [k for k in rng.permutation(len(items)).tolist() if k != target]
    if form == "side":
        yield from (Program("side", head, side) for side in sides)
    elif form == "extreme":
        words = ("largest", "smallest", *sides) if rng.random() < 0.6 else sides
        yield from (Program("extreme", head, word) for word in words)
    elif form == "ordinal":
        yield from (Program("ordinal", head, s, rank) for s in sides[:2] for rank in (2, 3))
    elif form == "relation":
        for other in others:
            anchor = anchors[other]
            if anchor is not None:
                side = towards(items[target], items[other])
                yield Program("relation", head, side, anchors=(anchor,))
    else:
        for a, b in itertools.combinations(others, 2):
            first, second = anchors[a], anchors[b]
            if first is not None and second is not None:
                yield Program("between", head, anchors=(first, second))


def towards(item: Item, anchor: Item) -> str:
    """The side of the anchor on which the item mostly lies."""
    return max(SIDES, key=lambda side: along(anchor, side) - along(item, side))


def _checked(program: Program, target: int, items: Sequence[Item]) -> Iterator[Program]:
    if points_at(program, items) == target:
        yield program
