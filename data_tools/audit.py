"""``audit CORPUS... --against SETS``: are photos that results are measured on in the corpora?

A photo of a protected split (val and test of the named sets) that stands in a split which is
trained on is a leak: the exit status is then 1. Every split of a corpus counts as trained on,
unless its name says that it is held out (val*, dev*, test*, minival*): those of an evaluation set's
own corpus hold protected photos by nature, which the table shows as *held out*. ``--split`` says
otherwise: then the named splits are audited, and they alone. Training asks for the very splits that
it reads.

Without a corpus the file of ``--out`` is the list of what to leave out: ``convert --exclude FILE``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_tools.arguments import positive
from data_tools.auditing.by_hash import Recogniser
from data_tools.auditing.by_id import IdHashes
from data_tools.auditing.findings import CorpusFindings, search_corpus
from data_tools.auditing.photos import KnownPhotos, find_photos, know_photos
from data_tools.auditing.protected import SPACES, Protected, parse_against
from data_tools.auditing.report import Results, make_place, print_results, write_json
from wholegrain.data.corpus import Corpus
from wholegrain.errors import DataError

# Where `convert` and `fetch` put things by default.
_PLACES = (Path("corpora"), Path("raw"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``audit``."""
    parser.add_argument("corpora", nargs="*", metavar="CORPUS", help="corpus folders or addresses")
    parser.add_argument(
        "--against",
        action="append",
        required=True,
        metavar="NAME[=PATH],...",
        help=f"protected sets: {', '.join(SPACES)}, or any NAME=PATH",
    )
    parser.add_argument(
        "--protected",
        type=Path,
        action="append",
        metavar="DIR",
        help="where sets without a PATH lie; repeatable (default: corpora, then raw)",
    )
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        help="audit this split (may be repeated; `all`: every one; default: all not held out)",
    )
    parser.add_argument(
        "--perceptual", action="store_true", help="also compare what the photos show"
    )
    parser.add_argument(
        "--photos",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="corpus, or folder of photos named by id, with photos of sets given as lists",
    )
    parser.add_argument("--out", type=Path, help="write the audit as JSON")
    parser.add_argument(
        "--hashes", type=Path, metavar="DIR", help="keep image hashes here (default: beside --out)"
    )
    parser.add_argument("--workers", type=positive, help="threads (default: one a core)")


def run(args: argparse.Namespace) -> int:
    """Run the verb; 1 if a protected photo is in a corpus."""
    console = Console()
    if not args.corpora and not args.out:
        raise DataError("audit: name corpora, or the --out of an exclusion list, or both")
    if args.photos and not args.perceptual:
        raise DataError("--photos: photos are compared with --perceptual only; add it")
    if args.out:
        make_place(args.out)
    corpora = [Corpus.open(path) for path in args.corpora]
    _check_splits(corpora, args.split)
    protected = parse_against(args.against, args.protected or _PLACES)
    workers = args.workers or os.cpu_count() or 1
    cache = args.hashes or (args.out and args.out.parent / "audit_hashes")
    known = None
    if args.perceptual and corpora:
        with console.status("protected photos"):
            known = know_photos(find_photos(protected, args.photos), workers, cache)
        if not known.photos:
            raise DataError(
                "--perceptual: no protected photo is at hand, the sets are lists of ids; give them "
                "as corpora (NAME=FOLDER), or name a corpus or folder that has them with --photos"
            )
    found = _search(console, corpora, protected, known, args.split, workers, cache)
    results = Results(protected, known, found)
    print_results(console, results)
    if args.out:
        write_json(args.out, results)
        console.print(f"audit: {args.out}", markup=False, soft_wrap=True)
    return _verdict(console, results, args.out)


def _search(
    console: Console,
    corpora: list[Corpus],
    protected: Protected,
    known: KnownPhotos | None,
    splits: list[str],
    workers: int,
    cache: Path | None,
) -> list[CorpusFindings]:
    hashes = IdHashes(protected.photos)
    recogniser = Recogniser(known) if known is not None else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    found = []
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        for corpus in corpora:
            task = bar.add_task(corpus.manifest["name"], total=len(corpus))
            found.append(
                search_corpus(
                    corpus,
                    protected,
                    hashes,
                    splits=splits,
                    recogniser=recogniser,
                    workers=workers,
                    cache=cache,
                    progress=lambda done, task=task: bar.advance(task, done),
                )
            )
            bar.update(task, completed=len(corpus))
    return found


def _check_splits(corpora: list[Corpus], splits: list[str]) -> None:
    have = {split for corpus in corpora for split in corpus.splits}
    for split in splits:
        if split != "all" and split not in have:
            raise DataError(
                f"--split {split}: no corpus has such a split; they have {', '.join(sorted(have))}"
            )


def _verdict(console: Console, results: Results, out: Path | None) -> int:
    count = len(results.protected.photos)
    if not results.corpora:
        line = f"{count:,} photos to leave out, by `convert SOURCE --exclude {out}`"
    elif leaked := results.leaked():
        file = out or "FILE (this audit's --out)"
        line = f"protected photos in the corpora: {leaked:,}; convert again with --exclude {file}"
    else:
        line = f"none of {count:,} protected photos is in the corpora"
    console.print(line, markup=False, soft_wrap=True, highlight=False)
    return 1 if results.leaked() else 0
