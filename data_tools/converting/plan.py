"""What a conversion consists of: its parts, its key, and which parts are a task's."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.sources.base import Source
from wholegrain.errors import DataError

if TYPE_CHECKING:
    from data_tools.exclusion import Exclusion

# Counts as different input when the meaning of what converters write changes.
_CONVERTER_VERSION = 2


@dataclass(frozen=True, slots=True)
class Task:
    """Task ``number`` (from 1) of ``count`` that share a conversion."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def task(text: str) -> Task:
    """``3/8``: the third of eight."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found and 1 <= int(found[1]) <= int(found[2]):
        return Task(int(found[1]), int(found[2]))
    raise argparse.ArgumentTypeError(
        f"{text!r} is not I/N with I from 1 to N, such as 3/8; a Slurm array must have all its "
        "numbers, such as 0-63"
    )


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What ``convert`` takes beside the source's own options.

    ``max_bad`` is the share of bad samples above which the conversion fails. ``exclude`` is a list
    of photos to leave out, ``task`` the share of the parts that this run writes (None: all).
    """

    out: Path
    overwrite: bool = False
    restart: bool = False
    shard_size: int = 1000
    max_side: int | None = None
    processes: int = 1
    limit: int | None = None
    max_bad: float = 0.01
    name: str | None = None
    exclude: Path | None = None
    strict_counts: bool = False
    task: Task | None = None


class Plan:
    """A source and how it is cut: a function of source and options, the same for every task.

    Attributes:
        name: of the corpus.
        deciding: the options that change what is written.
        key: digest of the source's description and of ``deciding``.
        parts: number of parts. A part is ``shard_size`` units of a source of single samples, one
            unit (a tar) of another.
        total: samples, good and bad; None if unknown.
    """

    def __init__(
        self, source: Source, options: ConvertOptions, exclusion: Exclusion | None = None
    ) -> None:
        self.source, self.options, self.exclusion = source, options, exclusion
        self.name = options.name or source.name
        self.deciding: dict[str, Any] = {
            "shard_size": options.shard_size,
            "max_side": options.max_side,
            "limit": options.limit,
            "name": options.name,
        }
        if exclusion is not None:
            self.deciding["exclude"] = exclusion.digest
        self.key = source.key(version=_CONVERTER_VERSION, options=self.deciding)
        self._units, self.total = source.units, source.total
        if source.single:
            self._units = self.total = min(source.units, options.limit or source.units)
        elif options.limit and (source.total is None or source.total > options.limit):
            raise DataError(f"--limit: {source.name} cannot be cut; leave --limit out")
        self._step = options.shard_size if source.single else 1
        self.parts = -(-self._units // self._step)

    def units(self, part: int) -> tuple[int, int]:
        """First unit of a part, and the one after its last."""
        return part * self._step, min((part + 1) * self._step, self._units)

    def own_parts(self) -> range:
        """The parts that are this run's to write."""
        mine = self.options.task or Task(1, 1)
        return range(mine.number - 1, self.parts, mine.count)

    def samples(self, parts: range) -> int | None:
        """Samples in parts; None if unknown."""
        if self.source.single:
            return sum(stop - start for start, stop in map(self.units, parts))
        return self.total if len(parts) == self.parts else None
