"""``fetch NAME``: the files of a published data set, verified, or how a person may get them."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from data_tools.arguments import positive
from data_tools.fetching.catalogue import Catalogue, DataSet, File, load_catalogue
from data_tools.fetching.download import Patience, Report, new_client
from data_tools.fetching.entry import (
    Outcome,
    Reporting,
    Terms,
    check_room,
    fetch_files,
    unpack_files,
)
from data_tools.fetching.ledger import Ledger
from wholegrain.data.shard_folder import locked_folder
from wholegrain.errors import ConfigError, DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``fetch``."""
    parser.add_argument("name", nargs="?", help="data set; --list shows all")
    parser.add_argument("--list", action="store_true", help="print what can be fetched")
    parser.add_argument("--out", type=Path, help="folder for the files (default: raw/NAME)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="GLOB", help="these files only; repeatable"
    )
    parser.add_argument("--unpack", action="store_true", help="unpack archives beside them")
    parser.add_argument(
        "--verify", action="store_true", help="read and check all files again; download nothing"
    )
    parser.add_argument(
        "--timeout",
        type=positive,
        default=60,
        metavar="SECONDS",
        help="give a silent connection up (default: 60)",
    )
    parser.add_argument(
        "--retries", type=_count, default=5, help="failures in a row to bear with (default: 5)"
    )
    parser.add_argument(
        "--max-gb",
        type=positive,
        default=8,
        metavar="GB",
        help="largest file accepted where no size is published (default: 8)",
    )
    parser.add_argument(
        "--catalogue", type=Path, help="YAML file in place of the shipped catalogue"
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb; 1 if a file is missing or wrong at the end."""
    catalogue = load_catalogue(args.catalogue)
    console = Console()
    if args.list:
        console.print(_table(catalogue))
        return 0
    if args.name is None:
        raise ConfigError("no data set named; `fetch --list` shows all")
    data_set = catalogue.find(args.name)
    files = data_set.chosen(args.only)
    folder = args.out or Path("raw") / args.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror}); choose --out") from None
    patience = Patience(timeout=args.timeout, retries=args.retries)
    terms = Terms(patience, limit=args.max_gb * 10**9, rehash=args.verify)
    with locked_folder(folder):
        outcomes = _work(console, data_set, files, folder, terms, unpacking=args.unpack)
    return _conclude(console, data_set, folder, outcomes)


def _work(
    console: Console,
    data_set: DataSet,
    files: list[File],
    folder: Path,
    terms: Terms,
    *,
    unpacking: bool,
) -> list[Outcome]:
    ledger = Ledger(folder)
    outcomes = []

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if outcome.good:
            detail = f": {outcome.detail}" if outcome.detail else ""
            _say(console, f"{outcome.name}: {outcome.state}{detail}")

    if not terms.rehash:
        check_room(files, folder, shutil.disk_usage(folder).free)
    with new_client(terms.patience) as client, _progress(console) as bars:
        downloader = None if terms.rehash else client
        for outcome in fetch_files(files, folder, ledger, downloader, terms, _reporting(bars)):
            note(outcome)
    if unpacking:
        good = {outcome.name for outcome in outcomes if outcome.good}
        for outcome in unpack_files(data_set, good, folder, ledger):
            note(outcome)
    return outcomes


def _conclude(console: Console, data_set: DataSet, folder: Path, outcomes: list[Outcome]) -> int:
    by_hand = [outcome for outcome in outcomes if outcome.state == "by hand"]
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if by_hand:
        _tell_person(console, data_set, folder, by_hand)
    for outcome in failed:
        print(f"error: {outcome.detail}", file=sys.stderr)
    if by_hand or failed:
        names = ", ".join(outcome.name for outcome in (*by_hand, *failed))
        print(f"not complete: {names}", file=sys.stderr)
        return 1
    _say(console, f"files: {folder}")
    place = shlex.quote(str(folder))
    if data_set.then:
        _say(console, data_set.then.replace("{dir}", place).strip())
    for line in data_set.convert:
        _say(console, f"python -m data_tools convert {line.replace('{dir}', place)} --out ...")
    return 0


def _tell_person(console: Console, data_set: DataSet, folder: Path, by_hand: list[Outcome]) -> None:
    _say(console, f"{data_set.title}: a person has to get these files.")
    if data_set.click:
        _say(console, data_set.click.strip())
    _say(console, f"Terms: {data_set.licence}; see {data_set.page}")
    for outcome in by_hand:
        if outcome.detail:
            _say(console, f"  {outcome.name}: {outcome.detail}")
    if plain := [outcome.name for outcome in by_hand if not outcome.detail]:
        _say(console, f"  without a published digest: {', '.join(plain)}")
    _say(
        console,
        f"Put them into {folder} under these names and run the command again: it checks them, and "
        "with --unpack unpacks them.",
    )


def _table(catalogue: Catalogue) -> Table:
    table = Table(title="data sets that `fetch` knows", title_justify="left")
    for column in ("name", "what", "files", "size", "licence", "by hand"):
        table.add_column(column, justify="right" if column in ("files", "size") else "left")
    for name, data_set in sorted(catalogue.sets.items()):
        table.add_row(
            name,
            escape(data_set.title),
            f"{len(data_set.files)}",
            _size(data_set),
            escape(data_set.licence),
            "no" if all(file.urls for file in data_set.files) else "yes",
        )
    return table


def _size(data_set: DataSet) -> str:
    sizes = [file.bytes for file in data_set.files]
    known = sum(size for size in sizes if size is not None)
    if None not in sizes:
        return decimal(known)
    return f"over {decimal(known)}" if known else "unknown"


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _reporting(bars: Progress) -> Reporting:
    """Opens one bar a file, and says at its end how fast the bytes came."""

    @contextmanager
    def reporting(file: File) -> Iterator[Report]:
        task = bars.add_task(file.name, total=file.bytes)
        started, got, last = time.monotonic(), 0, None

        def report(done: int, total: int | None) -> None:
            nonlocal got, last
            # Less than before: the download started over. The first call says where it resumes.
            got += max(done - (done if last is None else last), 0)
            last = done
            bars.update(task, completed=done, total=total)

        try:
            yield report
        finally:
            bars.remove_task(task)
            if got:
                seconds = max(time.monotonic() - started, 1e-3)
                rate = decimal(int(got / seconds))
                _say(bars.console, f"{file.name}: {decimal(got)} in {seconds:.1f} s, {rate}/s")

    return reporting


def _say(console: Console, line: str) -> None:
    """A line with names in it: neither markup nor to be broken."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)
