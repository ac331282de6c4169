"""Corpora to measure on: given photos in COCO's layout, or drawn ones of the same size."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from wholegrain.data.corpus import Corpus
from wholegrain.text import Tokenizer

_DRAWN = 96


def make_corpora(folder: Path, photos: Path | None, max_sides: Sequence[int]) -> dict[str, Path]:
    """The same photos as stored, and with their longer side reduced; name to corpus folder."""
    from data_tools.__main__ import main

    layout = photos or draw_photos(folder / "drawn")
    made = {}
    for name, options in (
        ("as stored", []),
        *((f"longer side {side}", ["--max-side", str(side)]) for side in max_sides),
    ):
        out = folder / name.replace(" ", "_")
        files = [f"--{kind}={layout / f'{kind}.json'}" for kind in ("captions", "instances")]
        given = [
            "--images",
            str(layout / "images"),
            *files,
            "--out",
            str(out),
            "--shard-size",
            "16",
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            failed = main(["convert", "coco", *given, *options])
        if failed:
            raise SystemExit(f"{layout}: cannot be converted")
        made[name] = out
    return made


def make_tokenizer(corpus: Corpus) -> Tokenizer:
    """Word pieces of the corpus's texts."""
    texts = []
    for record in map(corpus.record, range(len(corpus))):
        texts += [*record.captions, *(text for region in record.regions for text in region.texts)]
    return Tokenizer.train(texts, 2000)


def draw_photos(folder: Path) -> Path:
    """Pictures of 640 x 480 px with the spectrum of photos: noise at all scales; about 90 kB."""
    (folder / "images").mkdir(parents=True)
    images, captions, objects = [], [], []
    for number in range(1, _DRAWN + 1):
        rng = np.random.default_rng(number)
        total = np.zeros((480, 640, 3), np.float32)
        for level in range(2, 9):
            small = rng.normal(size=(max(1, 480 >> level), max(1, 640 >> level), 3))
            picture = [Image.fromarray(small[..., c].astype(np.float32)) for c in range(3)]
            scaled = [np.asarray(p.resize((640, 480), Image.Resampling.BICUBIC)) for p in picture]
            total += np.stack(scaled, axis=-1) * 2.0 ** (level / 2)
        total += rng.normal(size=total.shape) * 0.4
        pixels = np.clip(128 + 9 * total, 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.6))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=92)
        name = f"{number:012d}.jpg"
        (folder / "images" / name).write_bytes(buffer.getvalue())
        images.append({"id": number, "file_name": name, "width": 640, "height": 480})
        for turn in range(5):
            text = f"a picture of clouds and hills number {number} seen {turn} times from afar"
            captions.append({"id": len(captions), "image_id": number, "caption": text})
        for _ in range(6):
            x, y = rng.uniform(0, 400), rng.uniform(0, 300)
            box = [round(float(v), 2) for v in (x, y, rng.uniform(20, 230), rng.uniform(20, 170))]
            entry = {"id": len(objects), "image_id": number, "category_id": 1 + len(objects) % 9}
            objects.append({**entry, "bbox": box, "iscrowd": 0})
    kinds = [{"id": n, "name": f"kind {n}"} for n in range(1, 10)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    instances = {"images": images, "annotations": objects, "categories": kinds}
    (folder / "instances.json").write_text(json.dumps(instances))
    return folder
