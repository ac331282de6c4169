"""``index``: give tars an index and a manifest, so that they open as a corpus.

A folder without ``--out`` gets both beside its tars. With ``--out`` the tars stay untouched where
they are (another's WebDataset on a shared disk, say) and the new folder refers to them.
"""

from __future__ import annotations

import argparse
import glob
from pathlib import Path

from rich.console import Console

from data_tools.tables import counts_table
from wholegrain.data.index import index_tars, write_index
from wholegrain.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``index``."""
    parser.add_argument("paths", nargs="+", help="a folder with tars, or with --out tars (globs)")
    parser.add_argument("--out", type=Path, help="folder for the index; the tars stay in place")
    parser.add_argument("--source", help="what plain tars hold, such as cc12m (default: the name)")
    parser.add_argument("--split", help="split of plain samples (default: train)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    console = Console()
    with console.status("indexing") as status:

        def show(file: str) -> None:
            status.update(f"indexed {file}")

        if args.out is None:
            if len(args.paths) != 1:
                raise DataError("index: one folder is indexed in place; pass --out DIR for tars")
            folder = Path(args.paths[0])
            if not folder.is_dir():
                raise DataError(f"{folder}: no folder; pass --out DIR to index single tars")
            manifest = write_index(folder, source=args.source, split=args.split, progress=show)
        else:
            manifest = index_tars(
                _tars(args.paths),
                args.out,
                source=args.source or args.out.name,
                split=args.split or "train",
                overwrite=args.overwrite,
                progress=show,
            )
    console.print(counts_table(manifest))
    return 0


def _tars(paths: list[str]) -> list[Path]:
    tars: list[Path] = []
    for path in paths:
        found = sorted(Path(path).glob("*.tar")) if Path(path).is_dir() else _matches(path)
        if not found:
            raise DataError(f"{path}: no tar there; pass tars, a quoted glob or a folder of tars")
        tars += found
    return tars


def _matches(pattern: str) -> list[Path]:
    return sorted(Path(path) for path in glob.glob(pattern, recursive=True))
