"""Data sets of labelled images, read from the layouts they are published in.

Lists come from JSON and text files and from folders. The few-shot files and caches that circulate
as pickles are never read: unpickling runs what the file says.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from finetune.shots.layouts import LAYOUTS, Layout
from wholegrain.errors import DataError

_MAX_LIST_BYTES = 256 << 20
_SHOWN = 3


class Item(NamedTuple):
    """A labelled image."""

    path: str
    """Below the data set's folder, with forward slashes."""
    label: int
    """Number of its class."""


@dataclass(frozen=True)
class LabelledSet:
    """The images of a data set and the names of its classes."""

    name: str
    title: str
    """How tables call it."""
    folder: Path
    """What the items' paths are relative to."""
    classes: tuple[str, ...]
    """Names by label, as the set spells them."""
    train: tuple[Item, ...]
    """Empty where there is nothing to learn from."""
    test: tuple[Item, ...]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of classes, paths and labels, not of pixels nor of where the set lies."""
        digest = hashlib.sha256()
        for part in (self.classes, self.train, self.test):
            digest.update(json.dumps(part, ensure_ascii=False).encode())
        return digest.hexdigest()


def open_set(name: str, root: Path, own: Mapping[str, Layout] | None = None) -> LabelledSet:
    """Reads the lists of a data set, and looks whether its images are there.

    Args:
        name: a known layout's, or one of `own`.
        root: the folder of the data sets' folders.
        own: further layouts by name.

    Raises:
        DataError: a file or image is missing, or the lists are not what the layout says; names the
            file, where it comes from and the remedy.
    """
    layout = (own or {}).get(name) or LAYOUTS[name]
    folder = root / layout.folder
    if not folder.is_dir():
        raise DataError(
            f"{folder}: the folder of {layout.title} is missing; set data.root, or lay out the "
            f"files of {layout.source}"
        )
    readers = {
        "split": _read_split,
        "variants": _read_variants,
        "folders": _read_folders,
        "numbered": _read_numbered,
    }
    classes, train, test = readers[layout.kind](folder, layout)
    found = LabelledSet(name, layout.title, folder, classes, tuple(train), tuple(test))
    _check(found, layout)
    return found


def own_layout(name: str, folder: str, images: str, split: str) -> Layout:
    """The layout of a data set of the user's own."""
    return Layout(name, "split", folder, images, split, None, "the data set `data.own` names")


def read_triples(
    path: Path, layout: Layout, parts: Sequence[str]
) -> dict[str, list[tuple[Item, str]]]:
    """Items with their class names from a JSON of lists of [path, label, class name].

    Args:
        path: of the file.
        layout: of the data set; paths become relative to its folder.
        parts: keys that the file must have.

    Raises:
        DataError: it is missing or malformed, or a path leads out of the data set.
    """
    values = _read_json(path, layout)
    if not isinstance(values, dict) or any(not isinstance(values.get(p), list) for p in parts):
        raise DataError(
            f"{path}: must be an object with the lists {', '.join(parts)}; fetch it again from "
            f"{layout.source}"
        )
    return {
        part: [
            _item(f"{path}: {part}[{number}]", value, layout)
            for number, value in enumerate(values[part])
        ]
        for part in parts
    }


def _item(where: str, value: Any, layout: Layout) -> tuple[Item, str]:
    sound = (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
        and isinstance(value[2], str)
    )
    if not sound:
        raise DataError(f"{where} is {value!r:.80}; it must be [path, label, class name]")
    relative = PurePosixPath(value[0])
    if relative.is_absolute() or ".." in relative.parts or "\0" in value[0]:
        raise DataError(f"{where} is {value!r:.80}; the path must lie inside the data set")
    return Item(str(PurePosixPath(layout.images) / relative), value[1]), value[2]


# --- the kinds of layouts -----------------------------------------------------------------------

_Read = tuple[tuple[str, ...], Iterable[Item], Iterable[Item]]


def _read_split(folder: Path, layout: Layout) -> _Read:
    path = folder / layout.labels
    found = read_triples(path, layout, ("train", "test"))
    names: dict[int, str] = {}
    for item, name in (pair for part in found.values() for pair in part):
        if names.setdefault(item.label, name) != name:
            raise DataError(
                f"{path}: label {item.label} is {names[item.label]!r} and {name!r}; fetch the file "
                f"again from {layout.source}"
            )
    labels = sorted(names)
    if labels != list(range(len(labels))):
        raise DataError(
            f"{path}: the labels are not 0 to {len(labels) - 1} (the last is "
            f"{labels[-1] if labels else 'absent'}); number the classes from 0 without gaps"
        )
    train, test = ([item for item, _ in found[part]] for part in ("train", "test"))
    return tuple(names[label] for label in labels), train, test


