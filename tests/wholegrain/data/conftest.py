"""A corpus in memory, for tests of what happens after reading."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg

from wholegrain.data.record import Record, Region
from wholegrain.text import Tokenizer

WIDTH, HEIGHT = 60, 40


class MemoryCorpus:
    """Records and image files held in two lists; `read` counts look-ups."""

    def __init__(self, name: str, records: list[Record], images: list[bytes]) -> None:
        self.fingerprint, self.records, self.images = name, records, images

    def __len__(self) -> int:
        return len(self.records)

    def record(self, i: int) -> Record:
        return self.records[i]

    def image_bytes(self, i: int) -> bytes:
        return self.images[i]


def _image(number: int) -> bytes:
    colours = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    pixels = np.kron(colours, np.ones((HEIGHT // 5, WIDTH // 5, 1), dtype=np.uint8))
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels)))


def _record(name: str, number: int) -> Record:
    x = float(number % 30)
    regions = (
        Region("region", (x, 5.0, 20.0, 20.0), (f"a pink dress {number}", "a small dress")),
        Region("region", (2.0, 2.0, 30.0, 30.0), ("a dog",)),
        Region("object", (30.0, 10.0, 20.0, 25.0), ("car",), attributes=("red", "old")),
    )
    captions = (f"a child number {number} on the stairs", f"picture {number} of a girl")
    return Record(f"{name}/{number}", name, "train", WIDTH, HEIGHT, captions, regions)


@pytest.fixture(scope="session")
def memory_corpus() -> Callable[..., MemoryCorpus]:
    """Makes a corpus of `size` samples, each with captions, regions and an object."""

    def make(size: int, name: str = "memory") -> MemoryCorpus:
        numbers = range(size)
        return MemoryCorpus(name, [_record(name, n) for n in numbers], [_image(n) for n in numbers])

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    texts = [f"a child number {n} on the stairs picture of a girl" for n in range(40)]
    texts += ["a pink dress", "a small dress", "red old car", "a dog", "left right bright"] * 5
    return Tokenizer.train(texts, vocab_size=120)
