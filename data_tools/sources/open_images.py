"""Open Images: the human-drawn boxes of 600 classes; tables as published for V4 to V7.

``oidv6-train-annotations-bbox.csv`` (or that of validation or test) with the columns ImageID,
LabelName, XMin, XMax, YMin, YMax and IsGroupOf among others, names of classes in
``oidv7-class-descriptions-boxable.csv`` (with a heading; that of V6 has none), photos as
``ID.jpg`` in one folder or in folders below it.

Boxes are shares of the photo's sides, so its size is taken from its header when it is read, without
an EXIF rotation: a record's boxes refer to the stored pixels. Boxes around a group of things
(IsGroupOf) are left out; drawn things (IsDepiction), hidden and cut ones stay.

The training table has 14.6 million rows. Held are 20 bytes an image: its id and the place of its
rows, which are neighbours in the published files; a table where they are not is refused.
"""

from __future__ import annotations

import argparse
import csv
import re
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.sources.base import Bad, Draft, Drafts, Source, file_digest
from data_tools.sources.photo_tree import PhotoTree
from data_tools.sources.split_name import split_of_name
from wholegrain.data.record import Box, Region
from wholegrain.data.shard_image import MAX_IMAGE_BYTES, ImageHeader, probe_image
from wholegrain.errors import DataError

_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
_ID = re.compile(rb"[0-9a-f]{16}")
_HEADER_BYTES = 1 << 16
_LONGEST_LINE = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``convert open_images``."""
    parser.add_argument(
        "--boxes", type=Path, required=True, help="such as oidv6-train-annotations-bbox.csv"
    )
    parser.add_argument(
        "--classes", type=Path, required=True, help="such as class-descriptions-boxable.csv"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder with the photos")
    parser.add_argument("--split", help="name of the split (default: from the file name, or train)")


def open_source(args: argparse.Namespace) -> Source:
    """Open from the command line's options."""
    return read_open_images(args.boxes, args.classes, args.images, split=args.split)


def read_open_images(
    boxes: Path, classes: Path, images: Path, *, split: str | None = None
) -> Source:
    """Open one split. DataError if a file is missing or has other columns."""
    split = split or split_of_name(boxes)
    left_out: Counter[str] = Counter()
    names = _class_names(classes)
    table = _scan(boxes, left_out)
    tree = PhotoTree(images)
    return Source(
        name="open_images",
        description={
            "reader": "open_images",
            "split": split,
            "annotations": {path.name: file_digest(path) for path in (boxes, classes)},
            "images": tree.digest(),
        },
        units=len(table.ids),
        read=_Reader(boxes, table, names, tree, split).read,
        total=len(table.ids),
        left_out=left_out,
        published="open_images",
    )


