"""``lint``: is a corpus what its manifest says, and sound?

Every byte against the checksums, every record against the schema, every photo decoded (or, with
``--headers``, its header alone), and the index against the tars. Problems are printed with file
and member, and counted by cause; the exit status is 1 when there is any.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from data_tools.arguments import positive
from data_tools.threads import ordered_map
from wholegrain.data.corpus import Corpus
from wholegrain.data.decode import ImageError, check_frame, decode_image
from wholegrain.data.index_file import id_hash
from wholegrain.data.record import Record
from wholegrain.data.shard_image import ImageKind, probe_image
from wholegrain.data.storage import StorageGone
from wholegrain.errors import DataError, RecordError

_LISTED = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``lint``."""
    parser.add_argument("corpus", help="corpus folder or its address")
    parser.add_argument("--sample", type=positive, metavar="N", help="check N spread samples only")
    parser.add_argument("--headers", action="store_true", help="read image headers only: faster")
    parser.add_argument("--workers", type=positive, help="threads (default: one a core)")


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault; ``cause`` is a short fixed phrase, so that it counts, ``detail`` names place."""

    cause: str
    detail: str


def run(args: argparse.Namespace) -> int:
    """Run the verb; 1 if the corpus has a problem."""
    console = Console()
    corpus = Corpus.open(args.corpus)
    causes: Counter[str] = Counter()
    for problem in problems(
        corpus,
        sample=args.sample,
        headers=args.headers,
        workers=args.workers or os.cpu_count() or 1,
        console=console,
    ):
        causes[problem.cause] += 1
        if causes.total() <= _LISTED:
            line = escape(problem.detail)
            console.print(f"[red]{line}[/red]", highlight=False, soft_wrap=True)
    found = causes.total()
    if found > _LISTED:
        console.print(f"and {found - _LISTED} more")
    checked = min(args.sample or len(corpus), len(corpus))
    verdict = "no problem"
    if found:
        counted = ", ".join(f"{count} x {cause}" for cause, count in causes.most_common())
        verdict = f"{found} problem{'s' * (found != 1)} ({counted})"
    console.print(
        f"{args.corpus}: {checked:,} of {len(corpus):,} samples checked, {verdict}",
        markup=False,
        soft_wrap=True,
    )
    return 1 if found else 0


def problems(
    corpus: Corpus,
    *,
    sample: int | None = None,
    headers: bool = False,
    workers: int = 1,
    console: Console | None = None,
) -> Iterator[Problem]:
    """Yield each problem of a whole corpus.

    Args:
        sample: check that many samples, evenly spread; None checks all. Checksums are always
            those of whole files.
        headers: do not decode photos.

    Raises:
        StorageGone: a URL's storage does not answer; no problem of the corpus.
    """
    try:
        with (console or Console(quiet=True)).status("checksums"):
            corpus.verify()
    except StorageGone:
        raise
    except DataError as error:
        yield Problem("checksum", str(error))
    count = len(corpus)
    chosen: Sequence[int] = range(count)
    if sample is not None and sample < count:
        chosen = np.linspace(0, count - 1, sample).astype(int).tolist()
    check = partial(_check, corpus, corpus.index, headers=headers)
    results = ordered_map(check, chosen, workers)
    tally: Counter[str] = Counter()
    ids: set[int] = set()  # hashes: the ids themselves would take five times as much
    quiet = console is None
    for number, result in zip(
        chosen, track(results, "samples", len(chosen), console=console, disable=quiet), strict=True
    ):
        if isinstance(result, Problem):
            yield result
            continue
        split, identity = result
        if identity in ids:
            yield Problem(
                "id twice",
                f"{corpus.path}: sample {number}: its id occurs twice in split {split!r}; convert "
                "again",
            )
        ids.add(identity)
        tally[split] += 1
    if len(tally) and sum(tally.values()) == count and dict(tally) != corpus.splits:
        yield Problem(
            "index",
            f"{corpus.path}: the records have splits {dict(tally)}, the manifest {corpus.splits}; "
            "run `python -m data_tools index`",
        )


def _check(
    corpus: Corpus, index: np.ndarray, number: int, *, headers: bool
) -> tuple[str, int] | Problem:
    """The sample's split and the hash of its id in it if all is well, else what is wrong."""
    row = index[number]
    where = f"{corpus.path}: sample {number}"
    try:
        where = f"{corpus.shard_name(number)}: sample {number}"
        record = corpus.record(number)
        where = f"{where} ({record.id})"
        data = corpus.image_bytes(number)
        if fault := _fault_of_photo(record, data, corpus.image_kind(number), where):
            return fault
        if (row["captions"], row["regions"]) != (len(record.captions), len(record.regions)):
            return Problem(
                "index", f"{where}: the index has other counts; run `python -m data_tools index`"
            )
        if not headers:
            decode_image(data, where)
    except ImageError as error:
        return Problem(f"image: {error.cause}", str(error))
    except RecordError as error:
        return Problem("record", str(error))
    except StorageGone:
        raise
    except DataError as error:
        return Problem("unreadable", str(error))
    return record.split, id_hash(f"{record.split}\n{record.id}")


def _fault_of_photo(record: Record, data: bytes, named: ImageKind, where: str) -> Problem | None:
    try:
        header = probe_image(data, where)
    except DataError as error:
        return Problem("image: not an image", str(error))
    check_frame(header.width, header.height, where)
    if header.kind != named:
        return Problem("image: wrong name", f"{where}: named .{named}, but it is {header.kind}")
    if (header.width, header.height) != (record.width, record.height):
        return Problem(
            "image: wrong size",
            f"{where}: {header.width} x {header.height} px, "
            f"the record says {record.width} x {record.height}",
        )
    return None
