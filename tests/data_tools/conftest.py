"""Miniature data sets in each official layout, and a way to run the program."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_tools.__main__ import main
from wholegrain.data.record import Record
from wholegrain.data.shard import ShardWriter
from wholegrain.errors import run_cli

Photo = Callable[..., bytes]


@pytest.fixture(scope="session")
def photo() -> Photo:
    """Makes a JPEG of `width` x `height` px whose colours depend on `number`."""

    def make(number: int = 0, width: int = 64, height: int = 48) -> bytes:
        colours = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        rows = np.arange(height) * 8 // height
        columns = np.arange(width) * 8 // width
        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(colours[rows][:, columns])))

    return make


@dataclass(frozen=True)
class Ran:
    """What a run of the program came to."""

    status: int
    out: str
    err: str


@pytest.fixture
def data_tools(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs `python -m data_tools` with these arguments, in this process."""

    def run(*arguments: object) -> Ran:
        status = run_cli(main, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


@dataclass(frozen=True)
class CocoLayout:
    """Files of COCO's layout; `change` edits a file's JSON in place."""

    images: Path
    captions: Path
    instances: Path

    def change(self, file: Path, edit: Callable[[Any], Any]) -> None:
        layout = json.loads(file.read_text())
        file.write_text(json.dumps(edit(layout) or layout))

    @property
    def flags(self) -> list[object]:
        flags = ["--images", self.images, "--captions", self.captions]
        return [*flags, "--instances", self.instances]


@pytest.fixture
def coco_layout(tmp_path: Path, photo: Photo) -> CocoLayout:
    """Three photos of 64 x 48 px with two captions each; objects in the first two, one a crowd."""
    root = tmp_path / "coco"
    (root / "images").mkdir(parents=True)
    images, captions = [], []
    for number in (9, 25, 30):
        name = f"{number:012d}.jpg"
        (root / "images" / name).write_bytes(photo(number))
        images.append({"id": number, "file_name": name, "width": 64, "height": 48, "license": 4})
        for turn in range(2):
            text = f"caption {turn} of photo {number}"
            captions.append({"id": len(captions), "image_id": number, "caption": text})
    objects = [
        {"id": 1, "image_id": 9, "category_id": 18, "bbox": [1.5, 2.25, 20, 30], "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 3, "bbox": [30, 8, 34, 40], "iscrowd": 0},
        {"id": 3, "image_id": 25, "category_id": 18, "bbox": [0, 0, 64, 48], "iscrowd": 0},
        {"id": 4, "image_id": 25, "category_id": 18, "bbox": [5, 5, 9, 9], "iscrowd": 1},
    ]
    licenses = [{"id": 4, "name": "Attribution License", "url": "http://example.org"}]
    kinds = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]
    instances = {"images": images, "annotations": objects, "categories": kinds}
    layout = CocoLayout(
        root / "images", root / "captions_val2017.json", root / "instances_val2017.json"
    )
    layout.captions.write_text(json.dumps({"images": images, "annotations": captions}))
    layout.instances.write_text(json.dumps({**instances, "licenses": licenses}))
    return layout


@dataclass(frozen=True)
class ReferLayout:
    """Files of the refer tool's layout; `refs` and `instances` are what was written."""

    root: Path
    images: Path
    refs: list[dict[str, Any]]
    instances: dict[str, Any]

    def write(self, split_by: str = "unc") -> None:
        folder = self.root / "refcoco"
        folder.mkdir(parents=True, exist_ok=True)
        # Protocol 2 as Python 2 wrote it.
        data = pickle.dumps(self.refs, protocol=2)
        (folder / f"refs({split_by}).p").write_bytes(data)
        (folder / "instances.json").write_text(json.dumps(self.instances))


def _ref(ref_id: int, image_id: int, ann_id: int, split: str, *texts: str) -> dict[str, Any]:
    sentences = [
        {"sent_id": 10 * ref_id + turn, "sent": text, "raw": text.upper(), "tokens": text.split()}
        for turn, text in enumerate(texts)
    ]
    return {
        "ref_id": ref_id,
        "image_id": image_id,
        "ann_id": ann_id,
        "category_id": 1,
        "split": split,
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


@pytest.fixture
def refer_layout(tmp_path: Path, photo: Photo) -> ReferLayout:
    """Two photos; the second has objects of two splits. One photo is named as in 2014."""
    images = tmp_path / "photos"
    images.mkdir()
    (images / "COCO_train2014_000000000011.jpg").write_bytes(photo(11))
    (images / "000000000012.jpg").write_bytes(photo(12))
    entries = [
        {"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "width": 64, "height": 48}
        for n in (11, 12)
    ]
    boxes = {101: (11, [2, 3, 20, 30]), 102: (12, [5.5, 6, 10, 12]), 103: (12, [30, 1, 33.5, 40])}
    annotations = [
        {"id": ann, "image_id": image, "category_id": 1, "bbox": box, "iscrowd": 0}
        for ann, (image, box) in boxes.items()
    ]
    refs = [
        _ref(1, 12, 103, "val", "man on right"),
        _ref(0, 11, 101, "train", "left man", "man in red"),
        _ref(2, 12, 102, "train", "the boy"),
    ]
    kinds = [{"id": 1, "name": "person"}]
    instances = {"images": entries, "annotations": annotations, "categories": kinds}
    layout = ReferLayout(tmp_path / "refer", images, refs, instances)
    layout.write()
    return layout


@pytest.fixture
def flickr_layout(tmp_path: Path, photo: Photo) -> Path:
    """Two training photos and one for validation, unpacked; the sizes are 64 x 48 px."""
    root = tmp_path / "flickr30k"
    for name in ("Annotations", "Sentences", "images"):
        (root / name).mkdir(parents=True)
    for number in (100, 200, 300):
        (root / "images" / f"{number}.jpg").write_bytes(photo(number))
        (root / "Annotations" / f"{number}.xml").write_text(
            f"<annotation><filename>{number}.jpg</filename>"
            "<size><width>64</width><height>48</height><depth>3</depth></size>"
            + _flickr_object([1, 2], (1, 1, 64, 48))
            + _flickr_object([2], (11, 5, 20, 24))
            + _flickr_object([3], (40, 10, 50, 30))
            + "<object><name>4</name><scene>1</scene><nobndbox>1</nobndbox></object></annotation>"
        )
        (root / "Sentences" / f"{number}.txt").write_text(
            "[/EN#3/people A man] with [/EN#2/animals/other two dogs] on [/EN#4/scene a beach] .\n"
            "[/EN#3/people A man] walks in [/EN#0/notvisual the air] near [/EN#1/scene water] .\n"
        )
    (root / "train.txt").write_text("200\n100\n")
    (root / "val.txt").write_text("300\n")
    return root


def _flickr_object(names: list[int], box: tuple[int, int, int, int]) -> str:
    left, top, right, bottom = box
    return (
        "<object>"
        + "".join(f"<name>{name}</name>" for name in names)
        + f"<bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
    )


@pytest.fixture
def write_tar() -> Callable[..., Path]:
    """Writes a tar of (name, contents) at a path."""

    def write(path: Path, members: list[tuple[str, bytes]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture(scope="session")
def picture() -> Callable[[int], Image.Image]:
    """Makes a picture with the large soft shapes that photos have; each number another one."""

    def make(number: int, width: int = 160, height: int = 120) -> Image.Image:
        colours = np.random.default_rng(number).integers(0, 256, (7, 9, 3), dtype=np.uint8)
        return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Encodes a picture: ``encode(picture, "JPEG", quality=30)``."""

    def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
        return file.getvalue()

    return encoded


@pytest.fixture
def write_corpus(tmp_path: Path) -> Callable[..., Path]:
    """Writes a corpus of (id, photo, split, encoded image) and returns its folder."""

    def write(name: str, rows: list[tuple[str, str | None, str, bytes]]) -> Path:
        with ShardWriter(tmp_path / name, source={"name": name}) as writer:
            for identity, photo, split, data in rows:
                with Image.open(io.BytesIO(data)) as image:
                    kind, (width, height) = image.format, image.size
                record = Record(
                    identity, name, split, width, height, captions=("a thing",), photo=photo
                )
                writer.write(record, data, {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind])
        return tmp_path / name

    return write
