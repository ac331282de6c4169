"""Protected photos in a corpus, by what they show, whatever they are called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from data_tools.auditing import phash
from data_tools.auditing.hamming import HammingIndex
from data_tools.auditing.hash_cache import FLAT, UNREADABLE, USABLE, hashed_pieces, read_squeezed
from data_tools.auditing.photos import KnownPhotos
from wholegrain.data.corpus import Corpus

_TURNS = tuple(phash.TURNS.items())


@dataclass(frozen=True, slots=True)
class LookAlike:
    """A row that shows a protected photo. ``turn`` says how it lies, ``difference`` is of 255."""

    number: int
    shows: str
    turn: str
    difference: float


@dataclass(frozen=True, slots=True)
class Compared:
    """One piece of a corpus: its rows, what was found, and how many could not be compared."""

    rows: int
    found: list[LookAlike]
    flat: int
    unreadable: int


class Recogniser:
    """Finds known photos in corpora."""

    def __init__(self, known: KnownPhotos) -> None:
        self._known = known
        self._index = HammingIndex(known.hashes.reshape(-1), phash.RADIUS)

    def search(self, view: Corpus, workers: int, cache: Path | None) -> Iterator[Compared]:
        """All look-alikes, piece by piece; a row appears once for each photo that it shows."""
        for first, hashes, states in hashed_pieces(view, workers, cache):
            usable = np.flatnonzero(states == USABLE)
            rows, entries = self._index.search(hashes[usable])
            pairs = zip((first + usable[rows]).tolist(), entries.tolist(), strict=True)
            found = []
            for number, near in groupby(pairs, key=lambda pair: pair[0]):
                found += self._confirm(view, number, [entry for _, entry in near])
            flat, unreadable = (int((states == state).sum()) for state in (FLAT, UNREADABLE))
            yield Compared(len(hashes), found, flat, unreadable)

    def _confirm(self, view: Corpus, number: int, entries: list[int]) -> Iterator[LookAlike]:
        """The candidates whose thumbnails agree, each photo once: as it lies closest."""
        pixels = read_squeezed(view, number)
        if pixels is None:
            return
        seen = phash.thumbnails(pixels)
        best: dict[str, LookAlike] = {}
        for entry in entries:
            photo, turn = divmod(entry, len(_TURNS))
            name, lay = _TURNS[turn]
            apart = phash.difference(seen, lay(self._known.thumbnails[photo]))
            if apart is None:
                continue
            shows = self._known.photos[photo]
            if shows not in best or apart < best[shows].difference:
                best[shows] = LookAlike(number, shows, name, round(apart, 2))
        yield from (best[shows] for shows in sorted(best))
