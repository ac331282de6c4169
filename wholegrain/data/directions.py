"""Words that a mirror turns into lies.

A photo is mirrored only if no text about it names a side, or if those words are exchanged. Three
kinds of text are told apart, always by whole words ("upright" and "bright" name no side):

* Words that have an opposite, which `swap_directions` exchanges: left and right, their compounds
  (leftmost, left-handed, righthand, topleft), ``lft`` and ``rt``, ``lhs`` and ``rhs``; ``L`` and
  ``R`` in brackets, after a word of place ("on the r", "top L", "2nd from l") or before one ("l
  side"); positions on a clock face (3 o'clock becomes 9 o'clock; 12 and 6 stay); clockwise and
  counterclockwise.
* Words that may mean a side and may mean something else: "right behind", "all right", "the right
  to vote", "left on a plate", "he left the house", "one slice of pizza left", "left-wing", "rt 66",
  "3 o'clock in the afternoon", a letter L on its own, and words with a letter that only looks like
  one of theirs (a dotless i). `is_ambiguous` finds them. Nobody can exchange them safely, so such a
  photo is better not mirrored.
* Everything else.

A side behind a noun ("guy left") has an opposite: the annotators of RefCOCO write so. Only after a
quantity or in a clause it may be what remains or who departs.

Writing inside photos, sides of ships and compass directions are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from wholegrain.data.direction_doubts import (
    AMBIGUOUS,
    CLOCK,
    END,
    GAP,
    HOUR,
    HOURS,
    MISSPELT,
    NUMBER,
    START,
    any_of,
    words,
)

_SUFFIXES = ("", "most", "hand", "handed", "hander", "side", "sided", "ward", "wards")
_PREFIXES = ("top", "bottom", "upper", "lower", "far", "mid", "middle", "center", "back", "front")
_OPPOSITE = {
    "lft": "rt",  # short forms of annotators who typed against the clock (RefCOCO)
    "lhs": "rhs",
    "l": "r",
    "clockwise": "counterclockwise",
    **{f"left{end}": f"right{end}" for end in _SUFFIXES},
    **{f"{start}left": f"{start}right" for start in _PREFIXES},
}
_OPPOSITE.update({right: left for left, right in _OPPOSITE.items()})

_BY_LETTER = ["on the", "to the", "from the", *words("far on from top bottom upper lower")]
_PLACE = words("side sides hand corner edge end most part half")
_LETTER = (
    r"\([lr]\)"
    + "".join(rf"|(?<=\b{word}[ -])[lr]{END}" for word in _BY_LETTER)
    + rf"|{START}[lr](?=[ -]{any_of(_PLACE)}{END})"
)
_WORD = any_of(word for word in _OPPOSITE if word != "l" and word != "r")
_FACE = rf"[ \t-]*{CLOCK}|:00{GAP}(?:position|direction){END}"
# (?a:...): where all of Unicode is asked, a dotless i is an i in other capitals, and "rıght", for
# which there is no opposite in the table, would be found too.
_EXCHANGED = re.compile(
    # "counter-clockwise" must not be taken for "clockwise" after a hyphen; see AMBIGUOUS.
    rf"(?<!counter[ -])(?<!anti[ -]){START}(?a:{_WORD}){END}|{_LETTER}"
    rf"|(?<![^\W_])(?<!\d[:.])(?a:{HOUR})(?={_FACE})",
    re.IGNORECASE,
)
_LOOKALIKES = str.maketrans({"ı": "i", "İ": "i", "ſ": "s", "\N{KELVIN SIGN}": "k"})
_SIDE = re.compile("left|right", re.IGNORECASE)
_LONE_LETTER = re.compile(rf"{START}[lr]{END}(?!['’])")

# Looking for whole words in a set costs a tenth of what the expressions do, and decides for most
# photos. All but ASCII letters and digits part words there.
_CERTAIN = frozenset(word.encode() for word in _OPPOSITE if len(word) > 1)
_HINTS = _CERTAIN | {word.encode() for word in ("l", "r", *MISSPELT)}
_BREAKS = bytes(n if chr(n).isalnum() and n < 128 else 32 for n in range(256))


def has_direction(texts: Iterable[str]) -> bool:
    """Whether any of the texts names a side, or may do so."""
    joined = "\n".join(texts)
    if _is_disguised(joined):
        return True
    joined = joined.lower()
    found = _plain_words(joined)
    if joined.isascii() and not _CERTAIN.isdisjoint(found):
        return True
    if not _may_hold_direction(joined, found):
        return False
    return any(_tells_sides(match) for match in _EXCHANGED.finditer(joined)) or _unsure(joined)


def is_ambiguous(texts: Iterable[str]) -> bool:
    """Whether a text may name a side in a way that `swap_directions` cannot put right."""
    joined = "\n".join(texts)
    if _is_disguised(joined):
        return True
    joined = joined.lower()
    return _may_hold_direction(joined, _plain_words(joined)) and _unsure(joined)


def swap_directions(text: str) -> str:
    """The text with the sides exchanged; capitals are kept, and all other words.

    Applied twice it gives the text back. Ask `is_ambiguous` first: "right behind" would become
    "left behind".
    """
    return _EXCHANGED.sub(_swapped, text)


def _plain_words(joined: str) -> list[bytes]:
    return joined.encode("utf-8", "replace").translate(_BREAKS).split()


def _may_hold_direction(joined: str, found: list[bytes]) -> bool:
    return not _HINTS.isdisjoint(found) or "clock" in joined or ":00" in joined


def _is_disguised(joined: str) -> bool:
    """Whether a word would be exchanged if its letters were what they look like."""
    if joined.isascii():
        return False
    plain = joined.translate(_LOOKALIKES)
    if plain == joined:
        return False
    return swap_directions(plain) != swap_directions(joined).translate(_LOOKALIKES)


def _unsure(joined: str) -> bool:
    if AMBIGUOUS.search(joined):
        return True
    # A letter that was not exchanged: the shape L, a size, or a side after all.
    return _LONE_LETTER.search(_EXCHANGED.sub(" ", joined)) is not None


def _tells_sides(match: re.Match[str]) -> bool:
    return NUMBER.get(match.group()) not in (6, 12)


def _swapped(match: re.Match[str]) -> str:
    word = match.group()
    if word[0] == "(":
        return f"({_like(word[1], _OPPOSITE[word[1].lower()])})"
    low = word.lower()
    number = NUMBER.get(low)
    if number is None:
        side = _SIDE.search(word)  # of a compound only this part changes, and keeps its capitals
        if side is None:
            return _like(word, _OPPOSITE[low])
        return (
            word[: side.start()] + _like(side[0], _OPPOSITE[side[0].lower()]) + word[side.end() :]
        )
    mirrored = (12 - number) % 12 or 12
    return str(mirrored) if low.isdigit() else _like(word, HOURS[mirrored - 1])


def _like(word: str, other: str) -> str:
    """`other` in the capitals of `word`."""
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
