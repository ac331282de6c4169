"""Lists of objects in JSON files of gigabytes: read in pieces, and found again by their bytes.

Annotations come as one list of objects, or as an object of such lists (COCO's layout). One pass
serves all lists of a file and says which bytes each element takes, so that a reader can hold places
instead of contents. Numpy finds the brackets that stand outside of strings, the standard library
parses some thousand elements at a time; memory is one chunk and the elements in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from wholegrain.errors import DataError

TOP = ""
"""Key of a list that is the whole file."""

ELEMENT_LIMIT = 64 << 20
"""Largest element of a list, in bytes; the largest published one has some hundred kB."""

_CHUNK = 4 << 20
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_LAST_KEY = re.compile(rb'("(?:[^"\\]|\\.)*")\s*:\s*$', re.DOTALL)
_STEPS = np.zeros(256, np.int8)
_STEPS[[ord("{"), ord("[")]] = 1
_STEPS[[ord("}"), ord("]")]] = -1


@dataclass(frozen=True, slots=True)
class Batch:
    """Neighbouring elements of the list under ``key``; ``first`` is the number of the first.

    ``starts`` and ``ends``: int64 (N,), the bytes of the file that each of ``items`` takes.
    """

    key: str
    first: int
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    items: list[dict[str, Any]]


def read_lists(
    path: Path, keys: Collection[str], *, optional: Collection[str] = ()
) -> Iterator[Batch]:
    """All elements of the lists under ``keys``, in the order of the file; other keys are passed by.

    ``TOP`` as the only key means that the file itself is the list. Lists under ``optional`` are
    read where there are such. DataError says what is broken, and which list is missing.
    """
    found: set[str] = set()
    try:
        with path.open("rb") as file:
            yield from _Lists(path, {*keys, *optional}, found).read(file)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path of the annotations") from None
    if missing := [key for key in keys if key not in found]:
        what = "it is not one list" if missing == [TOP] else f"no list {missing[0]!r}"
        raise DataError(f"{path}: {what}; pass the file as it was published")


def read_element(file: BinaryIO, start: int, end: int, path: Path) -> dict[str, Any]:
    """The element in bytes ``start`` .. ``end - 1`` of an open file."""
    file.seek(start)
    try:
        return json.loads(file.read(end - start))
    except (ValueError, RecursionError):
        raise DataError(
            f"{path}: bytes {start} to {end} are no longer the annotation they were; the file "
            "changed while it was read, start again"
        ) from None


class _Lists:
    """State of one pass: where in the nesting the bytes read so far end."""

    def __init__(self, path: Path, keys: Collection[str], found: set[str]) -> None:
        self.path, self.keys, self.found = path, keys, found
        self.depth = 0
        self.in_string = False
        self.level = 0  # nesting at which elements stand; 0 until the first bracket is seen
        self.key: str | None = None  # of the list that is being read, None outside of the wanted
        self.counts: dict[str, int] = {}
        self.element: int | None = None  # where an unfinished element starts
        self.after = 0  # where the last list ended: the next one's key stands behind it
        self.between = 0  # within a list, the end of the last element
        self.buffer, self.base = b"", 0

    def read(self, file: BinaryIO) -> Iterator[Batch]:
        while chunk := _whole_escapes(file):
            at = self.base + len(self.buffer)
            self.buffer += chunk
            yield from self._events(*self._brackets(chunk, at))
            self._forget()
        if self.depth or self.in_string or not self.level:
            size = self.base + len(self.buffer)
            raise self._broken(f"it ends at byte {size} in the middle of a list or text")

    def _brackets(
        self, chunk: bytes, at: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int8], NDArray[np.int64]]:
        """Places in the file, steps (+1, -1) and nesting behind each, of brackets of interest."""
        if b"\\" in chunk:
            chunk = _ESCAPE.sub(b"  ", chunk)  # an escaped quote ends no string
        data = np.frombuffer(chunk, np.uint8)
        # The parity of the quotes so far; it survives the wrap-around at 256.
        inside = np.cumsum(data == ord('"'), dtype=np.uint8) & 1 != self.in_string
        steps = _STEPS[data]
        steps[inside] = 0
        self.in_string = bool(inside[-1])
        places = np.flatnonzero(steps)
        steps = steps[places]
        depths = self.depth + np.cumsum(steps, dtype=np.int64)
        if len(depths):
            self.depth = int(depths[-1])
            if depths.min() < 0:
                raise self._broken("a bracket is closed that was never opened")
            if not self.level:
                self.level = 1 if data[places[0]] == ord("[") else 2
                self.after = at + int(places[0]) + 1
        wanted = depths <= np.where(steps > 0, self.level + 1, self.level)
        return places[wanted] + at, steps[wanted], depths[wanted]

    def _events(
        self, places: NDArray[np.int64], steps: NDArray[np.int8], depths: NDArray[np.int64]
    ) -> Iterator[Batch]:
        """Cut the brackets at the ends of lists, and read the elements in between."""
        edges = np.flatnonzero(depths <= np.where(steps > 0, self.level, self.level - 1))
        begin = 0
        for edge in [*edges.tolist(), len(places)]:
            yield from self._elements(places[begin:edge], steps[begin:edge])
            if edge < len(places):
                self._edge(int(places[edge]), int(steps[edge]), int(depths[edge]))
            begin = edge + 1

    def _edge(self, place: int, step: int, depth: int) -> None:
        if step > 0 and depth == self.level:
            is_list = self.buffer[place - self.base] == ord("[")
            key = self._key_before(place) if is_list else None
            self.key = key if key in self.keys else None
            if self.key is not None:
                self.found.add(self.key)
                self.between = place + 1
        elif step < 0:
            self._check_between(place)
            self.key = None
            self.after = place + 1

    def _key_before(self, place: int) -> str | None:
        if self.level == 1:
            return TOP
        match = _LAST_KEY.search(self.buffer[self.after - self.base : place - self.base])
        return str(json.loads(match[1])) if match else None

    def _elements(self, places: NDArray[np.int64], steps: NDArray[np.int8]) -> Iterator[Batch]:
        if self.key is None:
            return
        starts, ends = places[steps > 0], places[steps < 0] + 1
        if self.element is None and len(starts):
            self._check_between(int(starts[0]))
        if len(ends):
            self.between = int(ends[-1])
        if self.element is not None:
            starts = np.concatenate([np.array([self.element], np.int64), starts])
        self.element = None
        if len(starts) > len(ends):
            self.element, starts = int(starts[-1]), starts[:-1]
        if not len(starts):
            return
        first = self.counts.get(self.key, 0)
        data = self.buffer[int(starts[0]) - self.base : int(ends[-1]) - self.base]
        try:
            items = json.loads(b"[" + data + b"]")
        except (ValueError, RecursionError) as error:
            where = f"{self.key or 'the list'}[{first}] and the {len(starts) - 1} after it"
            raise self._broken(f"bytes {starts[0]} to {ends[-1]} ({where}): {error}") from None
        if len(items) != len(starts) or not all(isinstance(item, dict) for item in items):
            raise self._mixed()
        self.counts[self.key] = first + len(items)
        yield Batch(self.key, first, starts, ends, items)

    def _forget(self) -> None:
        """Drop the bytes that nothing needs any more."""
        end = self.base + len(self.buffer)
        if self.element is None:
            self._check_between(end)
        keep = end
        if self.element is not None:
            keep = self.element
        elif self.depth == self.level - 1 and self.level == 2:
            keep = self.after
        if end - keep > ELEMENT_LIMIT:
            raise self._broken(f"an element at byte {keep} has more than {ELEMENT_LIMIT} bytes")
        self.buffer, self.base = self.buffer[keep - self.base :], keep

    def _check_between(self, end: int) -> None:
        """Whether nothing but commas stands between the elements of a list."""
        if self.key is None:
            return
        if self.buffer[self.between - self.base : end - self.base].strip(b" \t\r\n,"):
            raise self._mixed()
        self.between = end

    def _mixed(self) -> DataError:
        what = f"list {self.key!r}" if self.key else "the list"
        return DataError(
            f"{self.path}: {what} holds something other than objects; pass the file as it was "
            "published"
        )

    def _broken(self, what: str) -> DataError:
        return DataError(f"{self.path}: not valid JSON: {what}; download the file again")


def _whole_escapes(file: BinaryIO) -> bytes:
    """The next chunk, never ending between a backslash and what it escapes."""
    chunk = file.read(_CHUNK)
    while (len(chunk) - len(chunk.rstrip(b"\\"))) % 2 and (more := file.read(1)):
        chunk += more
    return chunk
