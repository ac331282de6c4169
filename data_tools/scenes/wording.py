"""From meaning to words: noun phrases and the templates of every form of expression."""

from __future__ import annotations

from typing import Final

import numpy as np

from data_tools.scenes.programs import Program, Words

_SIZE_WORDS: Final = {"small": ("small", "little"), "large": ("large", "big")}
_MARKS: Final = {"striped": "stripes", "dotted": "dots", "checked": "checks"}
_ORDINALS: Final = {2: "second", 3: "third"}
_SIDE_TEMPLATES: Final = {
    "left": ("{n} on the left", "left {n}", "{n} on the left side"),
    "right": ("{n} on the right", "right {n}", "{n} on the right side"),
    "top": ("{n} at the top", "top {n}"),
    "bottom": ("{n} at the bottom", "bottom {n}"),
}
_EXTREME_TEMPLATES: Final = {
    "left": ("leftmost {n}", "{n} farthest to the left"),
    "right": ("rightmost {n}", "{n} farthest to the right"),
    "top": ("highest {n}", "{n} nearest the top"),
    "bottom": ("lowest {n}", "{n} nearest the bottom"),
    "largest": ("largest {n}", "biggest {n}"),
    "smallest": ("smallest {n}",),
}
_ORDINAL_TEMPLATES: Final = ("{rank} {n} from the {side}", "{n} {rank} from the {side}")
RELATIONS: Final = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "top": ("above", "over"),
    "bottom": ("below", "under"),
}
"""Direction -> the ways to say it before the other object."""


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def noun(words: Words, rng: np.random.Generator) -> str:
    """A noun phrase without article: "small red cup with dots"."""
    parts = [] if words.size is None else [pick(rng, _SIZE_WORDS[words.size])]
    tail = ""
    if words.texture in _MARKS and rng.random() < 0.4:
        tail = f" with {_MARKS[words.texture]}"
    elif words.texture is not None:
        parts.append(words.texture)
    if words.colour is not None:
        parts.append(words.colour)
    parts.append(words.kind or pick(rng, ("thing", "object")))
    return " ".join(parts) + tail


def indefinite(phrase: str) -> str:
    """The noun phrase with its indefinite article."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def say(program: Program, rng: np.random.Generator) -> str:
    """One way to say a referring expression in lower-case words."""
    head = noun(program.head, rng)
    if program.form == "side":
        text = pick(rng, _SIDE_TEMPLATES[program.word]).format(n=head)
    elif program.form == "extreme":
        text = pick(rng, _EXTREME_TEMPLATES[program.word]).format(n=head)
    elif program.form == "ordinal":
        rank = _ORDINALS[program.rank]
        text = pick(rng, _ORDINAL_TEMPLATES).format(n=head, rank=rank, side=program.word)
    elif program.form == "relation":
        anchor = noun(program.anchors[0], rng)
        text = f"{head} {pick(rng, RELATIONS[program.word])} the {anchor}"
    elif program.form == "between":
        first, second = (noun(anchor, rng) for anchor in program.anchors)
        text = f"{head} between the {first} and the {second}"
    else:
        text = head
    return f"the {text}" if rng.random() < 0.6 else text
