"""A small corpus of real shards for the evaluation's tests."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wholegrain.data.corpus import Corpus
from wholegrain.data.record import Absent, Record, Reference, Region, enclosing_box
from wholegrain.data.shard import ShardWriter

RECORDS = 11


def _record(number: int, width: int, height: int) -> Record:
    rng = np.random.default_rng(number)
    regions = []
    for place in range(1 + number % 3):
        x, y = rng.uniform(0, 0.5, 2) * (width, height)
        w, h = rng.uniform(0.1, 0.5, 2) * (width, height)
        box = (float(x), float(y), float(w), float(h))
        texts = tuple(f"thing {place} of {number}, phrase {t}" for t in range(1 + place))
        regions.append(Region("region", box, texts))
    if number == 4:  # one phrase, two boxes
        boxes = ((0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 10.0, 10.0))
        regions.append(Region("region", enclosing_box(boxes), ("two cups",), boxes=boxes))
    if number == 5:  # a reference with ids, its text written twice
        ref = Reference("refcoco-unc", 77, (500, 501), "testA")
        regions.append(Region("region", (1.0, 2.0, 3.0, 4.0), ("man", "man"), ref=ref))
    regions.append(Region("object", (0.0, 0.0, float(width), 5.0), ("sky",)))
    return Record(
        id=f"image/{number}",
        source="test",
        split="val",
        width=width,
        height=height,
        captions=("a photo",),
        regions=tuple(regions),
    )


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven images of several sizes and numbers of expressions, as a converted corpus."""
    out = tmp_path_factory.mktemp("corpus") / "shards"
    with ShardWriter(out, source={"name": "test", "key": "0"}, max_samples=4) as writer:
        for number in range(RECORDS):
            width, height = 40 + 3 * number, 64 - 2 * number
            pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            writer.write(_record(number, width, height), file.getvalue(), "png")
    return out


@pytest.fixture(scope="session")
def corpus(corpus_folder: Path) -> Corpus:
    """The same corpus, opened."""
    return Corpus.open(corpus_folder)


def _grec_record(number: int) -> Record:
    """One cup; the same and another; and, from the second photo on, two texts about nothing."""
    one, other = (5.0, 5.0, 20.0, 10.0), (30.0, 30.0 + number, 10.0, 20.0)

    def reference(place: int, texts: int) -> Reference:
        first = 100 * number + 10 * place
        return Reference("grefcoco-unc", first, tuple(range(first, first + texts)), "val")

    regions = (
        Region("region", one, ("the red cup",), ref=reference(0, 1)),
        Region(
            "region",
            enclosing_box((one, other)),
            ("both cups", "cups"),
            ref=reference(1, 2),
            boxes=(one, other),
        ),
    )
    nothing = (Absent(("a giraffe", "the man"), ref=reference(2, 2)), Absent(("a bus",)))
    return Record(
        id=f"grefcoco-unc/val/{number}",
        source="grefcoco-unc",
        split="val",
        width=64,
        height=96,
        regions=regions,
        absent=nothing if number else (),
    )


@pytest.fixture(scope="session")
def grec_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos with 12 expressions about one thing or two, and 9 about nothing."""
    out = tmp_path_factory.mktemp("grec") / "shards"
    file = io.BytesIO()
    Image.fromarray(np.zeros((96, 64, 3), np.uint8)).save(file, "PNG")
    with ShardWriter(out, source={"name": "test", "key": "0"}) as writer:
        for number in range(4):
            writer.write(_grec_record(number), file.getvalue(), "png")
    return out
