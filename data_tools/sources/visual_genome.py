"""Visual Genome: region descriptions, and objects with their attributes.

The files of version 1.2 and later, beside each other: ``image_data.json``,
``region_descriptions.json``, ``objects.json`` and ``attributes.json``; the photos in ``VG_100K``
and ``VG_100K_2``. A region's phrase becomes a region concept; an object one whose texts are its
names and whose attributes come from ``attributes.json``, matched by ``object_id``.

About half of the photos are COCO's: their records carry COCO's id as ``photo``, so that a test
photo of COCO or RefCOCO is known here too. A region or object listed twice in one image is taken
once, with all attributes. Many boxes stick out of the photo or have no area; what becomes of them
is the same for all sets, see :mod:`data_tools.mend`.

The annotations take 1.7 GB. Held are, an image, its ids, its size and its place in each file (some
120 bytes); :func:`read_visual_genome` parses the files once to find the places, and reading parses
an image's entries anew.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_tools.sources.base import Bad, Draft, Drafts, Source, file_digest
from data_tools.sources.coco import xywh
from data_tools.sources.photo_tree import PhotoTree
from data_tools.sources.stream_json import TOP, read_element, read_lists
from wholegrain.data.record import Box, Region
from wholegrain.errors import DataError

_FILES = {
    "regions": ("region_descriptions.json", "regions"),
    "objects": ("objects.json", "objects"),
    "attributes": ("attributes.json", "attributes"),
}
"""What an image's entry holds: (file, key of the list in an entry)."""

_PHOTOS = ("VG_100K/{}.jpg", "VG_100K_2/{}.jpg", "{}.jpg")
_NO_COCO = -1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``convert visual_genome``."""
    parser.add_argument(
        "--root", type=Path, required=True, help="folder with image_data.json and the other files"
    )
    parser.add_argument(
        "--images", type=Path, help="folder with VG_100K and VG_100K_2 (default: the root)"
    )
    parser.add_argument(
        "--without", nargs="+", default=[], choices=sorted(_FILES), help="leave these out"
    )
    parser.add_argument("--split", default="train", help="name of the split (default: train)")


def open_source(args: argparse.Namespace) -> Source:
    """Open from the command line's options."""
    return read_visual_genome(
        args.root, args.images or args.root, without=args.without, split=args.split
    )


def read_visual_genome(
    root: Path, images: Path, *, without: list[str] | tuple[str, ...] = (), split: str = "train"
) -> Source:
    """Open the data set. DataError says which file is missing or of another layout."""
    kinds = [kind for kind in _FILES if kind not in without]
    if not {"regions", "objects"} & set(kinds):
        raise DataError("visual_genome: --without leaves neither regions nor objects to read")
    if "objects" not in kinds:
        kinds = ["regions"]  # attributes belong to objects
    left_out: Counter[str] = Counter()
    listed = _image_data(root / "image_data.json")
    entries = {kind: _Entries(root / _FILES[kind][0], _FILES[kind][1], left_out) for kind in kinds}
    tree = PhotoTree(images)
    used = np.unique(
        np.concatenate([entries[kind].filled() for kind in kinds if kind != "attributes"])
    )
    left_out["image without region or object"] += int(np.isin(listed.ids, used, invert=True).sum())
    names = ["image_data.json", *(_FILES[kind][0] for kind in kinds)]
    reader = _Reader(used, listed, entries, tree, split)
    return Source(
        name="visual_genome",
        description={
            "reader": "visual_genome",
            "split": split,
            "annotations": {name: file_digest(root / name) for name in names},
            "images": tree.digest(),
        },
        units=len(used),
        read=reader.read,
        total=len(used),
        left_out=left_out,
        published="visual_genome",
    )


@dataclass(frozen=True)
class _ImageData:
    """Rows of image_data.json by ascending id; ``coco`` is -1 for photos that are not COCO's."""

    path: Path
    ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    coco: NDArray[np.int64]

    def row(self, image_id: int) -> tuple[tuple[int, int], int] | None:
        """(width, height) in px and COCO's id; None for an image that is not listed."""
        at = int(np.searchsorted(self.ids, image_id))
        if at == len(self.ids) or self.ids[at] != image_id:
            return None
        width, height = self.sizes[at].tolist()
        return (width, height), int(self.coco[at])


