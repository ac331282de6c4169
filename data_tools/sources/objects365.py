"""Objects365: boxes of 365 categories; version 2's ``zhiyuan_objv2_{train,val}.json``.

COCO's layout with photos in patch folders (``images/v1/patch8/objects365_v1_00420917.jpg``), found
wherever below ``--images`` the patches were unpacked. A category such as ``Cabinet/shelf`` gives
names for one thing: its box gets the texts ``Cabinet`` and ``shelf``. Names are taken as published,
misspelt ones too. Boxes around crowds are left out; pictures of things (``isfake``) and reflections
(``isreflected``) stay, for their box does show what the text says.

The training file has 25.4 million boxes. Held are 18 bytes a box and 40 an image: boxes as
float32, given out rounded to a thousandth of a pixel; what else is known of an image is read from
its place in the file. Opening takes about twice that for a while.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_tools.sources.base import Bad, Draft, Drafts, Source, file_digest
from data_tools.sources.coco import xywh
from data_tools.sources.photo_tree import PhotoTree
from data_tools.sources.split_name import split_of_name
from data_tools.sources.stream_json import Batch, read_element, read_lists
from wholegrain.data.record import Box, Region
from wholegrain.errors import DataError

_DIGITS = 3
_MERGE = 1 << 20  # annotations that are put into their places in one go


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``convert objects365``."""
    parser.add_argument(
        "--annotations", type=Path, required=True, help="zhiyuan_objv2_train.json or _val.json"
    )
    parser.add_argument(
        "--images", type=Path, required=True, help="folder above the patches of photos"
    )
    parser.add_argument("--split", help="name of the split (default: from the file name, or train)")


def open_source(args: argparse.Namespace) -> Source:
    """Open from the command line's options."""
    return read_objects365(args.annotations, args.images, split=args.split)


def read_objects365(annotations: Path, images: Path, *, split: str | None = None) -> Source:
    """Open one split. DataError if the file is missing, broken or of another layout."""
    split = split or split_of_name(annotations)
    left_out: Counter[str] = Counter()
    gathered = _Gathered(annotations, left_out)
    for batch in read_lists(annotations, ["images", "annotations", "categories"]):
        gathered.add(batch)
    boxes, index = gathered.finish()
    tree = PhotoTree(images)
    left_out["image without object"] += len(gathered.ids) - len(index.ids)
    return Source(
        name="objects365",
        description={
            "reader": "objects365",
            "split": split,
            "annotations": {annotations.name: file_digest(annotations)},
            "images": tree.digest(),
        },
        units=len(index.ids),
        read=_Reader(annotations, index, boxes, tree, split).read,
        total=len(index.ids),
        left_out=left_out,
        published="objects365",
    )


@dataclass(frozen=True)
class _Boxes:
    """All boxes, those of an image beside each other.

    ``xywh`` float32 (N, 4) px; ``category`` uint16 (N,), a number in ``names``.
    """

    xywh: NDArray[np.float32]
    category: NDArray[np.uint16]
    names: list[tuple[str, ...]]

    def of(self, first: int, last: int) -> Iterator[tuple[Box, tuple[str, ...]]]:
        """(box, texts) of boxes ``first`` .. ``last - 1``."""
        rows = self.xywh[first:last].astype(np.float64).round(_DIGITS).tolist()
        for row, category in zip(rows, self.category[first:last].tolist(), strict=True):
            yield xywh(row), self.names[category]


@dataclass(frozen=True)
class _Index:
    """Images with boxes by ascending id; ``entry`` (N, 2): the bytes of each in the file, and
    ``boxes`` (N, 2): the numbers of its first box and of that behind its last.
    """

    ids: NDArray[np.int64]
    entry: NDArray[np.int64]
    boxes: NDArray[np.int64]


