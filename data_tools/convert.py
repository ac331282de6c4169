"""``convert SOURCE --out DIR``: a published data set to a corpus of shards.

The result depends on the source and the options alone: it is the same, byte for byte, whatever the
number of processes and tasks, and however often they were killed on the way. The conversion is cut
into parts, which gather in ``DIR.work``; the same command goes on where it was stopped. Once all
parts are there, they are merged and ``DIR.work`` becomes ``DIR``. Memory does not grow with the
number of photos, apart from the annotations that a source holds (and a few kilobytes a part, to
merge).
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console

from data_tools.arguments import positive, share
from data_tools.converting.judge import Judge
from data_tools.converting.merge import SKIPPED, merge
from data_tools.converting.meter import Meter
from data_tools.converting.plan import ConvertOptions, Plan, task
from data_tools.converting.pool import Watch, write_parts
from data_tools.converting.work import LOCK, WorkFolder
from data_tools.sources import SOURCES
from data_tools.sources.base import Source
from data_tools.tables import counts_table
from wholegrain.data.corpus_manifest import MANIFEST, read_manifest
from wholegrain.data.shard_folder import check_free, sweep
from wholegrain.data.shard_table import SHARDS, ShardTable
from wholegrain.errors import ConfigError, DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare one subcommand a source."""
    common = argparse.ArgumentParser(add_help=False)
    _add_output(common.add_argument_group("output"))
    _add_work(common.add_argument_group("work"))
    names = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    for name, module in SOURCES.items():
        first = (module.__doc__ or "").strip().splitlines()[0]
        summary = getattr(module, "SUMMARIES", {}).get(name, first)
        source = names.add_parser(name, parents=[common], help=summary, description=summary)
        module.add_arguments(source)


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", type=Path, required=True, help="corpus folder to make")
    group.add_argument("--name", help="name of the corpus (default: the source's)")
    group.add_argument("--overwrite", action="store_true", help="replace an existing corpus")
    group.add_argument(
        "--shard-size", type=positive, default=1000, help="samples a shard (default: 1000)"
    )
    group.add_argument(
        "--max-side", type=positive, help="reduce photos to at most this many px a side"
    )
    group.add_argument("--limit", type=positive, help="stop after this many samples")
    group.add_argument(
        "--exclude", type=Path, metavar="FILE", help="leave out the photos that an audit lists"
    )
    group.add_argument(
        "--max-bad",
        type=share,
        default=0.01,
        metavar="SHARE",
        help="fail above this share of bad samples, such as 1%% or 0.01 (default: 1%%)",
    )
    group.add_argument(
        "--strict-counts",
        action="store_true",
        help="exit with 1 if the counts are not the published ones",
    )


