"""A corpus with any manifest, index or table of shards opens and reads, or is a DataError."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

from PIL import Image

from tests.fuzz.scratch import scratch_folder
from wholegrain.data.corpus import Corpus
from wholegrain.data.record import Record
from wholegrain.data.shard import ShardWriter
from wholegrain.errors import DataError

# The first byte of an input says which of them the rest replaces.
FILES = ("manifest.json", "index.npy", "shards.npy")


@cache
def _corpus() -> tuple[Path, dict[str, bytes]]:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8), "red").save(buffer, "JPEG")
    folder = scratch_folder() / "corpus"
    with ShardWriter(folder, source={"converter": "fuzz"}, max_samples=2) as writer:
        for number in range(3):
            split = "val" if number else "train"
            writer.write(Record(str(number), "s", split, 9, 8, ("x",)), buffer.getvalue(), "jpg")
    return folder, {name: (folder / name).read_bytes() for name in FILES}


def seeds() -> list[bytes]:
    """The three files as they should be."""
    _, sound = _corpus()
    return [bytes((number,)) + sound[name] for number, name in enumerate(FILES)]


def check(data: bytes) -> bool:
    """Whether it is accepted; raises AssertionError, or whatever opening and reading must not."""
    folder, sound = _corpus()
    name = FILES[data[0] % len(FILES)] if data else FILES[0]
    path = folder / name
    path.write_bytes(data[1:])
    try:
        return _read(folder)
    except DataError as error:
        assert len(str(error)) < 5000
        return False
    finally:
        path.write_bytes(sound[name])


def _read(folder: Path) -> bool:
    accepted = True
    corpus = Corpus.open(folder)
    for view in (corpus, *(corpus.select(split) for split in corpus.splits)):
        for number in range(min(len(view), 4)):
            try:
                view.image_kind(number)
                view.record(number)
                view.image_bytes(number)
            except DataError:
                accepted = False
    return accepted
