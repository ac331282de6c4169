"""What the sets in the refer tool's layout share: refs with expressions, and instances with boxes.

A set is a folder with a list of refs and ``instances.json``. A ref says of which annotations its
expressions speak: one, or several, or (gRefCOCO) none that the photo shows. One record holds what
is said of a photo in one split, since some divisions put objects of one photo into several.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from data_tools.sources.base import Bad, Draft, Drafts, Source, file_digest
from data_tools.sources.coco import CocoImage, image_entries, xywh
from data_tools.sources.files import read_json, read_plain_pickle
from data_tools.sources.photo_owner import PhotoOwner
from data_tools.sources.stream_json import read_lists
from wholegrain.data.record import Absent, Box, Reference, Region, enclosing_box
from wholegrain.errors import DataError

SPLIT_ORDER = ("train", "val", "test", "testA", "testB", "testC")
NO_TARGET = -1
"""The annotation that gRefCOCO names where the photo shows nothing of what is said."""

AnnId: TypeAlias = int | str


class Photos(Protocol):
    """Where photos lie: :class:`ImageFolder` or :class:`PhotoTree`."""

    def find(self, *names: str) -> Path: ...

    def digest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Ref:
    """One entry of the list of refs, checked; ``ann_ids`` is empty where nothing is meant."""

    image_id: int
    ann_ids: tuple[AnnId, ...]
    ref_id: int
    split: str
    sentences: tuple[tuple[int, str], ...]
    """(sentence id, expression)."""


@dataclass(frozen=True)
class ReferSet:
    """A set's files. ``name`` joins the folder's name and ``split_by``: ``refcoco-unc``."""

    name: str
    refs: Path

    @property
    def instances(self) -> Path:
        """The boxes, beside the refs."""
        return self.refs.with_name("instances.json")


def find_set(root: Path, split_by: str | None, stem: str, suffixes: tuple[str, ...]) -> ReferSet:
    """The one ``STEM(SPLIT_BY).SUFFIX`` that is meant, in ``root`` or in one of its folders."""
    pattern = re.compile(rf"{stem}\((?P<split_by>.+)\)\.(?:{'|'.join(suffixes)})")

    def named(division: str) -> str:
        return " or ".join(f"{stem}({division}).{suffix}" for suffix in suffixes)

    if not root.is_dir():
        raise DataError(f"{root}: no such folder; pass the folder that holds {named('*')}")
    found = {
        path: match["split_by"]
        for path in sorted([*root.glob(f"{stem}(*).*"), *root.glob(f"*/{stem}(*).*")])
        if (match := pattern.fullmatch(path.name))
    }
    if not found:
        raise DataError(f"{root}: no {named('*')} in it or in its folders; pass the set's folder")
    chosen = [path for path, division in found.items() if split_by in (None, division)]
    if len({path.with_suffix("") for path in chosen}) == 1:
        path = chosen[0]  # of a list in both forms, that in JSON: "json" sorts before "p"
        return ReferSet(f"{path.resolve().parent.name}-{found[path]}", path)
    listed = ", ".join(str(path.relative_to(root)) for path in found)
    if not chosen:
        raise DataError(
            f"{root}: no {named(split_by or '*')}; --split-by must name one of: {listed}"
        )
    raise DataError(f"{root}: several {stem} files ({listed}); choose with --root and --split-by")


def open_refer(
    reader: str,
    found: ReferSet,
    photos: Photos,
    *,
    names: Callable[[str, int], list[str]],
    owner: PhotoOwner,
    split: str | None,
) -> Source:
    """Open a set.

    Args:
        reader: name of the source.
        found: its files.
        photos: where its photos lie.
        names: the names under which a photo may lie, from its ``file_name`` and id.
        owner: whose photos these are.
        split: read this one only; None reads all.

    Raises:
        DataError: says which file is missing or broken.
    """
    left_out: Counter[str] = Counter()
    groups: dict[tuple[str, int], list[Ref]] = defaultdict(list)
    for ref in read_refs(found.refs, left_out):
        groups[ref.split, ref.image_id].append(ref)
    splits = {key[0] for key in groups}
    if split is not None:
        if split not in splits:
            listed = ", ".join(sorted(splits))
            raise DataError(f"{found.refs}: no split {split!r}; it has {listed}")
        groups = {key: group for key, group in groups.items() if key[0] == split}
    wanted = {ann_id for group in groups.values() for ref in group for ann_id in ref.ann_ids}
    entries, boxes = read_instances(found.instances, {key[1] for key in groups}, wanted)
    read = _Reader(found, groups, entries, boxes, photos, names, owner)
    return Source(
        name=found.name,
        description={
            "reader": reader,
            "set": found.name,
            "split": split,
            "annotations": {path.name: file_digest(path) for path in (found.refs, found.instances)},
            "images": photos.digest(),
            **owner.describe(read.photo(image_id)[1] for _, image_id in groups),
        },
        units=len(groups),
        read=read,
        total=len(groups),
        left_out=left_out,
        published=found.name,
    )


def read_refs(path: Path, left_out: Counter[str]) -> list[Ref]:
    """The list of refs, as a pickle of plain data (``.p``) or as JSON."""
    entries = read_json(path) if path.suffix == ".json" else read_plain_pickle(path)
    if not isinstance(entries, list):
        raise DataError(f"{path}: a {type(entries).__name__} instead of a list of refs")
    refs = []
    for number, entry in enumerate(entries):
        try:
            sentences = tuple((int(s["sent_id"]), expression(s)) for s in entry["sentences"])
            spoken = tuple(sentence for sentence in sentences if sentence[1])
            left_out["empty expression"] += len(sentences) - len(spoken)
            ref = Ref(
                image_id=int(entry["image_id"]),
                ann_ids=_targets(entry["ann_id"]),
                ref_id=int(entry["ref_id"]),
                split=str(entry["split"]),
                sentences=spoken,
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{path}: ref {number}: {error!r}; every ref needs image_id, ann_id, ref_id, split "
                "and sentences with sent_id and sent"
            ) from None
        if spoken:
            refs.append(ref)
    return refs


def expression(sentence: dict[str, Any]) -> str:
    """``sent`` is the cleaned wording that all published results use; ``raw`` may be missing."""
    return str(sentence.get("sent") or sentence.get("raw") or "").strip()


def read_instances(
    path: Path, images: set[int], annotations: set[AnnId]
) -> tuple[dict[int, CocoImage], dict[AnnId, Box]]:
    """The entries of these images and the boxes of these annotations, as far as there are any.

    Only they are held: gRefCOCO's file has all objects of COCO's training photos.
    """
    layout: dict[str, Any] = {"images": [], "licenses": []}
    boxes: dict[AnnId, Box] = {}
    needed = ("images", "annotations", "categories")
    try:
        for batch in read_lists(path, needed, optional=["licenses"]):
            if batch.key == "annotations":
                for entry in batch.items:
                    if (identity := _identity(entry["id"])) in annotations:
                        boxes[identity] = xywh(entry.get("bbox"))
            elif batch.key == "images":
                layout["images"] += [entry for entry in batch.items if entry.get("id") in images]
            elif batch.key == "licenses":
                layout["licenses"] += batch.items
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: field annotations: {error!r}; every annotation needs an id and a bbox"
        ) from None
    return image_entries(path, layout), boxes


def _targets(value: Any) -> tuple[AnnId, ...]:
    listed = value if isinstance(value, list | tuple) else [value]
    found = dict.fromkeys(_identity(item) for item in listed)
    return tuple(identity for identity in found if identity != NO_TARGET)


def _identity(value: Any) -> AnnId:
    """Most sets number their annotations; ReferItGame's may be texts such as ``19579_3``."""
    if isinstance(value, str) and not value.lstrip("-").isdecimal():
        return value
    return int(value)


