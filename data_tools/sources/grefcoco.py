"""gRefCOCO: expressions about one object, several, or none, in the refer tool's layout.

``grefs(unc).json`` (or ``.p``) beside ``instances.json``, about photos of COCO train2014. An
expression that means several objects becomes a region with several ``boxes`` and the ``box`` around
them; one that means nothing in the photo goes into the record's ``absent``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_tools.sources.base import Source
from data_tools.sources.files import ImageFolder, coco_names
from data_tools.sources.photo_owner import PhotoOwner, add_photos_of
from data_tools.sources.refer_layout import find_set, open_refer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``convert grefcoco``."""
    parser.add_argument(
        "--root", type=Path, required=True, help="folder with grefs(*).json, or its parent"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder with the photos")
    parser.add_argument("--split-by", help="which grefs(SPLIT_BY): unc")
    parser.add_argument("--split", help="read this split only (default: all)")
    add_photos_of(parser)


def open_source(args: argparse.Namespace) -> Source:
    """Open from the command line's options."""
    return read_grefcoco(
        args.root,
        args.images,
        split_by=args.split_by,
        split=args.split,
        photos_of=args.photos_of,
    )


def read_grefcoco(
    root: Path,
    images: Path,
    *,
    split_by: str | None = None,
    split: str | None = None,
    photos_of: str | None = None,
) -> Source:
    """Open the data set. DataError says which file is missing or broken."""
    found = find_set(root, split_by, "grefs", ("json", "p"))
    return open_refer(
        "grefcoco",
        found,
        ImageFolder(images),
        names=coco_names,
        owner=PhotoOwner.of(photos_of, found.name),
        split=split,
    )
