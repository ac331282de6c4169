"""What a reader yields: drafts of records, and the samples it had to leave out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from wholegrain.data.record import Absent, Region


@dataclass(frozen=True, slots=True)
class Draft:
    """A record that has not met its photo yet.

    ``image`` is a path or the encoded bytes. ``size`` is the (width, height) in px to which the
    boxes of ``regions`` refer; ``None`` where the annotations do not say (then there are no boxes).
    ``where`` names the annotation in messages. ``photo`` names the photo across data sets, see
    :class:`wholegrain.data.record.Record`.
    """

    id: str
    source: str
    split: str
    image: Path | bytes
    where: str
    size: tuple[int, int] | None = None
    captions: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    license: str | None = None
    photo: str | None = None
    absent: tuple[Absent, ...] = ()


@dataclass(frozen=True, slots=True)
class Bad:
    """A sample that cannot be converted. ``cause`` is a short fixed phrase, so that it counts."""

    id: str
    cause: str
    detail: str


Drafts: TypeAlias = Iterator[Draft | Bad]


@dataclass
class Source:
    """An opened data set that can be read in pieces, in any order, by any number of processes.

    It consists of ``units`` numbered from 0: single samples (``single``; each unit then yields
    exactly one draft or one bad sample), or files of many, such as tars. ``read(start, stop,
    left_out)`` yields what units ``start`` .. ``stop - 1`` hold, in order. It is a pure function of
    its arguments: two calls yield equal drafts, whoever makes them. What a reader drops by rule (a
    phrase without boxes, say), which is no fault of the data, it counts in ``left_out``.

    ``description`` holds all that decides the result (options, checksums of annotations, names and
    sizes of photos): two sources with equal descriptions give equal shards. ``total`` is the number
    of samples where it is known. ``left_out`` counts what was dropped when the source was opened.
    ``published`` names the set of published counts that the result is compared with, see
    :mod:`data_tools.published`.
    """

    name: str
    description: dict[str, Any]
    units: int
    read: Callable[[int, int, Counter[str]], Drafts]
    single: bool = True
    total: int | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    published: str | None = None

    def key(self, **more: Any) -> str:
        """SHA-256 of the description and what else decides the result, in hex.

        Equal keys mean equal shards, so that there is nothing to do.
        """
        text = json.dumps([self.description, more], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's contents, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def listing_digest(entries: Iterable[tuple[str, int]]) -> str:
    """SHA-256 of (name, bytes) pairs in any order.

    Photos count by name and size, not by contents: hashing a million photos would take as long as
    converting them, and the shards carry checksums of their own.
    """
    digest = hashlib.sha256()
    for name, size in sorted(entries):
        # As the disk has it: a name need not be UTF-8.
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