class _Reader:
    """``Source.read``: unit k is the k-th of the (split, image) pairs in their order."""

    def __init__(
        self,
        found: ReferSet,
        groups: dict[tuple[str, int], list[Ref]],
        entries: dict[int, CocoImage],
        boxes: dict[AnnId, Box],
        photos: Photos,
        names: Callable[[str, int], list[str]],
        owner: PhotoOwner,
    ) -> None:
        self._set, self._file = found.name, found.refs
        self._groups, self._entries, self._boxes = groups, entries, boxes
        self._photos, self._names, self._owner = photos, names, owner
        self._keys = sorted(groups, key=_by_split)

    def __call__(self, start: int, stop: int, left_out: Counter[str]) -> Drafts:
        return (self._sample(*key) for key in self._keys[start:stop])

    def photo(self, image_id: int) -> tuple[Path, str | None]:
        """Where an image's photo lies, and its identity."""
        entry = self._entries.get(image_id)
        file = self._photos.find(*self._names(entry.file_name if entry else "", image_id))
        return file, self._owner.identity(file, image_id)

    def _sample(self, split: str, image_id: int) -> Draft | Bad:
        refs = self._groups[split, image_id]
        identity = f"{self._set}/{split}/{image_id}"
        where = f"{self._file}: image {image_id}"
        entry = self._entries.get(image_id)
        if entry is None or entry.size is None:
            detail = f"{where} has no entry with a size in instances.json"
            return Bad(identity, "image not listed", detail)
        missing = [each for ref in refs for each in ref.ann_ids if each not in self._boxes]
        if missing:
            detail = f"{where}: instances.json lacks annotations {missing}"
            return Bad(identity, "annotation not listed", detail)
        file, photo = self.photo(image_id)
        return Draft(
            id=identity,
            source=self._set,
            split=split,
            image=file,
            where=where,
            size=entry.size,
            regions=tuple(self._region(ref) for ref in refs if ref.ann_ids),
            license=entry.license,
            photo=photo,
            absent=tuple(
                Absent(texts=_texts(ref), ref=self._reference(ref))
                for ref in refs
                if not ref.ann_ids
            ),
        )

    def _region(self, ref: Ref) -> Region:
        boxes = [self._boxes[ann_id] for ann_id in ref.ann_ids]
        return Region(
            grain="region",
            box=boxes[0] if len(boxes) == 1 else enclosing_box(boxes),
            texts=_texts(ref),
            ref=self._reference(ref),
            boxes=tuple(boxes) if len(boxes) > 1 else (),
        )

    def _reference(self, ref: Ref) -> Reference:
        numbers = tuple(number for number, _ in ref.sentences)
        return Reference(set=self._set, ref_id=ref.ref_id, sent_ids=numbers, split=ref.split)


def _texts(ref: Ref) -> tuple[str, ...]:
    return tuple(text for _, text in ref.sentences)


def _by_split(key: tuple[str, int]) -> tuple[int, str, int]:
    split, image_id = key
    rank = SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER)
    return rank, split, image_id
