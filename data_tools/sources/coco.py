"""COCO: captions JSON as image concepts, instances JSON as object concepts.

Captions come in COCO's layout, ``{"annotations": [{"image_id": 9, "caption": "..."}]}``, or as a
plain mapping ``{"9": ["...", "..."]}``. One record an image; an object's text is its category.
An annotation may carry two lists of texts beyond COCO's layout: ``attributes`` of the object, and
``phrases`` that describe it, which become a region concept with the same box.
"""

from __future__ import annotations

import argparse
import math
import re
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.sources.base import Bad, Draft, Drafts, Source, file_digest
from data_tools.sources.files import ImageFolder, coco_names, read_json
from data_tools.sources.photo_owner import PhotoOwner, add_photos_of
from data_tools.sources.stream_json import read_lists
from wholegrain.data.record import Box, Region
from wholegrain.errors import DataError

_FIELDS = ("id", "name", "file_name", "width", "height", "license")


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An entry of ``images``; ``size`` is (width, height) in px, or None where absent."""

    id: int
    file_name: str
    size: tuple[int, int] | None
    license: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``convert coco``."""
    parser.add_argument("--images", type=Path, required=True, help="folder with the photos")
    parser.add_argument("--captions", type=Path, help="captions_*.json, or {image id: [captions]}")
    parser.add_argument("--instances", type=Path, help="instances_*.json")
    parser.add_argument("--split", help="name of the split (default: from the file name, or train)")
    add_photos_of(parser)


def open_source(args: argparse.Namespace) -> Source:
    """Open from the command line's options."""
    return read_coco(
        args.images,
        args.captions,
        args.instances,
        split=args.split,
        name=args.name,
        photos_of=args.photos_of,
    )


def read_coco(
    images: Path,
    captions: Path | None,
    instances: Path | None,
    *,
    split: str | None = None,
    name: str | None = None,
    photos_of: str | None = None,
) -> Source:
    """Open COCO annotations. DataError if neither file is given or one has another layout.

    A record is called after its photo's identity, ``coco/391895``, see :class:`PhotoOwner`; where
    it has none, after the set: ``NAME/ID``.

    The files are read item by item. What stays in memory is the texts, sizes and licences, and 64
    bytes an object.
    """
    files = [path for path in (captions, instances) if path is not None]
    if not files:
        raise DataError("coco: nothing to read; pass --captions FILE, --instances FILE or both")
    folder = ImageFolder(images)
    split = split or _split_of(files)
    entries: dict[int, CocoImage] = {}
    texts: dict[int, list[str]] = {}
    objects: _Objects | None = None
    left_out: Counter[str] = Counter()
    if instances is not None:
        entries, objects = _read_instances(instances, left_out)
    if captions is not None:
        listed, texts = _read_captions(captions, left_out)
        entries = listed | entries
    used = sorted(texts.keys() | (objects.images() if objects else set()))
    left_out["image without caption or object"] += len(entries.keys() - set(used))
    photos = _Photos(entries, folder, PhotoOwner.of(photos_of, name), name or "own")
    return Source(
        name="coco",
        description={
            "reader": "coco",
            "split": split,
            "annotations": {path.name: file_digest(path) for path in files},
            "images": folder.digest(),
            **photos.owner.describe(photos.of(image_id).photo for image_id in used),
        },
        units=len(used),
        read=_Drafts(used, photos, texts, objects, split, files[0]),
        total=len(used),
        left_out=left_out,
        published=_published(files),
    )


def image_entries(path: Path, layout: dict[str, Any]) -> dict[int, CocoImage]:
    """The ``images`` list by id, with the name of each licence."""
    try:
        licenses = {entry["id"]: entry["name"] for entry in layout.get("licenses", [])}
        return {
            int(entry["id"]): CocoImage(
                id=int(entry["id"]),
                file_name=str(entry.get("file_name", "")),
                size=(entry["width"], entry["height"]) if "width" in entry else None,
                license=_license(entry.get("license"), licenses),
            )
            for entry in layout["images"]
        }
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: field images: an entry without {error}; pass a file in COCO's layout"
        ) from None


