"""What tests store, and what they find in a cache."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def content(length: int, seed: int = 0) -> bytes:
    """Bytes that no two places of have alike."""
    return np.random.default_rng(seed).bytes(length)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def cached_bytes(folder: Path) -> int:
    """What the files of a cache take up together, reservations of downloads not counted."""
    total = 0
    for path in folder.iterdir():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits until something holds; fails when it does not come to hold."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
