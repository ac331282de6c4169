"""``lint``: is a corpus what its manifest says, and sound?

Every byte against the checksums, every record against the schema, every photo decoded (or, with
``--headers``, its header alone), and the index against the tars. Problems are printed with file
and member; the exit status is 1 when there is any.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from data_tools.arguments import positive
from data_tools.threads import ordered_map
from wholegrain.data.corpus import Corpus
from wholegrain.data.decode import MAX_PIXELS, decode_image
from wholegrain.data.record import Record
from wholegrain.data.shard_image import probe_image
from wholegrain.errors import DataError

_LISTED = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``lint``."""
    parser.add_argument("corpus", type=Path, help="corpus folder")
    parser.add_argument("--sample", type=positive, metavar="N", help="check N spread samples only")
    parser.add_argument("--headers", action="store_true", help="read image headers only: faster")
    parser.add_argument("--workers", type=positive, help="threads (default: one a core)")


def run(args: argparse.Namespace) -> int:
    """Run the verb; 1 if the corpus has a problem."""
    console = Console()
    corpus = Corpus.open(args.corpus)
    found = 0
    for problem in problems(
        corpus,
        sample=args.sample,
        headers=args.headers,
        workers=args.workers or os.cpu_count() or 1,
        console=console,
    ):
        found += 1
        if found <= _LISTED:
            console.print(f"[red]{escape(problem)}[/red]", highlight=False, soft_wrap=True)
    if found > _LISTED:
        console.print(f"and {found - _LISTED} more")
    checked = min(args.sample or len(corpus), len(corpus))
    verdict = f"{found} problem{'s' * (found != 1)}" if found else "no problem"
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
) -> Iterator[str]:
    """Yield each problem of a whole corpus as a line that names file and sample.

    Args:
        sample: check that many samples, evenly spread; None checks all. Checksums are always
            those of whole files.
        headers: do not decode photos.
    """
    try:
        with (console or Console(quiet=True)).status("checksums"):
            corpus.verify()
    except DataError as error:
        yield str(error)
    count = len(corpus)
    chosen = range(count)
    if sample is not None and sample < count:
        chosen = np.linspace(0, count - 1, sample).astype(int).tolist()
    check = partial(_check, corpus, headers=headers)
    results = ordered_map(check, chosen, workers)
    tally: Counter[str] = Counter()
    ids: set[tuple[str, str]] = set()
    quiet = console is None
    for number, result in zip(
        chosen, track(results, "samples", len(chosen), console=console, disable=quiet), strict=True
    ):
        if isinstance(result, str):
            yield result
            continue
        if (result.split, result.id) in ids:
            yield (
                f"{corpus.path}: sample {number}: id {result.id!r} occurs twice in split "
                f"{result.split!r}; convert again"
            )
        ids.add((result.split, result.id))
        tally[result.split] += 1
    if len(tally) and sum(tally.values()) == count and dict(tally) != corpus.splits:
        yield (
            f"{corpus.path}: the records have splits {dict(tally)}, the manifest {corpus.splits}; "
            "run `python -m data_tools index`"
        )


def _check(corpus: Corpus, number: int, *, headers: bool) -> Record | str:
    """The sample's record if all is well, else what is wrong with it."""
    try:
        record = corpus.record(number)
        data = corpus.image_bytes(number)
        row = corpus.index[number]
        shard = corpus.manifest["shards"][row["shard"]]["file"]
        where = f"{corpus.path / shard}: sample {number} ({record.id})"
        header = probe_image(data, where)
        if header.width * header.height > MAX_PIXELS:
            return f"{where}: {header.width} x {header.height} px, above the limit of {MAX_PIXELS}"
        if header.kind != corpus.image_kind(number):
            return f"{where}: named .{corpus.image_kind(number)}, but it is {header.kind}"
        if (header.width, header.height) != (record.width, record.height):
            return (
                f"{where}: {header.width} x {header.height} px, "
                f"the record says {record.width} x {record.height}"
            )
        if (row["captions"], row["regions"]) != (len(record.captions), len(record.regions)):
            return f"{where}: the index has other counts; run `python -m data_tools index`"
        if not headers:
            decode_image(data, where)
    except DataError as error:
        return str(error)
    return record
