"""The refer tool's layout: RefCOCO, RefCOCO+, RefCOCOg and all that was published in their form.

A data set is a folder with ``refs(SPLIT_BY).p`` and ``instances.json``. A referred object becomes
a region whose texts are its expressions; one record holds an image's regions of one split, since
some divisions (``google``) put objects of one image into several splits.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.sources.base import Bad, Draft, Source, file_digest
from data_tools.sources.coco import CocoImage, image_entries, read_layout, xywh
from data_tools.sources.files import ImageFolder, coco_names, read_plain_pickle
from wholegrain.data.record import Box, Reference, Region
from wholegrain.errors import DataError

_REFS = re.compile(r"refs\((?P<split_by>.+)\)\.p")
_SPLIT_ORDER = ("train", "val", "test", "testA", "testB", "testC")


@dataclass(frozen=True, slots=True)
class _Ref:
    """One entry of the pickle, checked."""

    image_id: int
    ann_id: int
    ref_id: int
    split: str
    sentences: tuple[tuple[int, str], ...]
    """(sentence id, expression)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``convert refcoco``."""
    parser.add_argument(
        "--root", type=Path, required=True, help="folder with refs(*).p, or its parent"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder with the photos")
    parser.add_argument("--split-by", help="which refs(SPLIT_BY).p: unc, umd, google, ...")
    parser.add_argument("--split", help="read this split only (default: all)")


def open_source(args: argparse.Namespace) -> Source:
    """Open from the command line's options."""
    return read_refcoco(args.root, args.images, split_by=args.split_by, split=args.split)


def read_refcoco(
    root: Path, images: Path, *, split_by: str | None = None, split: str | None = None
) -> Source:
    """Open a data set in the refer layout. DataError says which file is missing or broken."""
    refs_file = _find_refs(root, split_by)
    split_by = _REFS.fullmatch(refs_file.name)["split_by"]  # type: ignore[index]
    instances = refs_file.with_name("instances.json")
    set_name = f"{refs_file.resolve().parent.name}-{split_by}"
    layout = read_layout(instances)
    entries = image_entries(instances, layout)
    left_out: Counter[str] = Counter()
    refs = _refs(refs_file, left_out)
    groups: dict[tuple[str, int], list[_Ref]] = defaultdict(list)
    for ref in refs:
        groups[ref.split, ref.image_id].append(ref)
    splits = {key[0] for key in groups}
    if split is not None:
        if split not in splits:
            raise DataError(f"{refs_file}: no split {split!r}; it has {', '.join(sorted(splits))}")
        groups = {key: group for key, group in groups.items() if key[0] == split}
    wanted = {ref.ann_id for group in groups.values() for ref in group}
    try:
        boxes = {
            annotation["id"]: xywh(annotation.get("bbox"))
            for annotation in layout["annotations"]
            if annotation["id"] in wanted
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{instances}: field annotations: {error!r}; every annotation needs an id and a bbox"
        ) from None
    folder = ImageFolder(images)
    return Source(
        name=set_name,
        description={
            "reader": "refcoco",
            "set": set_name,
            "split": split,
            "annotations": {path.name: file_digest(path) for path in (refs_file, instances)},
            "images": folder.digest(),
        },
        samples=_drafts(groups, entries, boxes, folder, set_name, refs_file),
        total=len(groups),
        left_out=left_out,
    )


def _find_refs(root: Path, split_by: str | None) -> Path:
    """The one ``refs(*).p`` that is meant, in ``root`` or in one of its folders."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; pass the folder that holds refs(*).p")
    found = sorted(
        path
        for path in [*root.glob("refs(*).p"), *root.glob("*/refs(*).p")]
        if _REFS.fullmatch(path.name)
    )
    if not found:
        raise DataError(f"{root}: no refs(*).p in it or in its folders; pass the data set's folder")
    chosen = [path for path in found if split_by in (None, _REFS.fullmatch(path.name)["split_by"])]  # type: ignore[index]
    if len(chosen) == 1:
        return chosen[0]
    listed = ", ".join(str(path.relative_to(root)) for path in found)
    if not chosen:
        raise DataError(f"{root}: no refs({split_by}).p; --split-by must name one of: {listed}")
    raise DataError(f"{root}: several refs files ({listed}); choose with --root and --split-by")


def _refs(path: Path, left_out: Counter[str]) -> list[_Ref]:
    entries = read_plain_pickle(path)
    if not isinstance(entries, list):
        raise DataError(f"{path}: a {type(entries).__name__} instead of a list of refs")
    refs = []
    for number, entry in enumerate(entries):
        try:
            sentences = tuple((int(s["sent_id"]), _expression(s)) for s in entry["sentences"])
            spoken = tuple(sentence for sentence in sentences if sentence[1])
            left_out["empty expression"] += len(sentences) - len(spoken)
            ref = _Ref(
                image_id=int(entry["image_id"]),
                ann_id=int(entry["ann_id"]),
                ref_id=int(entry["ref_id"]),
                split=str(entry["split"]),
                sentences=spoken,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path}: ref {number}: {error!r}; every ref needs image_id, ann_id, ref_id, split "
                "and sentences with sent_id and sent"
            ) from None
        if spoken:
            refs.append(ref)
    return refs


def _expression(sentence: dict[str, Any]) -> str:
    """``sent`` is the cleaned wording that all published results use; ``raw`` may be missing."""
    return str(sentence.get("sent") or sentence.get("raw") or "").strip()


def _drafts(
    groups: dict[tuple[str, int], list[_Ref]],
    entries: dict[int, CocoImage],
    boxes: dict[int, Box],
    folder: ImageFolder,
    set_name: str,
    file: Path,
) -> Iterator[Draft | Bad]:
    for split, image_id in sorted(groups, key=_by_split):
        refs = groups[split, image_id]
        identity = f"{set_name}/{split}/{image_id}"
        entry = entries.get(image_id)
        if entry is None or entry.size is None:
            detail = f"{file}: image {image_id} has no entry with a size in instances.json"
            yield Bad(identity, "image not listed", detail)
            continue
        if missing := [ref.ann_id for ref in refs if ref.ann_id not in boxes]:
            detail = f"{file}: image {image_id}: instances.json lacks annotations {missing}"
            yield Bad(identity, "annotation not listed", detail)
            continue
        yield Draft(
            id=identity,
            source=set_name,
            split=split,
            image=folder.find(*coco_names(entry.file_name, image_id)),
            where=f"{file}: image {image_id}",
            size=entry.size,
            regions=tuple(_region(ref, boxes[ref.ann_id], set_name) for ref in refs),
            license=entry.license,
        )


def _region(ref: _Ref, box: Box, set_name: str) -> Region:
    return Region(
        grain="region",
        box=box,
        texts=tuple(text for _, text in ref.sentences),
        ref=Reference(
            set=set_name,
            ref_id=ref.ref_id,
            sent_ids=tuple(number for number, _ in ref.sentences),
            split=ref.split,
        ),
    )


def _by_split(key: tuple[str, int]) -> tuple[int, str, int]:
    split, image_id = key
    rank = _SPLIT_ORDER.index(split) if split in _SPLIT_ORDER else len(_SPLIT_ORDER)
    return rank, split, image_id
