"""Changed copies of valid inputs, for runs without a fuzzing engine."""

from __future__ import annotations

import random
from collections.abc import Sequence

_ODD = (
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"-1",
    b"1e999",
    b"null",
    b"\xed\xa0\x80",
)


def mutated(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """A seed with one to four changes: bytes flipped, cut out, repeated, or taken from another."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randint(0, len(data)), chance.choice((1, 1, 2, 4, 16, 64))
        kind = chance.randrange(5)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length] * chance.choice((1, 2, 30))
        elif kind == 3:
            data[at : at + length] = chance.choice(_ODD)
        else:
            other = chance.choice(seeds)
            start = chance.randint(0, len(other))
            data[at : at + length] = other[start : start + chance.choice((4, 64, 512))]
    return bytes(data[: 1 << 16])
