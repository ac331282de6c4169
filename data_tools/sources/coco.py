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
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.sources.base import Bad, Draft, Source, file_digest
from data_tools.sources.files import ImageFolder, coco_names, read_json
from wholegrain.data.record import Box, Region
from wholegrain.errors import DataError


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


def open_source(args: argparse.Namespace) -> Source:
    """Open from the command line's options."""
    return read_coco(args.images, args.captions, args.instances, split=args.split)


def read_coco(
    images: Path, captions: Path | None, instances: Path | None, *, split: str | None = None
) -> Source:
    """Open COCO annotations. DataError if neither file is given or one has another layout."""
    files = [path for path in (captions, instances) if path is not None]
    if not files:
        raise DataError("coco: nothing to read; pass --captions FILE, --instances FILE or both")
    folder = ImageFolder(images)
    split = split or _split_of(files)
    entries: dict[int, CocoImage] = {}
    texts: dict[int, list[str]] = {}
    objects: dict[int, list[Region]] = {}
    left_out: Counter[str] = Counter()
    if instances is not None:
        layout = read_layout(instances)
        entries.update(image_entries(instances, layout))
        objects = _objects(instances, layout, left_out)
    if captions is not None:
        layout = read_json(captions)
        texts = _captions(captions, layout, left_out)
        if isinstance(layout, dict) and isinstance(layout.get("images"), list):
            entries = image_entries(captions, layout) | entries
    used = sorted(texts.keys() | objects.keys())
    left_out["image without caption or object"] += len(entries.keys() - set(used))
    return Source(
        name="coco",
        description={
            "reader": "coco",
            "split": split,
            "annotations": {path.name: file_digest(path) for path in files},
            "images": folder.digest(),
        },
        samples=_drafts(used, entries, texts, objects, folder, split, files[0]),
        total=len(used),
        left_out=left_out,
    )


def read_layout(path: Path) -> dict[str, Any]:
    """Read an instances JSON and check its three lists. DataError names the missing one."""
    layout = read_json(path)
    for name in ("images", "annotations", "categories"):
        if not isinstance(layout, dict) or not isinstance(layout.get(name), list):
            raise DataError(f"{path}: no list {name!r}; pass a file in COCO's instances layout")
    return layout


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
    except (KeyError, TypeError, AttributeError, ValueError) as error:
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
    except (TypeError, ValueError):
        return math.nan, math.nan, math.nan, math.nan
    return x, y, width, height


def _objects(path: Path, layout: dict[str, Any], left_out: Counter[str]) -> dict[int, list[Region]]:
    names = category_names(path, layout)
    objects: dict[int, list[Region]] = defaultdict(list)
    for number, annotation in enumerate(layout["annotations"]):
        try:
            if annotation.get("iscrowd", 0):
                # One box around many things is no object to be found.
                left_out["crowd box"] += 1
                continue
            name = names[annotation["category_id"]]
            objects[int(annotation["image_id"])] += _concepts(annotation, name)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(
                f"{path}: annotations[{number}]: {error!r}; every annotation needs image_id, bbox "
                "and a category_id that is among the categories"
            ) from None
    return objects


def _concepts(annotation: dict[str, Any], name: str) -> list[Region]:
    box = xywh(annotation["bbox"])
    attributes, phrases = (_texts(annotation.get(key)) for key in ("attributes", "phrases"))
    found = [Region(grain="object", box=box, texts=(name,), attributes=attributes)]
    if phrases:
        found.append(Region(grain="region", box=box, texts=phrases, attributes=attributes))
    return found


def _texts(value: Any) -> tuple[str, ...]:
    """A list of texts, or nothing: some tools export an ``attributes`` of another kind."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        return ()
    return tuple(text for text in value if text.strip())


def _captions(path: Path, layout: Any, left_out: Counter[str]) -> dict[int, list[str]]:
    texts: dict[int, list[str]] = defaultdict(list)
    try:
        if isinstance(layout.get("annotations"), list):
            pairs = ((a["image_id"], a["caption"]) for a in layout["annotations"])
        else:
            pairs = ((image_id, text) for image_id, found in layout.items() for text in found)
        for image_id, text in pairs:
            if text.strip():
                texts[int(image_id)].append(text.strip())
            else:
                left_out["empty caption"] += 1
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path}: {error!r}; captions must be COCO's "
            '{"annotations": [{"image_id", "caption"}]} or a mapping {image id: [captions]}'
        ) from None
    return texts


def _drafts(
    used: list[int],
    entries: dict[int, CocoImage],
    texts: dict[int, list[str]],
    objects: dict[int, list[Region]],
    folder: ImageFolder,
    split: str,
    file: Path,
) -> Iterator[Draft | Bad]:
    for image_id in used:
        entry = entries.get(image_id, CocoImage(image_id, "", None, None))
        if image_id in objects and entry.size is None:
            yield Bad(
                f"coco/{image_id}",
                "image not listed",
                f"{file}: image {image_id} has objects but no width and height under 'images'",
            )
            continue
        yield Draft(
            id=f"coco/{image_id}",
            source="coco",
            split=split,
            image=folder.find(*coco_names(entry.file_name, image_id)),
            where=f"{file}: image {image_id}",
            size=entry.size,
            captions=tuple(texts.get(image_id, ())),
            regions=tuple(objects.get(image_id, ())),
            license=entry.license,
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
