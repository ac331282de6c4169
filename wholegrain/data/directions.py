"""Words that a mirror turns into lies.

A photo is mirrored only if no text about it names a side, or if those words are exchanged. Three
kinds of text are told apart, always by whole words ("upright" and "bright" name no side):

* Words that have an opposite, which `swap_directions` exchanges: left and right, their compounds
  (leftmost, left-handed, righthand, topleft), ``lft`` and ``rt``, ``lhs`` and ``rhs``; ``L`` and
  ``R`` in brackets, after a word of place ("on the r", "top L", "2nd from l") or before one ("l
  side"); positions on a clock face (3 o'clock becomes 9 o'clock; 12 and 6 stay); clockwise and
  counterclockwise.
* Words that may mean a side and may mean something else: "right behind", "all right", "left on a
  plate", "3 o'clock in the afternoon", a letter L on its own. `is_ambiguous` finds them. Nobody can
  exchange them safely, so such a photo is better not mirrored.
* Everything else.

Writing inside photos, sides of ships and compass directions are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def _words(text: str) -> list[str]:
    return text.split()


def _any(words: Iterable[str]) -> str:
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)) + ")"


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
_HOURS = _words("one two three four five six seven eight nine ten eleven twelve")
_NUMBER = {**{str(n): n for n in range(1, 13)}, **{word: n for n, word in enumerate(_HOURS, 1)}}

_START, _END = r"(?<![^\W_])", r"(?![^\W_])"  # an underscore parts words as a hyphen does
_GAP = r"[ \t-]+"  # never a line break: that parts texts
_HOUR = "|".join(sorted(_NUMBER, key=len, reverse=True))
_OCLOCK = r"[ \t-]*o[ \t]?['’`]?[ \t]?clock"
_PLACED = _words("on to from at in far top bottom upper lower back front middle mid center very")
_BY_LETTER = ["on the", "to the", "from the", *_words("far on from top bottom upper lower")]
_PLACE = _words("side sides hand corner edge end most part half")


_LETTER = (
    r"\([lr]\)"
    + "".join(rf"|(?<=\b{word}[ -])[lr]{_END}" for word in _BY_LETTER)
    + rf"|{_START}[lr](?=[ -]{_any(_PLACE)}{_END})"
)
_WORD = _any(word for word in _OPPOSITE if word != "l" and word != "r")
_CLOCK_FACE = (
    rf"(?<![^\W_])(?<!\d[:.])(?:{_HOUR})(?={_OCLOCK}|:00{_GAP}(?:position|direction){_END})"
)
_EXCHANGED = re.compile(
    # "counter-clockwise" must not be taken for "clockwise" after a hyphen; see _AMBIGUOUS.
    rf"(?<!counter[ -])(?<!anti[ -]){_START}{_WORD}{_END}|{_LETTER}|{_CLOCK_FACE}",
    re.IGNORECASE,
)

# "right" as "exactly" or "correct", "left" as a form of "leave": a text may mean that unless a word
# before it settles the matter, as in "on the right behind the car".
_SETTLED = "".join(rf"(?<!\b{before} )" for before in [*_PLACED, "the", "his", "her"])
_ADVERB = _any(
    _words(
        "above across after against along alongside around away before behind below beneath "
        "beside between beyond down here inside into near next now off outside over past there "
        "through under underneath up where"
    )
    + [rf"{word}{_GAP}(?:the|a|an|top|front|between|his|her)" for word in ("in", "on", "at", "by")]
)
_NO_SIDE = [*_words("angle angles answer way size time choice amount"), "of way", "side (?:up|out)"]
_PARTICIPLE = _any(
    _words(
        "alone behind over out open unattended untouched there here hanging lying standing "
        "sitting after empty unfinished uneaten"
    )
    + [rf"{word}{_GAP}(?:the|a|an|top|his|her|it)" for word in ("in", "on", "at", "by", "for")]
)
_BEFORE = _words("all is are was were be been being has have had just that's thats it's you're")
_DAY = r"(?:a\.?m|p\.?m|in the|this|every|on|today|tonight|sharp|shadow|news|tea|at night)"
_MISSPELT = _words("rght rgt rigth rigt leftt lef lh rh")  # sides, but none has its own opposite
_AMBIGUOUS = re.compile(
    rf"{_START}{_SETTLED}(?:right{_GAP}{_ADVERB}|left{_GAP}{_PARTICIPLE}){_END}"
    rf"|{_START}right{_GAP}{_any(_NO_SIDE)}{_END}"
    rf"|{_START}{_any(_BEFORE)}{_GAP}(?:left|right){_END}"
    rf"|{_START}(?:counter{_GAP}|anti[ \t-]*)clockwise{_END}"
    rf"|{_START}(?:{_HOUR})(?:[ \t]*[-–,/][ \t]*|[ \t]+(?:or|and|to)[ \t]+)(?:{_HOUR}){_OCLOCK}"
    rf"|{_OCLOCK}[ \t,]*{_DAY}{_END}"
    rf"|{_START}{_any(_MISSPELT)}{_END}",
    re.IGNORECASE,
)
_SIDE = re.compile("left|right", re.IGNORECASE)
_LONE_LETTER = re.compile(rf"{_START}[lr]{_END}(?!['’])")

# Looking for whole words in a set costs a tenth of what the expressions do, and decides for most
# photos. All but ASCII letters and digits part words there.
_CERTAIN = frozenset(word.encode() for word in _OPPOSITE if len(word) > 1)
_HINTS = _CERTAIN | {word.encode() for word in ("l", "r", *_MISSPELT)}
_BREAKS = bytes(n if chr(n).isalnum() and n < 128 else 32 for n in range(256))


def has_direction(texts: Iterable[str]) -> bool:
    """Whether any of the texts names a side, or may do so."""
    joined = "\n".join(texts).lower()
    words = _plain_words(joined)
    if joined.isascii() and not _CERTAIN.isdisjoint(words):
        return True
    if not _may_hold_direction(joined, words):
        return False
    return any(_tells_sides(match) for match in _EXCHANGED.finditer(joined)) or _unsure(joined)


def is_ambiguous(texts: Iterable[str]) -> bool:
    """Whether a text may name a side in a way that `swap_directions` cannot put right."""
    joined = "\n".join(texts).lower()
    return _may_hold_direction(joined, _plain_words(joined)) and _unsure(joined)


def swap_directions(text: str) -> str:
    """The text with the sides exchanged; capitals are kept, and all other words.

    Applied twice it gives the text back. Ask `is_ambiguous` first: "right behind" would become
    "left behind".
    """
    return _EXCHANGED.sub(_swapped, text)


def _plain_words(joined: str) -> list[bytes]:
    return joined.encode("utf-8", "replace").translate(_BREAKS).split()


def _may_hold_direction(joined: str, words: list[bytes]) -> bool:
    return not _HINTS.isdisjoint(words) or "clock" in joined or ":00" in joined


def _unsure(joined: str) -> bool:
    if _AMBIGUOUS.search(joined):
        return True
    # A letter that was not exchanged: the shape L, a size, or a side after all.
    return _LONE_LETTER.search(_EXCHANGED.sub(" ", joined)) is not None


def _tells_sides(match: re.Match[str]) -> bool:
    return _NUMBER.get(match.group()) not in (6, 12)


def _swapped(match: re.Match[str]) -> str:
    word = match.group()
    if word[0] == "(":
        return f"({_like(word[1], _OPPOSITE[word[1].lower()])})"
    low = word.lower()
    number = _NUMBER.get(low)
    if number is None:
        side = _SIDE.search(word)  # of a compound only this part changes, and keeps its capitals
        if side is None:
            return _like(word, _OPPOSITE[low])
        return (
            word[: side.start()] + _like(side[0], _OPPOSITE[side[0].lower()]) + word[side.end() :]
        )
    mirrored = (12 - number) % 12 or 12
    return str(mirrored) if low.isdigit() else _like(word, _HOURS[mirrored - 1])


def _like(word: str, other: str) -> str:
    """`other` in the capitals of `word`."""
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
