"""Where a word that names a side may mean something else: the expression `AMBIGUOUS`.

Its rules are for lower-case texts, one a line. Each is bounded: what may stand between two words is
a run of blanks and dashes that only one match can claim, so that no text takes quadratic time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def words(text: str) -> list[str]:
    """The words of a list that is written as a sentence."""
    return text.split()


def any_of(patterns: Iterable[str]) -> str:
    """An expression for any of these, the longest first."""
    return "(?:" + "|".join(sorted(patterns, key=len, reverse=True)) + ")"


def _unless_after(befores: Iterable[str], word: str) -> str:
    """The word, unless one of these stands before it.

    They are looked for when the word is found: first, they would be at every place of a text.
    """
    return word + "".join(rf"(?<!\b{before} {word})" for before in befores)


# An underscore parts words as a hyphen does. A mark on a letter parts none: the dot of a Turkish
# capital I is a character of its own once the letter is small.
START, END = r"(?<![^\W_])(?<![\u0300-\u036f])", r"(?![^\W_]|[\u0300-\u036f])"
GAP = r"[ \t-]+"  # never a line break: that parts texts
HOURS = words("one two three four five six seven eight nine ten eleven twelve")
NUMBER = {**{str(n): n for n in range(1, 13)}, **{word: n for n, word in enumerate(HOURS, 1)}}
HOUR = any_of(NUMBER)
CLOCK = r"o[ \t]?['’`]?[ \t]?clock"
PLACED = words("on to from at in far top bottom upper lower back front middle mid center very")
MISSPELT = words("rght rgt rigth rigt leftt lef lh rh")  # sides, but none has its own opposite

_DAY = r"(?:a\.?m|p\.?m|in the|this|every|on|today|tonight|sharp|shadow|news|tea|at night)"
_WORD = rf"(?:{GAP}[^\W\d_]+)"
_STOP = r"(?=[ \t]*(?:[.,;:!?)\"]|\n|\Z))"

# "right" as "exactly", "correct" or "claim", "left" as a form of "leave": a text may mean that
# unless a word before it settles the matter, as in "on the right behind the car".
_OWNER = words("the his her their its my your our")
_RIGHT, _LEFT = (_unless_after([*PLACED, *_OWNER], side) for side in ("right", "left"))
_TURNED = words("look looks looked looking face faces faced facing turn turns turned turning")
_TURNED += words("point points pointing lean leans leaning go goes going move moves moving")
_LEFT_BY = _unless_after([*PLACED, *_OWNER, *_TURNED], "left")
_BEFORE = words("all is are was were be been being has have had just that's thats it's you're")
_BEFORE += words("what's whats there's already never recently")

_EXACTLY = words(
    "above across after against along alongside around as atop away before behind below beneath "
    "beside between beyond down here inside into near next now off onto outside over past there "
    "through toward towards under underneath up upon when where within"
) + [rf"{word}{GAP}(?:the|a|an|top|front|between|his|her)" for word in ("in", "on", "at", "by")]
_CORRECT = words(
    "angles? answers? ways? sizes? times? timing choice amount things? shoes clothes equipment "
    "gear tools moment spot idea kind type sort words? notes? stuff attitude decision reasons? "
    "temperature conditions direction"
)
_CORRECT += ["of way", "side (?:up|out)", r"place(?![ \t-]*(?:mats?|settings?))"]
_CLAIM = _unless_after(
    [*PLACED, *(f"{word} {owner}" for word in ("on", "to", "from", "at") for owner in _OWNER)],
    "right",
)

_LYING = words(
    "alone behind over out open unattended untouched there here hanging lying standing sitting "
    "after empty unfinished uneaten up outside inside"
) + [rf"{word}{GAP}(?:the|a|an|top|his|her|it)" for word in ("in", "on", "at", "by", "for")]
_DEPARTED = _OWNER + words(  # from where or whom, or when
    "a an him them it us me this these those some everyone everything nothing home school work "
    "town yesterday today tonight early earlier late later already recently soon now"
)
_LEAVER = words("he she they it we i you who everyone everybody someone somebody nobody")
_CLAUSE = words("as after before when since until once because while if")
_QUANTITY = words(
    "some any no few little much more many several enough only last lots? bits? pieces? slices? "
    "bites? crumbs? scraps?"
)
_QUANTITY += [*HOURS[1:], rf"\d+(?={GAP}(?!left))", rf"half{GAP}(?:an?|of|the)"]
# "one" is a thing more often ("the one left", "black one left") than a number.
_QUANTITY += [r"(?:(?<![^\n])|(?<=\bis )|(?<=\bhas )|(?<=\bonly )|(?<=\bjust )|(?<=\bwith ))one"]
_PLACED_BY = rf"(?!{GAP}(?:in|on|at|by|with|near|next|under|behind|from|to){END})"
_POLITICS = r"politic|part(?:y|ies)\b|extrem|activist|protest|demonstrat|radical|group|press|media"

AMBIGUOUS = re.compile(
    rf"{START}(?:"
    rf"{_RIGHT}{GAP}{any_of(_EXACTLY)}{END}"
    rf"|right{GAP}{any_of(_CORRECT)}{END}"
    rf"|{_CLAIM}{GAP}to{END}(?!{GAP}(?:the{GAP})?left)"
    rf"|{_LEFT}{GAP}{any_of(_LYING)}{END}"
    rf"|{_LEFT_BY}{GAP}{any_of(_DEPARTED)}{END}"
    rf"|{_LEFT}{GAP}to{END}(?!{GAP}(?:the{GAP})?right)"
    rf"|{any_of(_BEFORE)}{GAP}(?:left|right){END}"
    rf"|{any_of(_LEAVER)}{GAP}left{END}"
    rf"|{any_of(_CLAUSE)}{_WORD}{{1,4}}?{GAP}{_LEFT_BY}{_STOP}"
    rf"|{any_of(_QUANTITY)}{_PLACED_BY}{_WORD}{{0,4}}?{GAP}{_LEFT_BY}{_STOP}"
    rf"|(?:left|right)(?:-wing|[ \t]+winger|[ \t]+wing[ \t]+(?:{_POLITICS}))"
    rf"|rt\.?[ \t-]*\d"
    rf"|(?:counter{GAP}|anti[ \t-]*)clockwise{END}"
    rf"|{HOUR}(?:[ \t]*[-–,/][ \t]*|[ \t]+(?:or|and|to)[ \t]+){HOUR}[ \t-]*{CLOCK}"
    rf"|{any_of(MISSPELT)}{END}"
    rf")|{CLOCK}[ \t,]*{_DAY}{END}",
    re.IGNORECASE,
)
