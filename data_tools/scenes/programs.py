"""What an expression means: a small program that points at objects, judged with margins.

Every judgement is yes, no or unsure (None). An expression is used only where exactly one object
gets a yes and all others a clear no; so a reader with somewhat stricter or looser ideas of "left
of" or "largest" still finds the same object.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from data_tools.scenes.sprites import Look

Verdict = bool | None

STEP: Final = 0.06
"""Least difference of two centres, as a share of the side, for one to be counted before another."""
RATIO: Final = 1.45
"""Least ratio of two box areas for one to be called larger."""


@dataclass(frozen=True, slots=True)
class Item:
    """An object as programs see it; centre and box area in shares of the picture."""

    look: Look
    x: float
    y: float
    area: float


@dataclass(frozen=True, slots=True)
class Words:
    """The attributes that a noun phrase states; None where it says nothing ("thing")."""

    kind: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: str | None = None

    def fit(self, look: Look) -> bool:
        """Whether the phrase is true of an object that looks like this."""
        return (
            self.kind in (None, look.kind)
            and self.colour in (None, look.colour)
            and self.texture in (None, look.texture)
            and self.size in (None, look.size)
        )

    def to_dict(self) -> dict[str, str]:
        """The stated attributes only."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Program:
    """One referring expression: `head` says what it is, the rest which one."""

    form: str
    """One of `FORMS`."""
    head: Words
    word: str = ""
    """One of `SIDES`; for the form extreme also largest or smallest."""
    rank: int = 0
    """For ordinal: 2 for second, 3 for third, counted from the side `word`."""
    anchors: tuple[Words, ...] = ()
    """Phrases that each fit exactly one object: one for a relation, two for between."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and ints without the empty fields."""
        plain = {
            "form": self.form,
            "head": self.head.to_dict(),
            "word": self.word,
            "rank": self.rank,
            "anchors": [anchor.to_dict() for anchor in self.anchors],
        }
        return {key: value for key, value in plain.items() if value or key == "head"}


def judge(program: Program, items: Sequence[Item]) -> list[Verdict]:
    """Whether each of the `items` is what the `program` speaks of: yes, no, or None for unsure."""
    return _JUDGES[program.form](program, items)


def points_at(program: Program, items: Sequence[Item]) -> int | None:
    """The index of the one item with a yes where all others get a clear no, else None."""
    verdicts = judge(program, items)
    if verdicts.count(True) != 1 or None in verdicts:
        return None
    return verdicts.index(True)


def _attributes(program: Program, items: Sequence[Item]) -> list[Verdict]:
    return [program.head.fit(item.look) for item in items]


def _side(program: Program, items: Sequence[Item]) -> list[Verdict]:
    """Yes in the outer 2/5 of the picture, no in the other half and a bit."""

    def verdict(item: Item) -> Verdict:
        place = along(item, program.word)
        if not program.head.fit(item.look) or place > 0.58:
            return False
        return True if place < 0.4 else None

    return [verdict(item) for item in items]


def _extreme(program: Program, items: Sequence[Item]) -> list[Verdict]:
    fitting = [k for k, item in enumerate(items) if program.head.fit(item.look)]
    verdicts: list[Verdict] = [False] * len(items)
    if len(fitting) < 2:  # a superlative of one is no comparison
        return verdicts
    if program.word in ("largest", "smallest"):
        sign = -1 if program.word == "largest" else 1
        order = sorted(fitting, key=lambda k: sign * items[k].area)
        first, second = items[order[0]].area, items[order[1]].area
        clear = max(first, second) >= RATIO * min(first, second)
    else:
        order = sorted(fitting, key=lambda k: along(items[k], program.word))
        first, second = (along(items[k], program.word) for k in order[:2])
        clear = second - first >= STEP
    verdicts[order[0]] = True if clear else None
    return verdicts


def _ordinal(program: Program, items: Sequence[Item]) -> list[Verdict]:
    fitting = [k for k, item in enumerate(items) if program.head.fit(item.look)]
    verdicts: list[Verdict] = [False] * len(items)
    if len(fitting) < max(3, program.rank):  # of two, people say left and right
        return verdicts
    order = sorted(fitting, key=lambda k: along(items[k], program.word))
    places = [along(items[k], program.word) for k in order]
    clear = all(b - a >= STEP for a, b in itertools.pairwise(places))
    verdicts[order[program.rank - 1]] = True if clear else None
    return verdicts


def _relation(program: Program, items: Sequence[Item]) -> list[Verdict]:
    """Yes within 45 degrees of the direction and clearly apart; no if not that way at all."""
    anchor = _only(program.anchors[0], items)
    if anchor is None:
        return [None] * len(items)

    def verdict(item: Item) -> Verdict:
        if item is anchor or not program.head.fit(item.look):
            return False
        ahead = along(anchor, program.word) - along(item, program.word)
        across = abs(item.y - anchor.y if program.word in ("left", "right") else item.x - anchor.x)
        if ahead <= 0.02:
            return False
        return True if ahead >= 0.12 and across <= ahead else None

    return [verdict(item) for item in items]


def _between(program: Program, items: Sequence[Item]) -> list[Verdict]:
    """Yes near the middle of the line from one anchor to the other, no if far from it."""
    first, second = (_only(anchor, items) for anchor in program.anchors)
    if first is None or second is None or first is second:
        return [None] * len(items)
    dx, dy = second.x - first.x, second.y - first.y
    length = max((dx * dx + dy * dy) ** 0.5, 1e-9)

    def verdict(item: Item) -> Verdict:
        if item is first or item is second or not program.head.fit(item.look):
            return False
        # Both as shares of the way from anchor to anchor.
        forth = ((item.x - first.x) * dx + (item.y - first.y) * dy) / length**2
        aside = abs((item.x - first.x) * dy - (item.y - first.y) * dx) / length**2
        if not -0.15 <= forth <= 1.15 or aside > 0.4:
            return False
        return True if 0.2 <= forth <= 0.8 and aside <= 0.2 else None

    return [verdict(item) for item in items]


def along(item: Item, side: str) -> float:
    """Distance of the centre from the `side` (left, right, top, bottom) in 0..1."""
    return {"left": item.x, "right": 1 - item.x, "top": item.y, "bottom": 1 - item.y}[side]


def _only(words: Words, items: Sequence[Item]) -> Item | None:
    fitting = [item for item in items if words.fit(item.look)]
    return fitting[0] if len(fitting) == 1 else None


_JUDGES: Final[dict[str, Callable[[Program, Sequence[Item]], list[Verdict]]]] = {
    "attributes": _attributes,
    "side": _side,
    "extreme": _extreme,
    "ordinal": _ordinal,
    "relation": _relation,
    "between": _between,
}
FORMS: Final = tuple(_JUDGES)
SIDES: Final = ("left", "right", "top", "bottom")
"""Directions; a relation towards the top is spoken "above", towards the bottom "below"."""
