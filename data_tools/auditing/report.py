"""The audit's results: as a table for the terminal, and as the file that training reads."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_tools.auditing import phash
from data_tools.auditing.findings import CorpusFindings, SplitFindings
from data_tools.auditing.photos import KnownPhotos
from data_tools.auditing.protected import Protected
from wholegrain.data.leak_audit import AUDIT_SCHEMA
from wholegrain.errors import DataError

_COLUMN_WIDTH = 10
_NAMES_WIDTH = 34


@dataclass(frozen=True)
class Results:
    """``known`` is None where looks were not compared."""

    protected: Protected
    known: KnownPhotos | None
    corpora: Sequence[CorpusFindings]

    def leaked(self) -> int:
        """Photos, corpus by corpus and split by split."""
        return sum(found.leaked() for found in self.corpora)


def to_json(results: Results) -> dict[str, Any]:
    """All of it; the same inputs give the same bytes."""
    protected = results.protected
    sets = [
        {
            "name": one.name,
            "forms": sorted(one.forms),
            "splits": {
                split: len(one.splits[split])
                for name, split in protected.columns
                if name == one.name
            },
            "digest": one.digest(),
            "notes": one.notes,
        }
        for one in protected.sets
    ]
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for photo, columns in sorted(protected.photos.items()):
        groups[columns].append(photo)
    digest = hashlib.sha256(json.dumps([one["digest"] for one in sets]).encode()).hexdigest()
    return {
        "audit": AUDIT_SCHEMA,
        "leaked": results.leaked(),
        "protected": sets,
        "digest": digest,
        "perceptual": None if results.known is None else _perceptual(protected, results.known),
        "columns": [list(column) for column in protected.columns],
        "corpora": [_corpus(found, results) for found in results.corpora],
        "photos": [
            {"columns": list(columns), "ids": ids} for columns, ids in sorted(groups.items())
        ],
    }


def make_place(path: Path) -> None:
    """Find out before the work that its result can be written. DataError if not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise DataError(f"{path}: a folder, or in one that is not yours; choose another --out")


def _not_writable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be written ({error.strerror}); choose another --out")


def write_json(path: Path, results: Results) -> None:
    """Write aside, make durable, rename. DataError if the place cannot be written."""
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            json.dump(to_json(results), file, ensure_ascii=False, separators=(",", ":"))
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise _not_writable(path, error) from None
    finally:
        with suppress(OSError):  # the place may be none at all
            aside.unlink(missing_ok=True)


def _perceptual(protected: Protected, known: KnownPhotos) -> dict[str, Any]:
    return {
        "version": phash.VERSION,
        "radius": phash.RADIUS,
        "min_correlation": phash.MIN_CORRELATION,
        "max_difference": phash.MAX_DIFFERENCE,
        "turns": list(phash.TURNS),
        "compared": len(known.photos),
        "compared_by_column": _by_column(protected, known.photos),
        "flat": known.flat,
        "unreadable": known.unreadable,
    }


def _by_column(protected: Protected, photos: Iterable[str]) -> list[int]:
    counts = [0] * len(protected.columns)
    for photo in photos:
        for column in protected.photos[photo]:
            counts[column] += 1
    return counts


def _corpus(found: CorpusFindings, results: Results) -> dict[str, Any]:
    manifest = found.corpus.manifest
    return {
        "name": manifest["name"],
        "fingerprint": manifest["fingerprint"],
        "rows": len(found.corpus),
        "identified": found.identified,
        "splits": {one.split: _split(one, results) for one in found.splits},
        "look_alikes": [
            {
                "source": row.source,
                "id": row.id,
                "photo": row.photo,
                "split": one.split,
                "shows": row.shows,
                "turn": row.turn,
                "difference": apart,
            }
            for one in found.splits
            for (_, row), apart in zip(one.rows, one.differences, strict=True)
        ],
    }


def _split(one: SplitFindings, results: Results) -> dict[str, Any]:
    by_looks = one.audited and results.known is not None
    return {
        "rows": one.size,
        "audited": one.audited,
        "leaked": one.leaked(),
        "by_id": one.by_id(results.protected),
        "by_hash": one.by_hash(results.protected) if by_looks else None,
        "flat": one.flat if by_looks else None,
        "unreadable": one.unreadable if by_looks else None,
        "photos": sorted(one.photos) if one.audited else [],
    }


def print_results(console: Console, results: Results) -> None:
    """The matrix, as many columns a table as the terminal has room for, and what to know of it."""
    columns = list(range(len(results.protected.columns)))
    fit = max(2, (console.width - _NAMES_WIDTH) // _COLUMN_WIDTH)
    for first in range(0, len(columns), fit):
        console.print(_matrix(results, columns[first : first + fit], first == 0))
    for line in _remarks(results):
        console.print(line, markup=False, soft_wrap=True, highlight=False)


def _matrix(results: Results, columns: Sequence[int], first: bool) -> Table:
    known = results.known is not None
    title = "photos of each split found in each corpus" + (": by id + by hash" if known else "")
    table = Table(box=box.SIMPLE_HEAD, title=title if first else None, title_justify="left")
    table.add_column("corpus", overflow="fold")
    for number in columns:
        name, split = results.protected.columns[number]
        table.add_column(f"{name}\n{split}", justify="right", no_wrap=True)
    sizes = _by_column(results.protected, results.protected.photos)
    table.add_row("photos of the set", *(f"{sizes[n]:,}" for n in columns), style="dim")
    if results.known is not None:
        at_hand = _by_column(results.protected, results.known.photos)
        table.add_row("compared by hash", *(f"{at_hand[n]:,}" for n in columns), style="dim")
    for found in results.corpora:
        for one in found.splits:
            by_id, by_hash = one.by_id(results.protected), one.by_hash(results.protected)
            if not one.audited and not any(by_id):
                continue
            cells = [_cell(by_id[n], by_hash[n], known and one.audited) for n in columns]
            label = f"{found.corpus.manifest['name']} {one.split}"
            label += "" if one.audited else " (held out)"
            style = "red" if one.leaked() else "" if one.audited else "dim"
            table.add_row(escape(label), *cells, style=style)
    return table


def _cell(by_id: int, by_hash: int, known: bool) -> str:
    return f"{by_id:,} + {by_hash:,}" if known else f"{by_id:,}"


def _remarks(results: Results) -> Iterator[str]:
    for one in results.protected.sets:
        yield from (f"note: {note}" for note in one.notes)
    known = results.known
    if known is not None:
        absent = len(results.protected.photos) - len(known.photos)
        absent -= len(known.flat) + len(known.unreadable)
        if absent:
            yield (
                f"note: {absent:,} protected photos are not at hand (their set was given as a list "
                "of ids) and were compared by id alone; name a corpus or a folder that has them "
                "with --photos"
            )
        for photos, what in ((known.flat, "flat"), (known.unreadable, "unreadable")):
            if photos:
                yield f"note: {len(photos):,} protected photos are {what}: {', '.join(photos[:5])}"
    nameless = [found.corpus.manifest["name"] for found in results.corpora if not found.identified]
    if nameless:
        remedy = "" if known is not None else "; compare what they show with --perceptual"
        yield f"note: the photos of {', '.join(nameless)} have no id of the protected sets{remedy}"
    for found in results.corpora:
        name = found.corpus.manifest["name"]
        flat = sum(one.flat for one in found.splits)
        broken = sum(one.unreadable for one in found.splits)
        if flat or broken:
            yield f"note: {name}: {flat:,} flat and {broken:,} unreadable photos were not compared"
