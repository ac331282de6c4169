"""Any bytes are plain data or a ValueError, and never more than plain data."""

from __future__ import annotations

import pickle

from data_tools.sources.plain_pickle import load_plain_pickle

_REF = {
    "ref_id": 0,
    "ann_id": 101,
    "image_id": 11,
    "split": "train",
    "sent_ids": [0, 1],
    "sentences": [
        {"sent_id": 0, "sent": "left man", "raw": "LEFT man", "tokens": ["left", "man"]},
        {"sent_id": 1 << 40, "sent": "é", "raw": None, "tokens": []},
    ],
    "box": (1.5, -2, True, None),
}


def seeds() -> list[bytes]:
    """Refs in each protocol, as Python 2 wrote them too."""
    python2 = b"(lp0\n(dp1\nS'sent'\np2\nS'a \\xc3\\xa9'\np3\nsS'ref_id'\np4\nI12\nsa."
    return [python2, *(pickle.dumps([_REF, _REF], protocol) for protocol in range(6))]


def check(data: bytes) -> bool:
    """Whether it is accepted; raises AssertionError, or whatever the reader must not."""
    try:
        value = load_plain_pickle(data)
    except ValueError as error:
        assert len(str(error)) < 1000
        return False
    _walk(value, 0, [0])
    return True


def _walk(value: object, level: int, seen: list[int]) -> None:
    seen[0] += 1
    assert level <= 64
    if seen[0] > 100_000:  # of shared values, which are counted wherever they stand
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            assert isinstance(key, str | int | float | None)
            _walk(inner, level + 1, seen)
    elif isinstance(value, list | tuple):
        for inner in value:
            _walk(inner, level + 1, seen)
    else:
        assert isinstance(value, str | int | float | None)
