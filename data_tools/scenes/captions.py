"""Sentences about a whole picture, and phrases about one object that need not be unique."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from data_tools.scenes.expressions import describe, towards
from data_tools.scenes.kinds import KINDS
from data_tools.scenes.programs import Item, Program, Words, judge
from data_tools.scenes.wording import RELATIONS, indefinite, noun, pick

_NUMBERS: Final = ("no", "one", "two", "three", "four", "five", "six")
_DETAIL: Final = (
    ("kind", "colour"),
    ("kind", "colour"),
    ("kind", "colour", "texture"),
    ("kind", "colour", "size"),
    ("kind", "texture"),
    ("kind", "colour", "texture", "size"),
)
_SIDE_PHRASES: Final = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}


def write_captions(items: Sequence[Item], place: str, rng: np.random.Generator) -> list[str]:
    """4 different captions of a scene in the given place ("in the snow")."""
    captions = [
        _list_some(items, place, rng),
        _count(items, place, rng),
        _relate(items, place, rng),
        _list_all(items, place, rng),
    ]
    return list(dict.fromkeys(captions))


def write_phrases(target: int, items: Sequence[Item], rng: np.random.Generator) -> list[str]:
    """2 to 4 different true phrases about one object; others may fit them too."""
    look = items[target].look
    full = describe(look, ("kind", "colour", "texture", "size"))
    phrases = [noun(full or _words(target, items, ("kind", "colour", "texture")), rng)]
    phrases += [_some(target, items, rng) for _ in range(2)]
    others = [k for k in range(len(items)) if k != target]
    phrase = _relation(target, int(rng.choice(others)), items, rng)
    if phrase is not None:
        phrases.append(phrase)
    else:
        side = _where(target, items)
        if side is not None:
            phrases.append(f"{_some_noun(target, items, rng)} {_SIDE_PHRASES[side]}")
    return list(dict.fromkeys(phrases))


def _words(target: int, items: Sequence[Item], fields: Sequence[str]) -> Words:
    words = describe(items[target].look, fields)
    return Words(kind=items[target].look.kind) if words is None else words


def _some_noun(target: int, items: Sequence[Item], rng: np.random.Generator) -> str:
    return noun(_words(target, items, _DETAIL[int(rng.integers(len(_DETAIL)))]), rng)


def _some(target: int, items: Sequence[Item], rng: np.random.Generator) -> str:
    return indefinite(_some_noun(target, items, rng))


def _where(target: int, items: Sequence[Item]) -> str | None:
    """The side of the picture that the object is clearly on, if any."""
    for side in _SIDE_PHRASES:
        if judge(Program("side", Words(), side), items)[target]:
            return side
    return None


def _relation(a: int, b: int, items: Sequence[Item], rng: np.random.Generator) -> str | None:
    """Object `a` and its direction from `b`, where that is clear."""
    pair = (items[a], items[b])
    side = towards(*pair)
    # Judged on the two alone: here the other need not be the only one of its looks.
    anchor = Words(*(getattr(pair[1].look, f) for f in ("kind", "colour", "texture", "size")))
    if not judge(Program("relation", Words(), side, anchors=(anchor,)), pair)[0]:
        return None
    return f"{_some(a, items, rng)} {pick(rng, RELATIONS[side])} {_some(b, items, rng)}"


def _join(phrases: Sequence[str]) -> str:
    if len(phrases) < 2:
        return "".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _list_some(items: Sequence[Item], place: str, rng: np.random.Generator) -> str:
    chosen = rng.permutation(len(items))[: int(rng.integers(2, 4))].tolist()
    text = f"{_join([_some(k, items, rng) for k in chosen])} {place}"
    return f"a picture of {text}" if rng.random() < 0.3 else text


def _list_all(items: Sequence[Item], place: str, rng: np.random.Generator) -> str:
    """Every object with its colour and kind, from the left to the right."""
    order = sorted(range(len(items)), key=lambda k: items[k].x)
    listed = _join([indefinite(noun(_words(k, items, ("kind", "colour")), rng)) for k in order])
    return f"{listed}, from left to right" if rng.random() < 0.4 else f"there is {listed} {place}"


def _count(items: Sequence[Item], place: str, rng: np.random.Generator) -> str:
    kinds = Counter(item.look.kind for item in items)
    groups = [
        indefinite(kind) if n == 1 else f"{_NUMBERS[n]} {KINDS[kind].plural}"
        for kind, n in kinds.items()
    ]
    text = f"{_join([groups[k] for k in rng.permutation(len(groups))])} {place}"
    return f"{_NUMBERS[len(items)]} things: {text}" if rng.random() < 0.2 else text


def _relate(items: Sequence[Item], place: str, rng: np.random.Generator) -> str:
    order = rng.permutation(len(items)).tolist()
    for a, b in itertools.pairwise(order):
        phrase = _relation(a, b, items, rng)
        if phrase is not None:
            return f"{phrase} {place}" if rng.random() < 0.5 else phrase
    return f"{_some(order[0], items, rng)} near {_some(order[1], items, rng)} {place}"