def _image_data(path: Path) -> _ImageData:
    rows = []
    for batch in read_lists(path, [TOP]):
        for number, entry in enumerate(batch.items, batch.first):
            try:
                coco = entry.get("coco_id")
                rows.append(
                    (
                        int(entry["image_id"]),
                        int(entry["width"]),
                        int(entry["height"]),
                        _NO_COCO if coco is None else int(coco),
                    )
                )
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{path}: entry {number}: {error!r}; every entry needs image_id, width, height "
                    "and coco_id (a number or null)"
                ) from None
    table = np.array(sorted(rows), np.int64).reshape(-1, 4)
    if len(table) and not (np.diff(table[:, 0]) > 0).all():
        again = int(table[1:, 0][np.diff(table[:, 0]) == 0][0])
        raise DataError(f"{path}: image {again} is listed twice; download the file again")
    return _ImageData(path, table[:, 0], table[:, 1:3].astype(np.int32), table[:, 3])


class _Entries:
    """Where each image's entry stands in one annotation file."""

    def __init__(self, path: Path, key: str, left_out: Counter[str]) -> None:
        self.path, self.key = path, key
        rows: list[NDArray[np.int64]] = []
        for batch in read_lists(path, [TOP]):
            about = [self._about(entry, n) for n, entry in enumerate(batch.items, batch.first)]
            columns = np.array(about, np.int64).reshape(-1, 2)
            rows.append(np.column_stack([columns, batch.starts, batch.ends]))
        table = np.concatenate(rows) if rows else np.zeros((0, 4), np.int64)
        table = table[np.argsort(table[:, 0], kind="stable")]
        repeated = np.concatenate([[False], np.diff(table[:, 0]) == 0])[: len(table)]
        left_out[f"image listed again in {path.name}"] += int(repeated.sum())
        self._table = table[~repeated]  # (images, 4): id, number of things, first byte, end

    def _about(self, entry: dict[str, Any], number: int) -> tuple[int, int]:
        try:
            # Regions name their image "id", the other files "image_id".
            identity = entry["image_id"] if "image_id" in entry else entry["id"]
            return int(identity), len(entry[self.key])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.path}: entry {number}: {error!r}; every entry needs an image_id (or id) "
                f"and a list {self.key!r}, as in version 1.2 and later"
            ) from None

    def filled(self) -> NDArray[np.int64]:
        """Ids of images of which something is said."""
        return self._table[self._table[:, 1] > 0, 0]

    def things(self, file: BinaryIO, image_id: int) -> list[dict[str, Any]]:
        """What the file lists of an image; empty for one that it does not know."""
        at = int(np.searchsorted(self._table[:, 0], image_id))
        if at == len(self._table) or self._table[at, 0] != image_id:
            return []
        start, end = self._table[at, 2:].tolist()
        return list(read_element(file, start, end, self.path)[self.key])


@dataclass(frozen=True)
class _Reader:
    used: NDArray[np.int64]
    listed: _ImageData
    entries: dict[str, _Entries]
    tree: PhotoTree
    split: str

    def read(self, start: int, stop: int, left_out: Counter[str]) -> Drafts:
        with ExitStack() as stack:
            files = {
                kind: stack.enter_context(found.path.open("rb"))
                for kind, found in self.entries.items()
            }
            for image_id in self.used[start:stop].tolist():
                yield self._sample(image_id, files, left_out)

    def _sample(
        self, image_id: int, files: dict[str, BinaryIO], left_out: Counter[str]
    ) -> Draft | Bad:
        identity = f"vg/{image_id}"
        row = self.listed.row(image_id)
        if row is None:
            detail = f"{self.listed.path}: no entry for image {image_id}, which has annotations"
            return Bad(identity, "image not listed", detail)
        size, coco = row
        things = {kind: found.things(files[kind], image_id) for kind, found in self.entries.items()}
        gathered = _Gathered(left_out)
        for kind, gather in (("regions", gathered.region), ("objects", gathered.object)):
            if fault := _each(things.get(kind, []), gather):
                detail = f"{self.entries[kind].path}: image {image_id}: {kind}{fault}"
                return Bad(identity, "annotation broken", detail)
        if fault := _each(things.get("attributes", []), gathered.describe):
            detail = f"{self.entries['attributes'].path}: image {image_id}: attributes{fault}"
            return Bad(identity, "annotation broken", detail)
        where = f"{self.listed.path.parent}: image {image_id}"
        regions = gathered.regions()
        if not regions:
            detail = f"{where}: none of its regions and objects has a text"
            return Bad(identity, "no usable region", detail)
        return Draft(
            id=identity,
            source="visual_genome",
            split=self.split,
            image=self.tree.find(*(name.format(image_id) for name in _PHOTOS)),
            where=where,
            size=size,
            regions=regions,
            photo=identity if coco == _NO_COCO else f"coco/{coco}",
        )


