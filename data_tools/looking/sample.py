"""Records drawn at random and read one by one; those that cannot be read are counted."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track

from data_tools.looking.filters import RecordFilter
from wholegrain.data.storage import StorageGone
from wholegrain.errors import DataError, RecordError

if TYPE_CHECKING:
    from wholegrain.data.corpus import Corpus
    from wholegrain.data.record import Record

_SHOWN_FAULTS = 5
_SHOWN_SOURCES = 8
_HOPELESS = 100
"""So many bad records, and not one good, mean that the corpus is at fault."""


@dataclass
class Reading:
    """What came of reading.

    Attributes:
        total: samples in the corpus, or in the split looked at.
        read: records asked for so far, bad ones included.
        matched: those that the filter lets through.
        bad: records and photos that could not be read, by cause.
        faults: the first messages about them.
        sources: records read by source.
    """

    total: int
    read: int = 0
    matched: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)

    @property
    def complete(self) -> bool:
        """Every sample was read, and none was bad: figures are exact."""
        return self.read == self.total and not self.bad

    def add_fault(self, error: DataError) -> None:
        """Counts a record or photo that cannot be read."""
        self.bad[_cause(error)] += 1
        if len(self.faults) < _SHOWN_FAULTS:
            self.faults.append(str(error))

    def told(self) -> str:
        """One line: what was bad, by cause; empty if nothing was."""
        return ", ".join(f"{cause} ({count:,})" for cause, count in self.bad.most_common())


def draw(size: int, most: int, seed: int) -> list[int]:
    """``most`` of ``size`` positions (all if there are fewer) in random order.

    Each subset is equally likely, and what comes first is itself a sample. Takes memory of
    ``most``, however large ``size`` is.
    """
    return random.Random(seed).sample(range(size), min(most, size))


def read_matching(
    corpus: Corpus, positions: Iterable[int], wanted: RecordFilter, reading: Reading
) -> Iterator[tuple[int, Record]]:
    """Yields (position, record) of the records that match; counts in ``reading`` what it does.

    Raises:
        DataError: of the first hundred records none can be read, or none at all.
        StorageGone: the corpus is remote, and its storage does not answer.
    """
    for position in positions:
        reading.read += 1
        try:
            record = corpus.record(position)
        except StorageGone:
            raise
        except DataError as error:
            reading.add_fault(error)
            if reading.read >= _HOPELESS and reading.bad.total() == reading.read:
                raise _hopeless(reading) from error
            continue
        _count_source(reading.sources, record.source)
        if wanted.matches(record):
            reading.matched += 1
            yield position, record
    if reading.read and reading.bad.total() == reading.read:
        raise _hopeless(reading)


@contextmanager
def progress(positions: Sequence[int]) -> Iterator[Iterable[int]]:
    """The positions, with a bar on a terminal's standard error while they are gone through."""
    console = Console(stderr=True)
    off = not console.is_terminal
    bar = track(positions, "records", console=console, transient=True, disable=off)
    with closing(bar):  # type: ignore[type-var]
        yield bar


def nothing_found(corpus: Corpus, wanted: RecordFilter, reading: Reading, remedy: str) -> DataError:
    """The error of a filter that let nothing through."""
    sources = ", ".join(f"{n} ({count:,})" for n, count in reading.sources.most_common())
    return DataError(
        f"{corpus.path}: none of the {reading.read:,} records read (of {reading.total:,}) matches "
        f"{wanted}; their sources are {sources}; {remedy}"
    )


def _count_source(sources: Counter[str], source: str) -> None:
    # As many names as a person reads; a corpus that gives each record its own must not fill memory.
    sources[source if source in sources or len(sources) < _SHOWN_SOURCES else "others"] += 1


def _cause(error: DataError) -> str:
    if isinstance(error, RecordError):
        return "record: " + re.sub(r"\d+", "", error.field)
    return str(getattr(error, "cause", "unreadable"))


def _hopeless(reading: Reading) -> DataError:
    return DataError(
        f"none of the {reading.read:,} records read is sound: {reading.told()}; "
        f"the first: {reading.faults[0]}"
    )
