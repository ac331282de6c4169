"""Scenes on disk, in the layouts that the converters `coco` and `refcoco` read.

OUT/images/SPLIT_INDEX.jpg
OUT/captions_SPLIT.json     COCO captions
OUT/instances_SPLIT.json    COCO instances; annotations also carry `attributes` and `phrases`
OUT/instances.json          the same for all splits, beside the refer files
OUT/refs(scenes).p          refer layout: unambiguous expressions, with their `program`
OUT/refs(phrases).p         refer layout: region phrases, which other objects may fit too
OUT/scenes.json             the configuration that rendered them
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from data_tools.scenes.backdrop import PLACES
from data_tools.scenes.captions import write_captions, write_phrases
from data_tools.scenes.config import SPLITS, SceneConfig
from data_tools.scenes.expressions import write_expressions
from data_tools.scenes.kinds import KINDS
from data_tools.scenes.programs import Item
from data_tools.scenes.scene import Scene, render_scene, scene_rng
from wholegrain.errors import DataError

_CONFIG_FILE: Final = "scenes.json"
_QUALITY: Final = 92
_CHUNK: Final = 16
_IDS_PER_SPLIT: Final = 10_000_000
_IDS_PER_IMAGE: Final = 32
"""Annotations, captions or sentences of one image at most; ids follow from the image's id."""
_LICENCE: Final = {
    "id": 1,
    "name": "CC0 1.0",
    "url": "https://creativecommons.org/publicdomain/zero/1.0/",
}
_CATEGORY: Final = {kind: k for k, kind in enumerate(KINDS, start=1)}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """All that the files say about one scene, and its picture."""

    image: Json
    annotations: list[Json]
    captions: list[Json]
    refs: list[Json]
    phrases: list[Json]
    jpeg: bytes


def write_scenes(
    out: Path,
    config: SceneConfig,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, int]:
    """Render the corpus into the new folder `out`, in `workers` processes; returns counts.

    `progress(split)` is called after each scene. The folder appears under its name only
    when it is complete.

    Raises:
        DataError: `out` exists, and `overwrite` is off or it is no folder of scenes.
    """
    out = Path(out)
    _check_free(out, overwrite)
    counts = dict.fromkeys(SPLITS, 0)
    refer: dict[str, list[Json]] = {"images": [], "annotations": [], "refs": [], "phrases": []}
    with _staged(out) as folder, _mapper(workers) as run_in_order:
        (folder / "images").mkdir()
        for split in SPLITS:
            if not config.count(split):
                continue
            merged: dict[str, list[Json]] = {key: [] for key in (*refer, "captions")}
            job = partial(make_entry, config, split)
            for entry in run_in_order(job, config.count(split)):
                (folder / "images" / entry.image["file_name"]).write_bytes(entry.jpeg)
                merged["images"].append(entry.image)
                for key in ("annotations", "captions", "refs", "phrases"):
                    merged[key].extend(getattr(entry, key))
                if progress is not None:
                    progress(split)
            _write_coco(folder, split, merged)
            for key, everything in refer.items():
                everything.extend(merged[key])
            _count(counts, split, merged)
        _write_instances(folder / "instances.json", refer["images"], refer["annotations"])
        for name, key in (("scenes", "refs"), ("phrases", "phrases")):
            (folder / f"refs({name}).p").write_bytes(_pickle(refer[key]))
        _write_json(folder / _CONFIG_FILE, asdict(config))
    return counts


def make_entry(config: SceneConfig, split: str, index: int) -> Entry:
    """Render and describe scene `index` of `split`."""
    scene = render_scene(config, split, index)
    # Words have a random stream of their own: how a scene is painted does not change them.
    rng = scene_rng(config.seed, split, index, stream=1)
    items = [_item(scene, k, config.size) for k in range(len(scene.things))]
    image_id = SPLITS.index(split) * _IDS_PER_SPLIT + index + 1
    first_id = image_id * _IDS_PER_IMAGE
    file_name = f"{split}_{index:06d}.jpg"
    captions = write_captions(items, PLACES[scene.place].phrase, rng)
    phrases = [write_phrases(k, items, rng) for k in range(len(items))]
    sentences: list[list[Json]] = [[] for _ in items]
    for number, expression in enumerate(write_expressions(items, rng)):
        sentence = _sentence(first_id + number, expression.text)
        sentence["program"] = expression.program.to_dict()
        sentences[expression.target].append(sentence)
    phrase_ids = iter(range(first_id, first_id + _IDS_PER_IMAGE))
    annotations = [_annotation(scene, k, image_id, phrases[k]) for k in range(len(items))]
    return Entry(
        image={
            "id": image_id,
            "file_name": file_name,
            "width": config.size,
            "height": config.size,
            "license": 1,
            "place": scene.place,
        },
        annotations=annotations,
        captions=[
            {"id": first_id + k, "image_id": image_id, "caption": caption}
            for k, caption in enumerate(captions)
        ],
        refs=[
            _ref(annotation, file_name, split, own)
            for annotation, own in zip(annotations, sentences, strict=True)
            if own
        ],
        phrases=[
            _ref(annotation, file_name, split, [_sentence(next(phrase_ids), t) for t in own])
            for annotation, own in zip(annotations, phrases, strict=True)
        ],
        jpeg=_jpeg(scene),
    )