def _each(things: list[Any], take: Callable[[dict[str, Any]], None]) -> str | None:
    """Hand over all; what is wrong with the first that does not fit, if one does not."""
    for number, thing in enumerate(things):
        try:
            take(thing)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return f"[{number}]: {error!r}"
    return None


@dataclass
class _Object:
    box: Box
    names: tuple[str, ...]
    attributes: list[str] = field(default_factory=list)


class _Gathered:
    """The regions and objects of one image, each once."""

    def __init__(self, left_out: Counter[str]) -> None:
        self._left_out = left_out
        self._phrases: dict[tuple[Box, str], None] = {}
        self._objects: dict[tuple[Box, tuple[str, ...]], _Object] = {}
        self._by_id: dict[int, _Object | None] = {}

    def region(self, thing: dict[str, Any]) -> None:
        """Take an entry of region_descriptions.json."""
        phrase = thing["phrase"].strip()
        if not phrase:
            self._left_out["empty phrase"] += 1
            return
        key = _box(thing), phrase
        self._left_out["repeated region"] += key in self._phrases
        self._phrases[key] = None

    def object(self, thing: dict[str, Any]) -> None:
        """Take an entry of objects.json."""
        identity = int(thing["object_id"])
        names = tuple(_once(thing["names"]))
        self._by_id[identity] = None
        if not names:
            self._left_out["object without name"] += 1
            return
        key = _box(thing), names
        self._left_out["repeated object"] += key in self._objects
        self._by_id[identity] = self._objects.setdefault(key, _Object(*key))

    def describe(self, thing: dict[str, Any]) -> None:
        """Take an entry of attributes.json, where ``attributes`` is absent if there are none."""
        identity = int(thing["object_id"])
        attributes = _once(thing.get("attributes") or [])
        if identity not in self._by_id:
            self._left_out["attribute of an unknown object"] += len(attributes)
        elif found := self._by_id[identity]:
            found.attributes += [text for text in attributes if text not in found.attributes]

    def regions(self) -> tuple[Region, ...]:
        """Region concepts, then objects, each in the order of its file."""
        phrases = (
            Region(grain="region", box=box, texts=(phrase,)) for box, phrase in self._phrases
        )
        objects = (
            Region(
                grain="object",
                box=found.box,
                texts=found.names,
                attributes=tuple(found.attributes),
            )
            for found in self._objects.values()
        )
        return (*phrases, *objects)


def _box(thing: dict[str, Any]) -> Box:
    # Objects have w and h, regions width and height.
    width = thing["w"] if "w" in thing else thing["width"]
    height = thing["h"] if "h" in thing else thing["height"]
    return xywh((thing["x"], thing["y"], width, height))


def _once(texts: Any) -> list[str]:
    """Texts without blanks and repetitions, in order."""
    return list(dict.fromkeys(_stripped(texts)))


def _stripped(texts: Any) -> Iterator[str]:
    if not isinstance(texts, list):
        raise TypeError(f"a list of texts expected, not {texts!r}")
    for text in texts:
        if stripped := text.strip():
            yield stripped
