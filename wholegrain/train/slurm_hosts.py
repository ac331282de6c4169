"""Slurm's short forms: ``n[1-3,07]`` for node names, ``4(x2),3`` for counts of each node."""

from __future__ import annotations

import re
from itertools import product

from wholegrain.errors import ConfigError

_MOST = 1 << 20  # hosts; a longer list is a slip, and would fill the memory
_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?", re.ASCII)
_RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)


def expand_hosts(text: str) -> list[str]:
    """Names of a node list, in its order.

    Args:
        text: for instance ``gpu[01-03,7],login1``; several brackets in a name are combined, the
            last one counting fastest.

    Raises:
        ConfigError: it is not such a list.
    """
    return [name for word in _split(text) for name in _expand_word(word, text)]


def expand_counts(text: str) -> list[int]:
    """Counts of each node, for instance ``4(x2),3`` as 4, 4, 3.

    Raises:
        ConfigError: it is not such a list.
    """
    counts: list[int] = []
    for word in text.split(","):
        found = _COUNT.fullmatch(word)
        if found is None or int(found[2] or 1) > _MOST:
            raise ConfigError(f"Slurm's list of counts is {text!r}; expected the form 4(x2),3")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def _split(text: str) -> list[str]:
    """At the commas that stand outside of brackets."""
    words, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if depth not in {0, 1}:
            raise _wrong(text)
        if letter == "," and depth == 0:
            words.append(text[start:place])
            start = place + 1
    words.append(text[start:])
    if depth or not all(words):
        raise _wrong(text)
    return words


def _expand_word(word: str, text: str) -> list[str]:
    parts: list[list[str]] = []
    for number, piece in enumerate(re.split(r"[\[\]]", word)):
        # What stands between an opening and a closing bracket has an odd number.
        parts.append(_expand_ranges(piece, text) if number % 2 else [piece])
    total = 1
    for part in parts:
        total *= len(part)
    if total > _MOST:
        raise _wrong(text)
    return ["".join(chosen) for chosen in product(*parts)]


def _expand_ranges(piece: str, text: str) -> list[str]:
    numbers: list[str] = []
    for part in piece.split(","):
        found = _RANGE.fullmatch(part)
        if found is None:
            raise _wrong(text)
        first, last = found[1], found[2] or found[1]
        if not 0 <= int(last) - int(first) < _MOST:
            raise _wrong(text)
        width = len(first)  # of a number with zeros before it
        numbers += [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    return numbers


def _wrong(text: str) -> ConfigError:
    return ConfigError(f"Slurm's node list is {text!r}; expected the form n[1-3,7],login1")
