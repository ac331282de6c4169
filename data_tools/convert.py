"""``convert SOURCE --out DIR``: a published data set to a corpus of shards.

Read, prepare, write: the source yields drafts in order, threads read and check the photos (file
reading and JPEG decoding leave the interpreter lock alone), the writer appends in the same order,
so the shards are the same bytes whatever ``--workers`` says.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from data_tools.arguments import positive, share
from data_tools.prepare import Ready, prepare
from data_tools.sources import SOURCES
from data_tools.sources.base import Bad, Draft, Source
from data_tools.tables import counts_table
from data_tools.threads import ordered_map
from wholegrain.data.corpus_manifest import MANIFEST, read_manifest
from wholegrain.data.shard import ShardWriter
from wholegrain.errors import DataError, RecordError

SKIPPED = "skipped.jsonl"

# Counts as different input when the meaning of what converters write changes.
_CONVERTER_VERSION = 1
# A source of unknown length is judged on the run so far once that many samples were seen.
_ENOUGH_SEEN = 10_000


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What ``convert`` takes beside the source's own options.

    ``max_bad`` is the share of bad samples above which the conversion fails.
    """

    out: Path
    overwrite: bool = False
    shard_size: int = 1000
    max_side: int | None = None
    workers: int = 0
    limit: int | None = None
    max_bad: float = 0.01
    name: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare one subcommand a source."""
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("output")
    group.add_argument("--out", type=Path, required=True, help="corpus folder to make")
    group.add_argument("--name", help="name of the corpus (default: the source's)")
    group.add_argument("--overwrite", action="store_true", help="replace an existing corpus")
    group.add_argument(
        "--shard-size", type=positive, default=1000, help="samples a shard (default: 1000)"
    )
    group.add_argument(
        "--max-side", type=positive, help="reduce photos to at most this many px a side"
    )
    group.add_argument(
        "--workers", type=positive, help="threads that read photos (default: one a core)"
    )
    group.add_argument("--limit", type=positive, help="stop after this many samples")
    group.add_argument(
        "--max-bad",
        type=share,
        default=0.01,
        metavar="SHARE",
        help="fail above this share of bad samples, such as 1%% or 0.01 (default: 1%%)",
    )
    names = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    for name, module in SOURCES.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        source = names.add_parser(name, parents=[common], help=summary, description=summary)
        module.add_arguments(source)


def run(args: argparse.Namespace) -> int:
    """Run the verb; 0 also when there is nothing to do."""
    options = ConvertOptions(
        out=args.out,
        overwrite=args.overwrite,
        shard_size=args.shard_size,
        max_side=args.max_side,
        workers=args.workers or os.cpu_count() or 1,
        limit=args.limit,
        max_bad=args.max_bad,
        name=args.name,
    )
    console = Console()
    source = SOURCES[args.source].open_source(args)
    if is_up_to_date(source, options):
        _say(console, f"{options.out}: up to date")
        return 0
    result = convert(source, options, console)
    console.print(counts_table(result.manifest, skipped=result.skipped, left_out=source.left_out))
    _say(console, f"corpus: {options.out}")
    if result.skipped:
        _say(console, f"skipped samples are listed in {options.out / SKIPPED}")
    return 0


@dataclass(frozen=True, slots=True)
class Result:
    """``manifest`` as written; ``skipped`` counts bad samples by cause."""

    manifest: dict[str, Any]
    skipped: Counter[str]


def is_up_to_date(source: Source, options: ConvertOptions) -> bool:
    """Whether ``out`` holds a whole corpus of the same inputs and options.

    False where there is none, or where it is to be written anew: ``overwrite`` is how a damaged
    corpus is mended. DataError if ``out`` holds another corpus, or this one with a shard missing.
    """
    out = options.out
    if options.overwrite or not (out / MANIFEST).is_file():
        return False  # the writer decides what may become of whatever is there
    manifest = read_manifest(out)
    if manifest["source"].get("key") != _key(source, options):
        raise DataError(
            f"{out}: holds a corpus of other inputs or options; pass --overwrite to replace it, "
            "or another --out"
        )
    for shard in manifest["shards"]:
        path = out / shard["file"]
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            raise DataError(f"{path}: missing or of another size; pass --overwrite to write anew")
    return True


def convert(source: Source, options: ConvertOptions, console: Console) -> Result:
    """Write the corpus, or nothing. DataError if too many samples are bad, or all."""
    description: dict[str, Any] = {
        "name": options.name or source.name,
        "converter": source.name,
        "key": _key(source, options),
        "inputs": source.description,
        "options": _deciding(options),
    }
    judge = _Judge(options, _total(source, options))
    drafts = itertools.islice(source.samples, options.limit)
    work = partial(_prepare, max_side=options.max_side)
    writer = ShardWriter(
        options.out,
        source=description,
        max_samples=options.shard_size,
        overwrite=options.overwrite,
    )
    with _progress(console) as bar, writer:
        task = bar.add_task(source.name, total=judge.total, bad="")
        for item in ordered_map(work, drafts, options.workers):
            bad = item if isinstance(item, Bad) else _write(writer, item)
            judge.saw(bad)
            bar.update(task, advance=1, bad=f"{len(judge.bad)} skipped" if judge.bad else "")
        judge.finish()
        # The writer keeps this very dict and writes it last.
        description["skipped"] = dict(judge.causes())
        description["left_out"] = dict(+source.left_out)
    _write_skipped(options.out, judge.bad)
    return Result(writer.manifest, judge.causes())


class _Judge:
    """Keeps the bad samples and stops the run as soon as there are too many."""

    def __init__(self, options: ConvertOptions, total: int | None) -> None:
        self.options, self.total = options, total
        self.seen = 0
        self.bad: list[Bad] = []

    def saw(self, bad: Bad | None) -> None:
        self.seen += 1
        if bad is None:
            return
        self.bad.append(bad)
        if self.total is not None:
            self._check(self.total)
        elif self.seen >= _ENOUGH_SEEN:
            self._check(self.seen)

    def finish(self) -> None:
        if not self.seen:
            raise DataError(f"{self.options.out}: the source holds no sample; nothing is written")
        self._check(self.seen)

    def causes(self) -> Counter[str]:
        return Counter(bad.cause for bad in self.bad)

    def _check(self, total: int) -> None:
        if len(self.bad) <= self.options.max_bad * total:
            return
        counted = ", ".join(f"{count} x {cause}" for cause, count in self.causes().most_common())
        firsts = {bad.cause: bad.detail for bad in reversed(self.bad)}
        examples = "".join(f"\n  {detail}" for detail in itertools.islice(firsts.values(), 5))
        raise DataError(
            f"{len(self.bad)} of {self.seen} samples are bad ({counted}), more than "
            f"{self.options.max_bad:.1%} of {total}; nothing is written. Mend the source, or raise "
            f"--max-bad. For instance:{examples}"
        )


def _say(console: Console, line: str) -> None:
    """A line with a path in it: neither markup nor to be broken."""
    console.print(line, markup=False, soft_wrap=True)


def _prepare(item: Draft | Bad, max_side: int | None) -> Ready | Bad:
    return item if isinstance(item, Bad) else prepare(item, max_side)


def _write(writer: ShardWriter, ready: Ready) -> Bad | None:
    try:
        writer.write(ready.record, ready.image, ready.kind)
    except RecordError as error:
        return Bad(ready.record.id, f"record: {error.field}", str(error))
    return None


def _write_skipped(out: Path, listed: list[Bad]) -> None:
    if not listed:
        return
    aside = out / f".{SKIPPED}.partial-{os.getpid()}"
    with aside.open("w", encoding="utf-8") as file:
        for bad in listed:
            line = {"id": bad.id, "cause": bad.cause, "detail": bad.detail}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    aside.replace(out / SKIPPED)


def _deciding(options: ConvertOptions) -> dict[str, Any]:
    """The options that change what is written; ``workers`` and ``max_bad`` do not."""
    return {
        "shard_size": options.shard_size,
        "max_side": options.max_side,
        "limit": options.limit,
        "name": options.name,
    }


def _key(source: Source, options: ConvertOptions) -> str:
    return source.key(version=_CONVERTER_VERSION, options=_deciding(options))


def _total(source: Source, options: ConvertOptions) -> int | None:
    if source.total is None or options.limit is None:
        return source.total
    return min(source.total, options.limit)


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[bad]}", style="yellow"),
        console=console,
    )