def category_names(path: Path, layout: dict[str, Any]) -> dict[int, str]:
    """Category id -> name."""
    try:
        return {entry["id"]: str(entry["name"]) for entry in layout["categories"]}
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: field categories: an entry without {error}; pass a file in COCO's layout"
        ) from None


def xywh(value: Any) -> Box:
    """COCO's ``bbox``: top-left x, y, width, height in px, 0-based edges, taken as they are.

    What is not four numbers becomes four NaN, so that the record's own check rejects it with the
    rest of that sample, instead of one bad box stopping the whole conversion here.
    """
    try:
        x, y, width, height = (float(number) for number in value)
    except (TypeError, ValueError, OverflowError):  # a whole number of 400 digits is too large
        return math.nan, math.nan, math.nan, math.nan
    return x, y, width, height


class _Objects:
    """The objects of all images in arrays: millions of them, and shared by forked processes."""

    def __init__(self) -> None:
        self._image, self._category = array("q"), array("q")
        self._boxes = array("d")
        self._more: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {}

    def add(self, annotation: dict[str, Any]) -> None:
        """Take one annotation; KeyError, TypeError or AttributeError where it is of no use."""
        image, category = int(annotation["image_id"]), annotation["category_id"]
        box = xywh(annotation["bbox"])
        more = _texts(annotation.get("attributes")), _texts(annotation.get("phrases"))
        self._category.append(category)
        self._image.append(image)
        self._boxes.extend(box)
        if any(more):
            self._more[len(self._image) - 1] = more

    def finish(self, names: dict[int, str]) -> int | None:
        """Sort by image; the number of an object whose category has no name, if there is one."""
        self._names = names
        images = np.frombuffer(self._image, dtype=np.int64)
        self._order = np.argsort(images, kind="stable")
        self._sorted = images[self._order]
        categories = np.frombuffer(self._category, dtype=np.int64)
        unknown = np.flatnonzero(~np.isin(categories, list(names)))
        return int(unknown[0]) if len(unknown) else None

    def category(self, number: int) -> int:
        return self._category[number]

    def images(self) -> set[int]:
        return set(np.unique(self._sorted).tolist())

    def of(self, image: int) -> tuple[Region, ...]:
        """The concepts of one image, in the order of the file."""
        first, last = np.searchsorted(self._sorted, [image, image + 1])
        found: list[Region] = []
        for number in self._order[first:last].tolist():
            box: Box = tuple(self._boxes[4 * number : 4 * number + 4])  # type: ignore[assignment]
            name = self._names[self._category[number]]
            attributes, phrases = self._more.get(number, ((), ()))
            found.append(Region(grain="object", box=box, texts=(name,), attributes=attributes))
            if phrases:
                found.append(Region(grain="region", box=box, texts=phrases, attributes=attributes))
        return tuple(found)


def _read_instances(path: Path, left_out: Counter[str]) -> tuple[dict[int, CocoImage], _Objects]:
    objects = _Objects()
    layout: dict[str, Any] = {"images": [], "categories": [], "licenses": []}
    numbers = array("q")  # of the annotations taken
    keys = ("images", "annotations", "categories")
    for batch in read_lists(path, keys, optional=["licenses"]):
        if batch.key != "annotations":
            layout[batch.key] += map(_slim, batch.items)
            continue
        for number, annotation in enumerate(batch.items, batch.first):
            try:
                if annotation.get("iscrowd", 0):
                    # One box around many things is no object to be found.
                    left_out["crowd box"] += 1
                else:
                    objects.add(annotation)
                    numbers.append(number)
            except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
                raise _unusable(path, number, error) from None
    unknown = objects.finish(category_names(path, layout))
    if unknown is not None:
        raise _unusable(path, numbers[unknown], KeyError(objects.category(unknown)))
    return image_entries(path, layout), objects


def _unusable(path: Path, number: int, error: Exception) -> DataError:
    return DataError(
        f"{path}: annotations[{number}]: {error!r}; every annotation needs image_id, bbox "
        "and a category_id that is among the categories"
    )


def _slim(entry: dict[str, Any]) -> dict[str, Any]:
    """An image, category or licence without addresses and dates, which are most of an image's."""
    return {key: entry[key] for key in _FIELDS if key in entry}


