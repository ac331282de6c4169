"""``stats``: how texts, boxes and photos of a corpus are distributed.

Of a large corpus a sample is read; what is then an estimate, and of how many records, is said.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from data_tools.arguments import positive
from data_tools.looking.collect import Stats
from data_tools.looking.filters import RecordFilter, add_filter_arguments, filter_of
from data_tools.looking.page import check_free
from data_tools.looking.sample import Reading, draw, nothing_found, progress, read_matching
from data_tools.looking.terminal import counts_by, quantities_table, texts_table, top_table
from wholegrain.data.corpus import Corpus

_SAMPLE = 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``stats``."""
    parser.add_argument("corpus", help="corpus folder or its address")
    add_filter_arguments(parser)
    parser.add_argument(
        "--sample",
        type=_sample,
        default=_SAMPLE,
        metavar="N",
        help=f"read N records drawn at random, or 'all' (default: {_SAMPLE:,})",
    )
    parser.add_argument("--seed", type=int, default=0, help="which records (default: 0)")
    parser.add_argument(
        "--vocab",
        type=Path,
        metavar="FILE",
        help="BERT vocab.txt or tokenizer.json: count tokens as training does",
    )
    parser.add_argument(
        "--max-tokens", type=positive, default=40, help="tokens that training keeps (default: 40)"
    )
    parser.add_argument("--top", type=positive, default=15, help="texts to list (default: 15)")
    parser.add_argument("--out", type=Path, metavar="PAGE", help="write an HTML page, too")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    if args.out is not None:
        check_free(args.out, args.overwrite)
    stats = _new_stats(args)
    corpus = Corpus.open(args.corpus).select(args.split)
    wanted, reading = filter_of(args), Reading(total=len(corpus))
    _read(corpus, stats, wanted, reading, args)
    if args.out is not None:
        from data_tools.looking.stats_page import write_stats_page

        write_stats_page(args.out, corpus, stats, reading, wanted, args.seed, args.top)
    if args.json:
        told = _as_json(corpus, stats, reading, wanted, args)
        print(json.dumps(told, ensure_ascii=False, indent=1))
        return 0
    _print(stats, reading, wanted, args)
    return 0


def _sample(text: str) -> int | None:
    return None if text == "all" else positive(text)


def _new_stats(args: argparse.Namespace) -> Stats:
    if args.vocab is None:
        return Stats(args.grain, max_tokens=args.max_tokens)
    from data_tools.looking.tokens import token_counter

    return Stats(args.grain, token_counter(args.vocab), args.max_tokens)


def _read(
    corpus: Corpus,
    stats: Stats,
    wanted: RecordFilter,
    reading: Reading,
    args: argparse.Namespace,
) -> None:
    everything = args.sample is None or args.sample >= len(corpus)
    # In the corpus's order, so that a disk is read forwards.
    positions = (
        range(len(corpus)) if everything else sorted(draw(len(corpus), args.sample, args.seed))
    )
    with progress(positions) as bar:
        for _, record in read_matching(corpus, bar, wanted, reading):
            stats.add(record)
    if not reading.matched:
        remedy = "change the filter" if everything else "raise --sample or change the filter"
        raise nothing_found(corpus, wanted, reading, remedy)


def _print(stats: Stats, reading: Reading, wanted: RecordFilter, args: argparse.Namespace) -> None:
    console = Console()
    console.print(_told(reading, wanted, args), highlight=False, markup=False, soft_wrap=True)
    splits = {split: dict(group.counts) for split, group in stats.splits.items()}
    console.print(counts_by("split", splits))
    if len(stats.sources) > 1:
        sources = {source: dict(counts) for source, counts in stats.sources.items()}
        console.print(counts_by("source", sources))
    console.print(quantities_table(stats))
    console.print(texts_table(stats))
    for kind, texts in stats.texts.items():
        if texts and kind != "captions":
            console.print(top_table(stats, kind, args.top))
    for fault in reading.faults:
        console.print(f"bad: {fault}", highlight=False, markup=False, soft_wrap=True)
    if args.out is not None:
        size = args.out.stat().st_size / 1e6
        console.print(f"{args.out}: {size:.1f} MB", highlight=False, markup=False, soft_wrap=True)


def _told(reading: Reading, wanted: RecordFilter, args: argparse.Namespace) -> str:
    """What the figures are of, in a line."""
    if reading.complete:
        parts = [f"all {reading.total:,} records read, figures are exact"]
    else:
        parts = [
            f"{reading.read:,} of {reading.total:,} records read (seed {args.seed}), figures are "
            "of these"
        ]
    if wanted:
        parts.append(f"{reading.matched:,} match {wanted}")
    if reading.bad:
        parts.append(f"left out as bad: {reading.told()}")
    return "; ".join(parts)


def _as_json(
    corpus: Corpus,
    stats: Stats,
    reading: Reading,
    wanted: RecordFilter,
    args: argparse.Namespace,
) -> dict[str, Any]:
    return {
        "corpus": {
            "path": str(corpus.path),
            "name": corpus.manifest["name"],
            "split": corpus.split,
            "fingerprint": corpus.fingerprint,
            "counts": corpus.manifest["counts"],
        },
        "filter": str(wanted),
        "reading": {
            "seed": args.seed,
            "total": reading.total,
            "read": reading.read,
            "matched": reading.matched,
            "bad": dict(reading.bad),
            "complete": reading.complete,
        },
        **stats.summary(args.top),
    }