def _item(scene: Scene, k: int, size: int) -> Item:
    thing = scene.things[k]
    x, y, width, height = thing.box
    centre = ((x + width / 2) / size, (y + height / 2) / size)
    return Item(thing.look, *centre, width * height / size**2)


def _annotation(scene: Scene, k: int, image_id: int, phrases: list[str]) -> Json:
    thing = scene.things[k]
    return {
        "id": image_id * _IDS_PER_IMAGE + k,
        "image_id": image_id,
        "category_id": _CATEGORY[thing.look.kind],
        "bbox": list(thing.box),
        "area": thing.area,
        "iscrowd": 0,
        "segmentation": [],
        "attributes": list(thing.look.attributes),
        "phrases": phrases,
    }


def _sentence(sent_id: int, text: str) -> Json:
    return {"sent_id": sent_id, "sent": text, "raw": text, "tokens": text.split()}


def _ref(annotation: Json, file_name: str, split: str, sentences: list[Json]) -> Json:
    return {
        "ref_id": annotation["id"],
        "ann_id": annotation["id"],
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "file_name": file_name,
        "split": split,
        "sentences": sentences,
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
    }


def _jpeg(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    scene.image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()


def _write_coco(folder: Path, split: str, merged: dict[str, list[Json]]) -> None:
    _write_instances(folder / f"instances_{split}.json", merged["images"], merged["annotations"])
    captions = {"info": _INFO, "licenses": [_LICENCE], "images": merged["images"]}
    _write_json(folder / f"captions_{split}.json", {**captions, "annotations": merged["captions"]})


def _write_instances(path: Path, images: list[Json], annotations: list[Json]) -> None:
    _write_json(
        path,
        {
            "info": _INFO,
            "licenses": [_LICENCE],
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": k, "name": kind, "supercategory": "thing"} for kind, k in _CATEGORY.items()
            ],
        },
    )


_INFO: Final = {"description": "wholegrain scenes: a small illustrated world", "version": "1"}


def _pickle(refs: list[Json]) -> bytes:
    """Protocol 2 of plain values, like the original refer files; it names no class.

    Pickle writes an object that occurs twice as a back reference, and which objects are one depends
    on the worker that made them. Passing through JSON makes the bytes a function of the values.
    """
    return pickle.dumps(json.loads(json.dumps(refs)), protocol=2)


def _write_json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n", encoding="utf-8")


def _count(counts: dict[str, int], split: str, merged: dict[str, list[Json]]) -> None:
    counts[split] = len(merged["images"])
    for name, value in (
        ("captions", len(merged["captions"])),
        ("objects", len(merged["annotations"])),
        ("phrases", sum(len(ref["sentences"]) for ref in merged["phrases"])),
        ("expressions", sum(len(ref["sentences"]) for ref in merged["refs"])),
    ):
        counts[name] = counts.get(name, 0) + value


def _check_free(out: Path, overwrite: bool) -> None:
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise DataError(f"{out}: exists; give another --out, or --overwrite to replace it")
    if not (out / _CONFIG_FILE).is_file():
        # A slip of the hand must not cost someone their home folder.
        raise DataError(
            f"{out}: holds no {_CONFIG_FILE}, so it is not replaced; give another --out"
        )


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end, or vanishes on an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f"{out.name}.partial-{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
        if not out.exists():
            folder.rename(out)
            return
        old = out.with_name(f"{out.name}.replaced-{os.getpid()}")
        out.rename(old)
        folder.rename(out)
        shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


Mapper = Callable[[Callable[[int], Entry], int], Iterator[Entry]]


@contextmanager
def _mapper(workers: int) -> Iterator[Mapper]:
    """An ordered map over range(count), in this process or in spawned ones."""
    if workers <= 1:
        yield lambda job, count: map(job, range(count))
        return
    # Spawned, not forked: the caller may hold threads (torch), which a fork would break.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield lambda job, count: pool.imap(job, range(count), chunksize=_CHUNK)
