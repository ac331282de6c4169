"""The refer tool's layout: RefCOCO, RefCOCO+, RefCOCOg and all that was published in their form.

A data set is a folder with ``refs(SPLIT_BY).p`` and ``instances.json``, about photos of COCO. A
referred object becomes a region whose texts are its expressions; one record holds an image's
regions of one split, since some divisions (``google``) put objects of one image into several.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_tools.sources.base import Source
from data_tools.sources.files import ImageFolder, coco_names
from data_tools.sources.photo_owner import PhotoOwner, add_photos_of
from data_tools.sources.refer_layout import find_set, open_refer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``convert refcoco``."""
    parser.add_argument(
        "--root", type=Path, required=True, help="folder with refs(*).p, or its parent"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder with the photos")
    parser.add_argument("--split-by", help="which refs(SPLIT_BY).p: unc, umd, google, ...")
    parser.add_argument("--split", help="read this split only (default: all)")
    add_photos_of(parser)


def open_source(args: argparse.Namespace) -> Source:
    """Open from the command line's options."""
    return read_refcoco(
        args.root,
        args.images,
        split_by=args.split_by,
        split=args.split,
        photos_of=args.photos_of,
    )


def read_refcoco(
    root: Path,
    images: Path,
    *,
    split_by: str | None = None,
    split: str | None = None,
    photos_of: str | None = None,
) -> Source:
    """Open a data set in the refer layout. DataError says which file is missing or broken."""
    found = find_set(root, split_by, "refs", ("p",))
    return open_refer(
        "refcoco",
        found,
        ImageFolder(images),
        names=coco_names,
        owner=PhotoOwner.of(photos_of, found.name),
        split=split,
    )
