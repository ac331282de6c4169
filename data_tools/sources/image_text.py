"""Image-text pairs in WebDataset tars (``KEY.jpg`` with ``KEY.txt`` and/or ``KEY.json``).

The layout of img2dataset and therefore of CC12M, LAION and the like. ``.txt`` is the caption;
without it, ``caption`` or ``text`` of the ``.json``. Tars are read as a stream, members with the
same key being neighbours, and nothing is extracted to disk.
"""

from __future__ import annotations

import argparse
import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from data_tools.sources.base import Bad, Draft, Source, listing_digest
from wholegrain.data.index_scan import scan_samples
from wholegrain.data.record_plain import plain_captions, plain_meta
from wholegrain.data.shard_tar import Member
from wholegrain.errors import DataError, RecordError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``convert image_text``."""
    parser.add_argument(
        "--tars", required=True, nargs="+", metavar="GLOB", help="such as 'cc12m/*.tar'"
    )
    parser.add_argument("--split", default="train", help="name of the split (default: train)")


def open_source(args: argparse.Namespace) -> Source:
    """Open from the command line's options."""
    return read_image_text(args.tars, split=args.split, name=args.name or "image_text")


def read_image_text(
    tars: Sequence[str], *, split: str = "train", name: str = "image_text"
) -> Source:
    """Open all tars that match the globs. DataError if none does.

    A damaged tar raises DataError when it is read, with the file and the place in it.
    """
    paths = sorted({Path(path) for tar in tars for path in glob.glob(tar, recursive=True)})
    if not paths:
        raise DataError(
            f"no file matches --tars {' '.join(tars)}; quote the pattern and check the folder"
        )
    stems = Counter(path.stem for path in paths)
    if repeated := [stem for stem, count in stems.items() if count > 1]:
        raise DataError(
            f"--tars: two files are called {repeated[0]!r}, so their samples would share "
            "ids; convert the folders one by one with different --name"
        )
    return Source(
        name=name,
        description={
            "reader": "image_text",
            "name": name,
            "split": split,
            "tars": listing_digest((path.name, path.stat().st_size) for path in paths),
        },
        samples=_drafts(paths, split, name),
    )


def _drafts(paths: list[Path], split: str, name: str) -> Iterator[Draft | Bad]:
    for path in paths:
        with path.open("rb") as file:
            for sample in scan_samples(path):
                if not sample.members:
                    continue  # members of other suffixes only
                identity = f"{name}/{path.stem}/{sample.key}"
                where = f"{path}:{sample.key}"
                image = sample.image()
                if image is None:
                    yield Bad(identity, "image: missing", f"{where}: no .jpg, .png or .webp")
                    continue
                try:
                    meta = plain_meta(_read(file, sample.members.get("json")), where)
                    captions = plain_captions(meta, _read(file, sample.members.get("txt")), where)
                except RecordError as error:
                    yield Bad(identity, "text: broken", str(error))
                    continue
                if not captions:
                    detail = f"{where}: neither a .txt nor a caption in the .json"
                    yield Bad(identity, "text: missing", detail)
                    continue
                yield Draft(
                    id=identity,
                    source=name,
                    split=split,
                    image=_read(file, image[0]),
                    where=where,
                    captions=captions,
                )


def _read(file: BinaryIO, member: Member | None) -> bytes:
    if member is None:
        return b""
    file.seek(member.data)
    return file.read(member.size)