def _read_variants(folder: Path, layout: Layout) -> _Read:
    classes = tuple(_read_lines(folder / layout.labels, layout))
    label_of = {name: label for label, name in enumerate(classes)}
    found = []
    for part in ("train", "test"):
        path, items = folder / f"images_variant_{part}.txt", []
        for number, line in enumerate(_read_lines(path, layout), start=1):
            image, _, name = line.partition(" ")
            if name not in label_of or PurePosixPath(image).name != image:
                raise DataError(
                    f"{path}:{number}: {line!r:.80} is not an image's name and a variant of "
                    f"{layout.labels}; fetch the files again from {layout.source}"
                )
            items.append(Item(f"{layout.images}/{image}.jpg", label_of[name]))
        found.append(items)
    return classes, found[0], found[1]


def _read_folders(folder: Path, layout: Layout) -> _Read:
    names = _read_class_names(folder, layout)
    ids = _folders_in(folder / layout.images, layout)
    unnamed = [each for each in ids if each not in names]
    if unnamed:
        raise DataError(
            f"{folder / layout.labels}: does not name {', '.join(unnamed[:_SHOWN])}, which "
            f"{folder / layout.images} has a folder of; copy the file from ImageNet's folder, or "
            "move what is no class out of the way"
        )
    train: list[Item] = []
    if layout.train is not None:
        if (others := _folders_in(folder / layout.train, layout)) != ids:
            odd = sorted(set(others) ^ set(ids))
            raise DataError(
                f"{folder}: {layout.train} and {layout.images} differ in their class folders "
                f"({', '.join(odd[:_SHOWN])}); extract {layout.source} again, the validation "
                "images sorted into folders as the training images are"
            )
        train = _files_of(folder, layout.train, ids)
    return tuple(names[each] for each in ids), train, _files_of(folder, layout.images, ids)


def _read_numbered(folder: Path, layout: Layout) -> _Read:
    names = _read_class_names(folder, layout)
    # The numbers are ImageNet's labels, and those follow the sorted ids.
    classes = tuple(names[each] for each in sorted(names))
    present = set(_folders_in(folder / layout.images, layout))
    numbers = [str(label) for label in range(len(classes))]
    if missing := [number for number in numbers if number not in present]:
        raise DataError(
            f"{folder / layout.images}: there is no folder {missing[0]}, of the class "
            f"{classes[int(missing[0])]!r}; extract {layout.source} again"
        )
    return classes, (), _files_of(folder, layout.images, numbers)


def _read_class_names(folder: Path, layout: Layout) -> dict[str, str]:
    """Names by WordNet id, from lines such as ``n01440764 tench``."""
    path, names = folder / layout.labels, {}
    for number, line in enumerate(_read_lines(path, layout), start=1):
        wordnet_id, _, name = line.partition(" ")
        if not name or wordnet_id in names:
            raise DataError(
                f"{path}:{number}: {line!r:.60} is no new class; each line must be a WordNet id, "
                "a space and a name"
            )
        names[wordnet_id] = name
    return names


# --- files --------------------------------------------------------------------------------------


def _folders_in(folder: Path, layout: Layout) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise _unreadable(folder, layout, error) from None
    if not found:
        raise DataError(
            f"{folder}: holds no folder a class; sort the images of {layout.source} into one "
            "folder for each class"
        )
    return found


def _files_of(folder: Path, images: str, classes: Sequence[str]) -> list[Item]:
    items = []
    for label, name in enumerate(classes):
        with os.scandir(folder / images / name) as entries:
            files = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_file())
        items += [Item(f"{images}/{name}/{file}", label) for file in files]
    return items


def _read_lines(path: Path, layout: Layout) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, layout, error) from None
    return [line.strip() for line in lines if line.strip()]


def _read_json(path: Path, layout: Layout) -> Any:
    try:
        if path.stat().st_size > _MAX_LIST_BYTES:
            raise DataError(f"{path}: over {_MAX_LIST_BYTES >> 20} MiB; this is no list of images")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, layout, error) from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not JSON ({error}); fetch it again from {layout.source}"
        ) from None


def _unreadable(path: Path, layout: Layout, error: OSError | UnicodeDecodeError) -> DataError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return DataError(
        f"{path}: cannot be read ({reason}); {layout.title} comes from {layout.source}: put the "
        "file there, or correct data.root"
    )


def _check(found: LabelledSet, layout: Layout) -> None:
    where = found.folder / layout.labels
    if layout.classes is not None and len(found.classes) != layout.classes:
        raise DataError(
            f"{where}: {len(found.classes)} classes, but {layout.title} has {layout.classes}; "
            f"fetch the files again from {layout.source}"
        )
    for part, items in (("train", found.train), ("test", found.test)):
        if part == "train" and layout.test_only:
            continue
        if absent := set(range(len(found.classes))) - {item.label for item in items}:
            raise DataError(
                f"{where}: no {part} image of the class {found.classes[min(absent)]!r} (and "
                f"{len(absent) - 1} others); fetch the files again from {layout.source}"
            )
        if layout.kind in ("folders", "numbered"):  # what was listed is there
            continue
        missing = [item.path for item in items if not (found.folder / item.path).is_file()]
        if missing:
            raise DataError(
                f"{found.folder / missing[0]}: missing, and {len(missing) - 1} others of "
                f"{len(items)} {part} images of {layout.title}; extract {layout.source} again"
            )
