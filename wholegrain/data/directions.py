"""Words that a mirror turns into lies.

A photo is flipped only if no text about it says left or right, or if those words are exchanged.
Whole words only: "upright" and "bright" say nothing about sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SUFFIXES = ("", "most", "hand", "handed", "side", "ward", "wards")
_OPPOSITE = {
    **{f"left{end}": f"right{end}" for end in _SUFFIXES},
    **{f"right{end}": f"left{end}" for end in _SUFFIXES},
    # Short forms, common where annotators typed against the clock (RefCOCO).
    "lft": "right",
    "rt": "left",
    "lhs": "rhs",
    "rhs": "lhs",
}
_DIRECTION = re.compile(
    r"(?<![^\W_])(?:" + "|".join(sorted(_OPPOSITE, key=len, reverse=True)) + r")(?![^\W_])",
    re.IGNORECASE,
)


def has_direction(texts: Iterable[str]) -> bool:
    """Whether any of the texts holds a whole word for left or right."""
    return _DIRECTION.search("\n".join(texts)) is not None


def swap_directions(text: str) -> str:
    """The text with left and right exchanged, as whole words; capitals are kept."""
    return _DIRECTION.sub(_swapped, text)


def _swapped(match: re.Match[str]) -> str:
    word = match.group()
    other = _OPPOSITE[word.lower()]
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