def _add_work(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--processes",
        "--workers",
        type=positive,
        help="processes that read photos (default: one a core)",
    )
    group.add_argument(
        "--task",
        type=task,
        metavar="I/N",
        help="write every N-th part, from the I-th (1 to N); whichever task finds all parts "
        "complete merges them",
    )
    group.add_argument(
        "--restart", action="store_true", help="begin anew: forget the parts of earlier runs"
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb; 0 also when there is nothing to do, 1 for other counts than the published."""
    options = ConvertOptions(
        out=args.out,
        overwrite=args.overwrite,
        restart=args.restart,
        shard_size=args.shard_size,
        max_side=args.max_side,
        processes=args.processes or len(os.sched_getaffinity(0)),
        limit=args.limit,
        max_bad=args.max_bad,
        name=args.name,
        exclude=args.exclude,
        strict_counts=args.strict_counts,
        task=args.task,
    )
    if options.restart and options.task:
        raise ConfigError(
            "--restart: with --task each task would remove the work of the others; remove "
            f"{options.out}.work before the tasks are started"
        )
    console = Console()
    plan = make_plan(SOURCES[args.source].open_source(args), options)
    manifest = finished(plan)
    if manifest is not None:
        _say(console, f"{options.out}: up to date")
    else:
        manifest = convert(plan, console)
        if manifest is None:
            return 0
        _show(console, manifest, options.out)
    compared = manifest["source"].get("published") or {"differences": []}
    return 1 if options.strict_counts and compared["differences"] else 0


def make_plan(source: Source, options: ConvertOptions) -> Plan:
    """The plan of a conversion; reads the list of photos to exclude, if there is one."""
    if options.exclude is None:
        return Plan(source, options)
    from data_tools.exclusion import Exclusion

    return Plan(source, options, Exclusion.load(options.exclude))


def finished(plan: Plan) -> dict[str, Any] | None:
    """The manifest of OUT if it is a whole corpus of this very plan.

    None where there is none, or where it is to be written anew: ``overwrite`` is how a damaged
    corpus is mended. (With ``task`` it is not: the tasks that come last would begin again.)
    DataError if OUT holds another corpus, or this one with a shard missing.
    """
    options, out = plan.options, plan.options.out
    anew = options.overwrite and options.task is None
    if anew or not (out / MANIFEST).is_file():
        return None  # what may become of whatever is there is decided later
    try:
        manifest = read_manifest(out)
    except DataError:
        if options.overwrite:
            return None
        raise
    if manifest["source"].get("key") != plan.key:
        if options.overwrite:
            return None
        raise DataError(
            f"{out}: holds a corpus of other inputs or options; pass --overwrite to replace it, "
            "or another --out"
        )
    remedy = "pass --overwrite to write anew" if options.task is None else "remove the folder"
    for shard in ShardTable.open(out / SHARDS):
        path = out / shard.file
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise DataError(f"{path}: missing or of another size; {remedy}")
    (out / LOCK).unlink(missing_ok=True)  # of a merge that was killed in its last step
    return manifest


def convert(plan: Plan, console: Console) -> dict[str, Any] | None:
    """Write this run's parts and, once all are there, the corpus.

    Returns:
        The manifest; None if other tasks have parts to write yet.

    Raises:
        DataError: too many samples are bad, or all; OUT is taken. OUT is as it was then, and the
            parts that are complete are kept.
    """
    options = plan.options
    work = WorkFolder(plan)
    if options.restart:
        work.discard()
    with work.shared():
        if (manifest := _taken(plan, work)) is not None:  # another run was faster
            return manifest
        work.open_plan()
        if not work.assembled():
            _write(plan, work, console)
            missing = plan.parts - work.complete_parts()
            if missing and options.task:
                _say(console, f"task {options.task}: all its parts are complete")
                _say(console, f"{options.out}: {missing} of {plan.parts} parts are still missing")
                return None
    try:
        with console.status("merging"), work.alone(patient=options.task is None) as there:
            # Where it is gone, another run has merged.
            return merge(plan, work) if there else read_manifest(options.out)
    except BlockingIOError:
        _say(console, f"{work.path}: complete; the task that is still at work there will merge")
        return None


def _taken(plan: Plan, work: WorkFolder) -> dict[str, Any] | None:
    """The manifest if OUT is this very corpus by now; DataError if it is another's."""
    manifest = None
    try:
        sweep(Path(os.path.abspath(plan.options.out)))
        manifest = finished(plan)
        if manifest is None:
            check_free(plan.options.out, overwrite=plan.options.overwrite, marker=MANIFEST)
    except DataError:
        work.drop_if_new()
        raise
    if manifest is not None:
        work.drop_if_new()
    return manifest


def _write(plan: Plan, work: WorkFolder, console: Console) -> None:
    parts = plan.own_parts()
    judge = Judge(plan.options.out, plan.options.max_bad, plan.total)
    meter = Meter(console, plan.name, plan.samples(parts), len(parts))
    with meter:
        watch = Watch(work.path, judge, meter)
        write_parts(plan, work.path, parts, plan.options.processes, watch)


def _show(console: Console, manifest: dict[str, Any], out: Path) -> None:
    source = manifest["source"]
    skipped, left_out = (Counter(source[name]) for name in ("skipped", "left_out"))
    console.print(counts_table(manifest, skipped=skipped, left_out=left_out))
    if (compared := source.get("published")) is not None:
        if not compared["differences"]:
            _say(console, f"counts: as published ({compared['set']})")
        for line in compared["differences"]:
            _say(console, f"counts: {line}")
    _say(console, f"corpus: {out}")
    if skipped:
        _say(console, f"skipped samples are listed in {out / SKIPPED}")


def _say(console: Console, line: str) -> None:
    """A line with a path in it: neither markup nor to be broken."""
    console.print(line, markup=False, soft_wrap=True)