def _class_names(path: Path) -> dict[str, str]:
    """``/m/01g317`` -> ``Person``."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path of the class names") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: no table of text ({error}); download the file again") from None
    if rows and rows[0][0] == "LabelName":
        rows = rows[1:]
    for number, row in enumerate(rows, 1):
        if len(row) != 2 or not row[0].startswith("/") or not row[1].strip():
            raise DataError(
                f"{path}: row {number} is {row!r}; each must hold a label such as /m/01g317 and a "
                "name (the file of boxable classes)"
            )
    if not rows:
        raise DataError(f"{path}: no class in it; download the file again")
    return {label: name.strip() for label, name in rows}


@dataclass(frozen=True)
class _Table:
    """Images with a box to keep, in the order of the file: ``ids`` uint64 (16 hex digits),
    ``starts`` the first byte of an image's rows, ``lengths`` their bytes. ``columns`` are the
    places of ``_COLUMNS`` in a row.
    """

    columns: tuple[int, ...]
    ids: NDArray[np.uint64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]


def _scan(path: Path, left_out: Counter[str]) -> _Table:
    """Find the rows of each image. DataError where they are not neighbours."""
    ids, starts, lengths = array("Q"), array("q"), array("i")
    seen = array("Q")
    current, begin, kept, groups = b"", 0, 0, 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path of the boxes") from None
    with file:
        heading = file.readline(_LONGEST_LINE)
        columns = _columns(path, heading)
        first_column, group_column = columns[0], columns[-1]
        place = len(heading)

        def finish() -> None:
            if not current:
                return
            seen.append(int(current, 16))
            if kept:
                ids.append(int(current, 16))
                starts.append(begin)
                lengths.append(place - begin)
            else:  # of the others, reading counts them
                left_out["box around a group"] += groups
                left_out["image with boxes around groups only"] += 1

        while line := file.readline(_LONGEST_LINE):
            cells = line.rstrip(b"\r\n").split(b",")
            image = cells[first_column] if len(cells) > first_column else b""
            if image != current:
                finish()
                if not _ID.fullmatch(image):
                    raise _odd_row(path, place, line)
                current, begin, kept, groups = image, place, 0, 0
            # A row that is too short is kept here; reading names it as that image's fault.
            if len(cells) > group_column and cells[group_column] == b"1":
                groups += 1
            else:
                kept += 1
            place += len(line)
        finish()
    _check_neighbours(path, np.frombuffer(seen, np.uint64) if seen else np.zeros(0, np.uint64))
    return _Table(
        columns,
        np.array(ids, np.uint64),
        np.array(starts, np.int64),
        np.array(lengths, np.int32),
    )


def _columns(path: Path, heading: bytes) -> tuple[int, ...]:
    names = heading.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").strip().split(",")
    if missing := [name for name in _COLUMNS if name not in names]:
        raise DataError(
            f"{path}: no column {missing[0]!r} in the first line; pass the table of boxes "
            "(*-annotations-bbox.csv) as it was published"
        )
    return tuple(names.index(name) for name in _COLUMNS)


def _odd_row(path: Path, place: int, line: bytes) -> DataError:
    number = 1
    with path.open("rb") as file:
        while file.tell() < place:
            file.readline(_LONGEST_LINE)
            number += 1
    return DataError(
        f"{path}: line {number}: {line[:60]!r} does not begin with an image id of 16 hex digits; "
        "download the file again"
    )


def _check_neighbours(path: Path, seen: NDArray[np.uint64]) -> None:
    unique, counts = np.unique(seen, return_counts=True)
    if not len(again := unique[counts > 1]):
        return
    image = b"%016x" % int(again[0])
    with path.open("rb") as file:
        runs, number, before = 0, 0, b""
        while runs < 2 and (line := file.readline(_LONGEST_LINE)):
            runs += image in line and image not in before
            number, before = number + 1, line
    raise DataError(
        f"{path}: line {number}: image {image.decode()} again, after rows of others; the rows of "
        "an image must be neighbours, sort the file by ImageID"
    )


@dataclass(frozen=True)
class _Reader:
    path: Path
    table: _Table
    names: dict[str, str]
    tree: PhotoTree
    split: str

    def read(self, start: int, stop: int, left_out: Counter[str]) -> Drafts:
        with self.path.open("rb") as file:
            for number in range(start, min(stop, len(self.table.ids))):
                file.seek(int(self.table.starts[number]))
                rows = file.read(int(self.table.lengths[number]))
                yield self._sample(f"{int(self.table.ids[number]):016x}", rows, left_out)

    def _sample(self, image: str, rows: bytes, left_out: Counter[str]) -> Draft | Bad:
        identity = f"openimages/{image}"
        where = f"{self.path}: image {image}"
        photo = self.tree.find(f"{image}.jpg", *self._folders(image))
        try:
            header = _header(photo)
        except FileNotFoundError:
            return Bad(identity, "image: missing", f"{photo}: no such file")
        except OSError as error:
            return Bad(identity, "image: unreadable", f"{photo}: {error}")
        except DataError as error:
            return Bad(identity, "image: not an image", str(error))
        size = (header.width, header.height)
        regions = []
        for number, line in enumerate(rows.decode("utf-8", "replace").splitlines()):
            try:
                thing = self._thing(line.split(","), size)
            except (IndexError, ValueError) as error:
                detail = f"{where}: its row {number}: {line[:120]!r}: {error}"
                return Bad(identity, "annotation broken", detail)
            except KeyError as error:
                detail = f"{where}: its row {number}: class {error} is not in the class names"
                return Bad(identity, "unknown class", detail)
            if thing is None:
                left_out["box around a group"] += 1
            else:
                regions.append(Region(grain="object", box=thing[1], texts=(thing[0],)))
        return Draft(
            id=identity,
            source="open_images",
            split=self.split,
            image=photo,
            where=where,
            size=size,
            regions=tuple(regions),
            photo=identity,
        )

    def _folders(self, image: str) -> list[str]:
        """Where the published archives put a photo: train_0 .. train_f by its first digit."""
        names = {"val": ("validation", "val"), "train": (f"train_{image[0]}", "train")}
        return [f"{name}/{image}.jpg" for name in names.get(self.split, (self.split,))]

    def _thing(self, cells: list[str], size: tuple[int, int]) -> tuple[str, Box] | None:
        """Name and xywh box in px of a row; None for a group. KeyError for an unknown class."""
        _, label, *shares, group = (cells[column] for column in self.table.columns)
        left, right, top, bottom = map(float, shares)
        if group.strip() == "1":
            return None
        x, y = left * size[0], top * size[1]
        return self.names[label], (x, y, right * size[0] - x, bottom * size[1] - y)


def _header(photo: Path) -> ImageHeader:
    """Kind and size of a photo. The header is short but for a rare one with a large profile."""
    with photo.open("rb") as file:
        start = file.read(_HEADER_BYTES)
        try:
            return probe_image(start, str(photo))
        except DataError:
            if len(start) < _HEADER_BYTES:
                raise
        return probe_image(start + file.read(MAX_IMAGE_BYTES), str(photo))
