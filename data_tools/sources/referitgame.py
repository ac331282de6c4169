"""ReferItGame (RefCLEF): expressions about photos of SAIAPR TC-12, in the refer tool's layout.

``refs(unc).p`` or ``refs(berkeley).p`` beside ``instances.json``; the photos as unpacked from
``saiapr_tc-12.zip``: ``saiapr_tc-12/NN/images/ID.jpg``, NN being the thousands of the id, or all in
one folder. Published results use the division ``berkeley`` (train, val, test).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_tools.sources.base import Source
from data_tools.sources.photo_owner import PhotoOwner
from data_tools.sources.photo_tree import PhotoTree
from data_tools.sources.refer_layout import find_set, open_refer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``convert referitgame``."""
    parser.add_argument(
        "--root", type=Path, required=True, help="folder with refs(*).p, or its parent"
    )
    parser.add_argument(
        "--images", type=Path, required=True, help="folder saiapr_tc-12 with the photos"
    )
    parser.add_argument("--split-by", help="which refs(SPLIT_BY).p: berkeley or unc")
    parser.add_argument("--split", help="read this split only (default: all)")


def open_source(args: argparse.Namespace) -> Source:
    """Open from the command line's options."""
    return read_referitgame(args.root, args.images, split_by=args.split_by, split=args.split)


def read_referitgame(
    root: Path, images: Path, *, split_by: str | None = None, split: str | None = None
) -> Source:
    """Open the data set. DataError says which file is missing or broken."""
    found = find_set(root, split_by, "refs", ("p",))
    return open_refer(
        "referitgame",
        found,
        PhotoTree(images),
        names=_names,
        owner=PhotoOwner("saiapr", usual="saiapr"),
        split=split,
    )


def _names(file_name: str, image_id: int) -> list[str]:
    official = f"saiapr_tc-12/{image_id // 1000:02d}/images/{image_id}.jpg"
    return [official, file_name] if file_name else [official]
