"""Flickr30k Entities in its official layout: captions, and phrases of captions with boxes.

``Annotations/ID.xml`` and ``Sentences/ID.txt`` (in ``annotations.zip`` or unpacked),
``train.txt``, ``val.txt``, ``test.txt`` with one id a line, photos in ``images/`` or
``flickr30k-images/``.

An *entity* (a numbered thing or group in one photo) becomes one region. Its texts are all phrases
that mention it, in the order of the sentences and with repetitions: the field counts, trains on
and evaluates every mention (427,193 / 14,433 / 14,481 in the full set), and a region drawn for a
batch is then a distinct thing rather than the same box under another phrase. ``attributes`` are
the entity's types (people, clothing, ...), by which results are broken down. An entity without a
box (the annotators' ``nobndbox``, or ``notvisual`` phrases) is left out; its words stay in the
captions.
"""

from __future__ import annotations

import argparse
import lzma
import re
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

from data_tools.sources.base import Bad, Draft, Drafts, Source, file_digest, listing_digest
from data_tools.sources.files import ImageFolder, SharedFile, parse_xml
from wholegrain.data.record import Box, Region, enclosing_box
from wholegrain.errors import DataError

SPLITS = ("train", "val", "test")
PHRASE = re.compile(r"\[/EN#(?P<entity>\d+)(?P<types>(?:/[^/\s\]]+)+) (?P<words>[^\]]*)\]")
_DAMAGED = (
    zipfile.BadZipFile,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
"""What `zipfile` raises of a member that is cut, altered, encrypted or of an unknown method."""
MEMBER_LIMIT = 1 << 20
"""Largest annotation file read, in bytes; the official ones stay below 20 kB."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``convert flickr30k_entities``."""
    parser.add_argument("--root", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--split", help="read this split only (default: all that have a list)")


def open_source(args: argparse.Namespace) -> Source:
    """Open from the command line's options."""
    return read_flickr30k_entities(args.root, split=args.split)


def read_flickr30k_entities(root: Path, *, split: str | None = None) -> Source:
    """Open the data set. DataError says which file or folder is missing."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; pass the folder with the split lists")
    left_out: Counter[str] = Counter()
    members = _read_splits(root, split, left_out)
    annotations = _open_annotations(root)
    places = [root / name for name in ("images", "flickr30k-images", "flickr30k_images")]
    folder = ImageFolder(next((place for place in places if place.is_dir()), places[0]))
    return Source(
        name="flickr30k_entities",
        description={
            "reader": "flickr30k_entities",
            "split": split,
            "splits": sorted({name for name, _ in members}),
            "lists": listing_digest((f"{name}/{image}", 0) for name, image in members),
            "annotations": annotations.digest(),
            "images": folder.digest(),
        },
        units=len(members),
        read=_Drafts(members, annotations, folder),
        total=len(members),
        left_out=left_out,
        published="flickr30k_entities",
    )


class _Annotations(Protocol):
    def read(self, member: str) -> bytes:
        """Contents of ``Annotations/ID.xml`` or ``Sentences/ID.txt``; KeyError if absent."""

    def digest(self) -> str: ...

    def name(self, member: str) -> str: ...


class _Zipped:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(SharedFile(path))
        except zipfile.BadZipFile as error:
            raise DataError(f"{path}: not a zip file ({error}); download it again") from None

    def read(self, member: str) -> bytes:
        info = self._zip.getinfo(member)
        if info.file_size > MEMBER_LIMIT:
            raise ValueError(f"{info.file_size} bytes, more than the limit of {MEMBER_LIMIT}")
        try:
            return self._zip.read(info)
        except _DAMAGED as error:
            raise ValueError(f"broken zip member ({error})") from None
        except OSError as error:
            if error.errno is not None:  # the disk's fault, and no member's
                raise
            raise ValueError(f"broken zip member ({error})") from None

    def digest(self) -> str:
        return file_digest(self.path)

    def name(self, member: str) -> str:
        return f"{self.path}:{member}"


class _Unpacked:
    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, member: str) -> bytes:
        path = self.root / member
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise KeyError(member) from None
        if size > MEMBER_LIMIT:
            raise ValueError(f"{size} bytes, more than the limit of {MEMBER_LIMIT}")
        return path.read_bytes()

    def digest(self) -> str:
        # Contents: an edited box seldom changes a file's size, and these files are small.
        files = (
            path for name in ("Annotations", "Sentences") for path in self.root.glob(f"{name}/*")
        )
        return listing_digest((f"{path.name} {file_digest(path)}", 0) for path in files)

    def name(self, member: str) -> str:
        return str(self.root / member)


def _open_annotations(root: Path) -> _Annotations:
    if (root / "Annotations").is_dir() and (root / "Sentences").is_dir():
        return _Unpacked(root)
    if (root / "annotations.zip").is_file():
        return _Zipped(root / "annotations.zip")
    raise DataError(
        f"{root}: neither annotations.zip nor the folders Annotations/ and Sentences/; "
        "unpack the official archive there"
    )


def _read_splits(root: Path, only: str | None, left_out: Counter[str]) -> list[tuple[str, str]]:
    """(split, image id) in the order train, val, test and, within one, of its list."""
    present = [name for name in SPLITS if (root / f"{name}.txt").is_file()]
    if only is not None and only not in present:
        listed = ", ".join(present) or "none"
        raise DataError(f"{root}: no split {only!r}: {only}.txt is missing; it has: {listed}")
    members = [
        (name, line.strip())
        for name in present
        if only in (None, name)
        for line in (root / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    if not members:
        raise DataError(f"{root}: no image listed; train.txt, val.txt or test.txt is needed")
    if odd := [image for _, image in members if not image.isdigit()]:
        raise DataError(f"{root}: {odd[0]!r} in a split list is no image id (digits only)")
    unique = list(dict.fromkeys(members))
    if len(unique) < len(members):
        left_out["image listed twice"] += len(members) - len(unique)
    return unique


class _Drafts:
    """``Source.read``: unit k is the k-th listed image."""

    def __init__(
        self, members: list[tuple[str, str]], annotations: _Annotations, folder: ImageFolder
    ) -> None:
        self._members, self._annotations, self._folder = members, annotations, folder

    def __call__(self, start: int, stop: int, left_out: Counter[str]) -> Drafts:
        for split, image in self._members[start:stop]:
            yield self._draft(split, image, left_out)

    def _draft(self, split: str, image: str, left_out: Counter[str]) -> Draft | Bad:
        identity = f"flickr30k/{image}"
        read, name = self._annotations.read, self._annotations.name
        member = f"Annotations/{image}.xml"
        try:
            size, boxes = parse_annotation(read(member))
            member = f"Sentences/{image}.txt"
            captions, entities = parse_sentences(read(member).decode("utf-8"))
        except KeyError:
            return Bad(identity, "annotation missing", name(member))
        except ValueError as error:
            return Bad(identity, "annotation broken", f"{name(member)}: {error}")
        boxless = [mentions for entity, mentions in entities.items() if entity not in boxes]
        if boxless:
            left_out["phrase without box"] += sum(len(mentions.words) for mentions in boxless)
        return Draft(
            id=identity,
            source="flickr30k_entities",
            split=split,
            image=self._folder.find(f"{image}.jpg"),
            where=name(f"Annotations/{image}.xml"),
            size=size,
            captions=captions,
            regions=tuple(
                _region(boxes[entity], mentions)
                for entity, mentions in entities.items()
                if entity in boxes
            ),
            photo=identity,
        )


class Mentions:
    """The phrases of one entity and the types they give it, both in the order of the text."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.types: list[str] = []


def parse_annotation(data: bytes) -> tuple[tuple[int, int], dict[str, list[Box]]]:
    """Read one XML: image (width, height) in px and the boxes (x, y, w, h) of each entity.

    The XML follows Pascal VOC: pixels count from 1 and both ends are inside the box, so a box over
    the whole of a 224 px image reads 1 to 224. Its left edge is therefore ``xmin - 1`` and its
    right edge ``xmax``, which makes 224 px wide what is 224 px wide. (Taking the numbers as edges,
    as some do, moves every box by half a pixel and makes it one pixel too small.)

    ValueError says what is missing or no number.
    """
    root = parse_xml(data)
    size = (_integer(root, "size/width"), _integer(root, "size/height"))
    boxes: dict[str, list[Box]] = {}
    for thing in root.iterfind("object"):
        for bound in thing.iterfind("bndbox"):
            left, top, right, bottom = (
                _integer(bound, name) for name in ("xmin", "ymin", "xmax", "ymax")
            )
            box = (left - 1.0, top - 1.0, right - left + 1.0, bottom - top + 1.0)
            for name in thing.iterfind("name"):
                owned = boxes.setdefault(name.text or "", [])
                if box not in owned:
                    owned.append(box)
    return size, boxes


def parse_sentences(text: str) -> tuple[tuple[str, ...], dict[str, Mentions]]:
    """Read one sentences file: plain captions, and the mentions of each entity by its number."""
    entities: dict[str, Mentions] = {}
    captions = []
    for line in text.split("\n"):  # not at U+2028 and the like, which stand inside of sentences
        for found in PHRASE.finditer(line):
            if not (words := found["words"].strip()):
                continue
            mentions = entities.setdefault(found["entity"], Mentions())
            mentions.words.append(words)
            types = found["types"].strip("/").split("/")
            mentions.types.extend(kind for kind in types if kind not in mentions.types)
        if caption := PHRASE.sub(r"\g<words>", line).strip():
            captions.append(caption)
    return tuple(captions), entities


def _region(boxes: list[Box], mentions: Mentions) -> Region:
    return Region(
        grain="region",
        box=enclosing_box(boxes),  # the merged-box protocol's answer
        texts=tuple(mentions.words),
        attributes=tuple(mentions.types),
        boxes=tuple(boxes) if len(boxes) > 1 else (),
    )


def _integer(element: ElementTree.Element, name: str) -> int:
    text = element.findtext(name)
    try:
        return int(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"<{name}> is {text!r} instead of a whole number") from None
