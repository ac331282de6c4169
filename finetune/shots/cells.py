"""The finished parts of a run, each a small file, so that an interrupted run goes on.

A cell is one figure: a data set's accuracy under one seed. Its file's name ends with a digest of
all that the figure depends on, so a changed setting finds no file and leaves the old one alone.
Files appear whole or not at all; a damaged one counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_DIGITS = 12


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, whatever the order of their keys."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Cells:
    """The cells below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str, key: str, suffix: str = ".json") -> Path:
        """Where a cell is: its name, and the digest that `key` is."""
        return self.folder / f"{name}-{key[:_DIGITS]}{suffix}"

    def read(self, name: str, key: str) -> dict[str, Any] | None:
        """What `write` kept under this name and key; None where nothing whole is there."""
        try:
            found = json.loads(self.path(name, key).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        whole = isinstance(found, dict) and found.get("key") == key
        return found if whole else None

    def write(self, name: str, key: str, values: Mapping[str, Any]) -> Path:
        """Keeps plain values; returns the file."""
        return write_json(self.path(name, key), {"key": key, **values})


def write_json(path: Path, values: Mapping[str, Any]) -> Path:
    """Writes JSON to a file that appears whole or not at all; returns it."""
    return write_text(path, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False))


def write_text(path: Path, text: str) -> Path:
    """Writes a file that appears whole or not at all; returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The number tells ranks apart that write the same results at the same time.
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path
