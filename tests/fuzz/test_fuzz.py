"""The fuzz targets in short: each on its seeds, on the same changed copies of them, and on inputs
that failed once. ``python -m tests.fuzz`` searches for more."""

import importlib
import random
import sys
from pathlib import Path

import pytest

from wholegrain.data.index_file import INDEX_DTYPE

ACCEPTED = {
    "record": 5,
    "tar": 6,  # all but the two with a link
    "image_header": 17,  # all but the GIF and the page
    "decode": 17,
    "refer_pickle": 7,
    "manifest_index": 3,
}
"""Seeds that each target's reader takes: from those that it refuses at once nothing is learnt."""
CHANGED = 300

PALETTE_WITHOUT_COLOURS = (
    b"\x89PNG\x0d\x0a\x1a\x0a\x00\x00\x00\x0dIHDR\x00\x00\x00\x08\x00\x00"
    b"\x00\x08\x08\x03\x00\x00\x00\xf3\xd1N\xb9\x00\x00\x00\x0cIDATx\x9cc"
    b"`\xa0\x0e\x00\x00\x00H\x00\x01.\xb8<~\x00\x00\x00\x00IEND\xae"
    b"B`\x82"
)


@pytest.fixture(autouse=True, scope="module")
def importable(repository: Path) -> None:
    # Test files are imported by path, and these modules by name.
    if str(repository) not in sys.path:
        sys.path.insert(0, str(repository))


def _failed_once(target: str, seeds: list[bytes]) -> list[bytes]:
    """Inputs that were once answered by another error than a documented one, or by none."""
    if target == "record":
        return [b'{"schema":' + b"[" * depth + b"]" * depth + b"}" for depth in (700, 960, 990)]
    if target == "decode":
        return [PALETTE_WITHOUT_COLOURS]
    if target == "refer_pickle":
        # These ended the process, or took its memory: tuples as a key, a memo of 2^32 entries.
        return [b"\x80\x02})" + b"\x85" * 5000 + b"K\x01s.", b"\x80\x02]r\xff\xff\xff\xff."]
    if target == "manifest_index":
        manifest, index, shards = seeds
        row = len(index) - INDEX_DTYPE.itemsize
        damaged = bytearray(index)
        damaged[row + INDEX_DTYPE.fields["kind"][1]] = 9
        far = bytearray(index)
        far[row : row + 8] = b"\xff" * 8
        return [
            manifest.replace(b'"train"', b'"\\ud800"'),
            bytes(damaged),
            bytes(far),
            index.replace(b"}", b" ", 1),
            shards.replace(b"shard-", b"\xd5hard-", 1),
        ]
    return []


@pytest.mark.parametrize("target", ACCEPTED)
def test_readers_take_the_seeds(target: str) -> None:
    module = importlib.import_module(f"tests.fuzz.fuzz_{target}")
    assert sum(map(module.check, module.seeds())) == ACCEPTED[target]


def test_every_target_is_tested() -> None:
    assert set(ACCEPTED) == set(importlib.import_module("tests.fuzz.__main__").TARGETS)


@pytest.mark.parametrize("target", ACCEPTED)
def test_nothing_but_documented_errors(target: str) -> None:
    module = importlib.import_module(f"tests.fuzz.fuzz_{target}")
    mutated = importlib.import_module("tests.fuzz.mutate").mutated
    seeds, chance = module.seeds(), random.Random(20_240_517)
    for data in (*seeds, *_failed_once(target, seeds)):
        module.check(data)
    for _ in range(CHANGED):
        module.check(mutated(seeds, chance))