class _Gathered:
    """What one pass over the file collects, in whatever order its lists come."""

    def __init__(self, path: Path, left_out: Counter[str]) -> None:
        self.path, self.left_out = path, left_out
        self.ids = np.zeros(0, np.int64)
        self._places: list[NDArray[np.int64]] = []  # (n, 3): id, first byte, end
        self._names: dict[int, tuple[str, ...]] = {}
        # (image ids, category ids, boxes) of each batch
        self._chunks: list[tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]] = []

    def add(self, batch: Batch) -> None:
        """Take a batch of one of the three lists; DataError names an entry without a field."""
        take = {"images": self._images, "annotations": self._annotations}.get(batch.key)
        try:
            (take or self._categories)(batch)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{self.path}: {batch.key} from [{batch.first}] on: {error!r}; images need id, "
                "width, height and file_name, annotations image_id, category_id and bbox, "
                "categories id and name"
            ) from None

    def _images(self, batch: Batch) -> None:
        ids = np.array([int(entry["id"]) for entry in batch.items], np.int64)
        self._places.append(np.column_stack([ids, batch.starts, batch.ends]))

    def _categories(self, batch: Batch) -> None:
        for entry in batch.items:
            parts = [part.strip() for part in entry["name"].split("/")]
            texts = tuple(dict.fromkeys(part for part in parts if part))
            if not texts:
                raise ValueError(f"category {entry['id']} has the name {entry['name']!r}")
            self._names[int(entry["id"])] = texts

    def _annotations(self, batch: Batch) -> None:
        kept = [entry for entry in batch.items if not entry.get("iscrowd", 0)]
        self.left_out["crowd box"] += len(batch.items) - len(kept)
        images = np.array([int(entry["image_id"]) for entry in kept], np.int64)
        categories = np.array([int(entry["category_id"]) for entry in kept], np.int32)
        boxes = np.array([xywh(entry["bbox"]) for entry in kept], np.float64).reshape(-1, 4)
        with np.errstate(over="ignore"):  # infinite is as wrong as too large, and found later
            self._chunks.append((images, categories, boxes.astype(np.float32)))

    def finish(self) -> tuple[_Boxes, _Index]:
        """Sort boxes by image. DataError for an unknown category or image, or one listed twice."""
        places = np.concatenate(self._places) if self._places else np.zeros((0, 3), np.int64)
        places = places[np.argsort(places[:, 0], kind="stable")]
        self.ids = places[:, 0]
        twice = np.flatnonzero(np.diff(self.ids) == 0)
        if len(twice):
            raise self._fault("images", "id", int(self.ids[twice[0]]), "it is listed twice")
        known = np.array(sorted(self._names), np.int32)
        counts = np.zeros(len(self.ids), np.int64)
        for images, categories, _ in self._chunks:
            if len(odd := categories[~np.isin(categories, known)]):
                raise self._fault("annotations", "category_id", int(odd[0]), "no such category")
            rows = self._rows(images)
            np.add.at(counts, rows, 1)
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        boxes = np.empty((total, 4), np.float32)
        category = np.empty(total, np.uint16)
        cursor = ends - counts
        while self._chunks:
            images, categories, found = self._merged()
            rows = self._rows(images)
            order = np.argsort(rows, kind="stable")
            rows = rows[order]
            owners, firsts, sizes = np.unique(rows, return_index=True, return_counts=True)
            target = cursor[rows] + np.arange(len(rows)) - np.repeat(firsts, sizes)
            boxes[target] = found[order]
            category[target] = np.searchsorted(known, categories[order])
            cursor[owners] += sizes
        names = [self._names[number] for number in known.tolist()]
        used = counts > 0
        spans = np.column_stack([ends - counts, ends])
        index = _Index(self.ids[used], places[used, 1:], spans[used])
        return _Boxes(boxes, category, names), index

    def _merged(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """The next chunks together, taken out of the list so that their memory is free again."""
        taken, size = [], 0
        while self._chunks and size < _MERGE:
            taken.append(self._chunks.pop(0))
            size += len(taken[-1][0])
        images, categories, boxes = zip(*taken, strict=True)
        return np.concatenate(images), np.concatenate(categories), np.concatenate(boxes)

    def _rows(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = np.searchsorted(self.ids, images)
        inside = np.minimum(rows, max(len(self.ids) - 1, 0))
        wrong = self.ids[inside] != images if len(self.ids) else np.ones(len(images), bool)
        if wrong.any():
            odd = int(images[wrong][0])
            raise self._fault("annotations", "image_id", odd, "no such image is listed")
        return rows

    def _fault(self, where: str, field: str, value: int, what: str) -> DataError:
        return DataError(
            f"{self.path}: {where}: {field} {value}: {what}; download the file again, or mend it"
        )


@dataclass(frozen=True)
class _Reader:
    path: Path
    index: _Index
    boxes: _Boxes
    tree: PhotoTree
    split: str

    def read(self, start: int, stop: int, left_out: Counter[str]) -> Drafts:
        with self.path.open("rb") as file:
            for number in range(start, min(stop, len(self.index.ids))):
                yield self._sample(number, file)

    def _sample(self, number: int, file: BinaryIO) -> Draft | Bad:
        image_id = int(self.index.ids[number])
        identity = f"objects365/{image_id}"
        where = f"{self.path}: image {image_id}"
        entry = read_element(file, *self.index.entry[number].tolist(), self.path)
        try:
            size, file_name = _about(entry)
        except (KeyError, TypeError, ValueError) as error:
            detail = f"{where}: {error!r}; it needs width, height and file_name"
            return Bad(identity, "annotation broken", detail)
        boxes = self.boxes.of(*self.index.boxes[number].tolist())
        return Draft(
            id=identity,
            source="objects365",
            split=self.split,
            image=self.tree.find(file_name),
            where=where,
            size=size,
            regions=tuple(Region(grain="object", box=box, texts=texts) for box, texts in boxes),
            photo=identity,
        )


def _about(entry: dict[str, Any]) -> tuple[tuple[int, int], str]:
    name = entry["file_name"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"file_name is {name!r}")
    return (int(entry["width"]), int(entry["height"])), name
