"""What the audit finds in one corpus, split by split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_tools.auditing.by_hash import LookAlike, Recogniser
from data_tools.auditing.by_id import IdHashes, find_by_id
from data_tools.auditing.photo_ids import photo_space
from data_tools.auditing.protected import Protected, is_evaluation
from wholegrain.data.corpus import Corpus
from wholegrain.data.leak_audit import LookAlikeRow
from wholegrain.errors import DataError

MAX_LOOK_ALIKES = 1_000_000
"""Rows listed; a corpus that holds more evaluation photos needs no list to be refused."""
_LOOKED_AT = 200


@dataclass
class SplitFindings:
    """One split.

    ``audited`` is false for a split that is held out: its photos are counted, but leak nothing.
    ``photos`` are the protected photos found by id; ``rows`` those found by looks, each with the
    identity of its own photo; ``flat`` and ``unreadable`` count what looks could not tell.
    """

    split: str
    size: int
    audited: bool
    photos: set[str] = field(default_factory=set)
    rows: list[tuple[str, LookAlikeRow]] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)
    flat: int = 0
    unreadable: int = 0

    def leaked(self) -> int:
        """Distinct photos, by id or by looks."""
        return len(self.photos | {photo for photo, _ in self.rows}) if self.audited else 0

    def by_id(self, protected: Protected) -> list[int]:
        """Photos of each column that were found by id."""
        counts = [0] * len(protected.columns)
        for photo in self.photos:
            for column in protected.photos[photo]:
                counts[column] += 1
        return counts

    def by_hash(self, protected: Protected) -> list[int]:
        """Photos that show one of each column, beyond those found in it by id."""
        found: list[set[str]] = [set() for _ in protected.columns]
        for photo, row in self.rows:
            for column in protected.photos[row.shows]:
                if column not in protected.photos.get(photo, ()):
                    found[column].add(photo)
        return [len(photos) for photos in found]


@dataclass
class CorpusFindings:
    """One corpus. ``identified``: whether any of its photos has an identity like the protected."""

    corpus: Corpus
    splits: list[SplitFindings]
    identified: bool

    def leaked(self) -> int:
        """Distinct photos, split by split."""
        return sum(one.leaked() for one in self.splits)


def search_corpus(
    corpus: Corpus,
    protected: Protected,
    hashes: IdHashes,
    *,
    splits: Sequence[str],
    recogniser: Recogniser | None,
    workers: int,
    cache: Path | None,
    progress: Callable[[int], None],
) -> CorpusFindings:
    """Search one corpus.

    Args:
        corpus: the whole folder's.
        protected: what to look for.
        hashes: of its photos.
        splits: to audit; none audits all that are not held out by their name.
        recogniser: finds photos by their looks; None looks at ids alone.
        workers: threads that decode.
        cache: where hashes are kept.
        progress: called with the number of photos compared since the last call.
    """
    found = []
    for split, size in corpus.splits.items():
        audited = _is_audited(split, splits)
        one = SplitFindings(split, size, audited)
        view = corpus.select(split)
        for _, photo in find_by_id(view, hashes, protected.photos):
            one.photos.add(photo)
        if recogniser is not None and audited:
            for piece in recogniser.search(view, workers, cache):
                _take(one, view, piece.found)
                one.flat += piece.flat
                one.unreadable += piece.unreadable
                progress(piece.rows)
        found.append(one)
    return CorpusFindings(corpus, found, _identified(corpus, protected))


def _is_audited(split: str, splits: Sequence[str]) -> bool:
    return split in splits or "all" in splits or (not splits and not is_evaluation(split))


def _take(one: SplitFindings, view: Corpus, found: list[LookAlike]) -> None:
    for alike in found:
        record = view.record(alike.number)
        if record.photo_id == alike.shows:
            continue  # found by its id already
        if len(one.rows) == MAX_LOOK_ALIKES:
            raise DataError(
                f"{view.path}: more than {MAX_LOOK_ALIKES:,} rows of split {one.split!r} show "
                "protected photos; this is the evaluation data itself"
            )
        row = LookAlikeRow(record.source, record.id, record.photo, alike.shows, alike.turn)
        one.rows.append((record.photo_id, row))
        one.differences.append(alike.difference)


def _identified(corpus: Corpus, protected: Protected) -> bool:
    spaces = protected.spaces
    numbers = np.linspace(0, len(corpus) - 1, min(_LOOKED_AT, len(corpus))).astype(int)
    records = (corpus.record(int(number)) for number in numbers)
    return any(photo_space(record.photo_id) in spaces for record in records)