def _texts(value: Any) -> tuple[str, ...]:
    """A list of texts, or nothing: some tools export an ``attributes`` of another kind."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        return ()
    return tuple(text for text in value if text.strip())


def _read_captions(
    path: Path, left_out: Counter[str]
) -> tuple[dict[int, CocoImage], dict[int, list[str]]]:
    """Images listed beside the captions, if any, and captions by image."""
    layout: dict[str, Any] = {"images": [], "licenses": []}
    texts: dict[int, list[str]] = defaultdict(list)
    is_coco = False
    try:
        for batch in read_lists(path, (), optional=("annotations", *layout)):
            if batch.key != "annotations":
                layout[batch.key] += map(_slim, batch.items)
                continue
            is_coco = True
            for annotation in batch.items:
                _add_caption(texts, annotation["image_id"], annotation["caption"], left_out)
        if not is_coco:
            for image_id, found in read_json(path).items():
                for text in found:
                    _add_caption(texts, image_id, text, left_out)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: {error!r}; captions must be COCO's "
            '{"annotations": [{"image_id", "caption"}]} or a mapping {image id: [captions]}'
        ) from None
    return image_entries(path, layout), texts


def _add_caption(
    texts: dict[int, list[str]], image_id: Any, text: Any, left_out: Counter[str]
) -> None:
    if stripped := text.strip():
        texts[int(image_id)].append(stripped)
    else:
        left_out["empty caption"] += 1


@dataclass(frozen=True, slots=True)
class _Photo:
    """What is known of a photo; ``id`` is its record's."""

    entry: CocoImage
    file: Path
    photo: str | None
    id: str


@dataclass(frozen=True, slots=True)
class _Photos:
    """The photos by their number; ``name`` stands in the ids of those that are nobody else's."""

    entries: dict[int, CocoImage]
    folder: ImageFolder
    owner: PhotoOwner
    name: str

    def of(self, image_id: int) -> _Photo:
        entry = self.entries.get(image_id, CocoImage(image_id, "", None, None))
        file = self.folder.find(*coco_names(entry.file_name, image_id))
        photo = self.owner.identity(file, image_id)
        return _Photo(entry, file, photo, photo or f"{self.name}/{image_id}")


class _Drafts:
    """``Source.read``: unit k is the image with the k-th smallest id."""

    def __init__(
        self,
        used: list[int],
        photos: _Photos,
        texts: dict[int, list[str]],
        objects: _Objects | None,
        split: str,
        file: Path,
    ) -> None:
        self._used, self._photos, self._texts, self._objects = used, photos, texts, objects
        self._split, self._file = split, file

    def __call__(self, start: int, stop: int, left_out: Counter[str]) -> Drafts:
        for image_id in self._used[start:stop]:
            found = self._photos.of(image_id)
            objects = self._objects.of(image_id) if self._objects else ()
            where = f"{self._file}: image {image_id}"
            if objects and found.entry.size is None:
                detail = f"{where} has objects but no width and height under 'images'"
                yield Bad(found.id, "image not listed", detail)
                continue
            yield Draft(
                id=found.id,
                source="coco",
                split=self._split,
                image=found.file,
                where=where,
                size=found.entry.size,
                captions=tuple(self._texts.get(image_id, ())),
                regions=objects,
                license=found.entry.license,
                photo=found.photo,
            )


def _license(number: Any, names: dict[Any, str]) -> str | None:
    if number is None:
        return None
    return names.get(number, f"coco licence {number}")


def _split_of(files: list[Path]) -> str:
    """``instances_val2017.json`` -> ``val``; ``train`` where the names do not say."""
    for path in files:
        if found := re.search(r"(train|val|test)", path.stem):
            return found.group(1)
    return "train"


def _published(files: list[Path]) -> str | None:
    """``instances_val2017.json`` -> ``coco2017``; None where the year is not in all names."""
    years = {found[1] if (found := re.search(r"(2014|2017)", path.stem)) else "" for path in files}
    return f"coco{years.pop()}" if len(years) == 1 and "" not in years else None
