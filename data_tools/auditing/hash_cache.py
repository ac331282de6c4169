"""The hashes of a corpus's photos, computed once: kept in pieces under the corpus's fingerprint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.auditing import phash
from data_tools.threads import ordered_map
from wholegrain.data.corpus import Corpus
from wholegrain.data.decode import ImageError
from wholegrain.errors import DataError

PIECE = 1 << 16
"""Photos a piece; an interrupted audit goes on with the piece that it was at."""
USABLE, FLAT, UNREADABLE = 0, 1, 2
"""What a photo is, see ``phash.MIN_CONTRAST``."""

_BATCH = 1024

Arrays = dict[str, NDArray[np.generic]]


def hashed_pieces(
    view: Corpus, workers: int, cache: Path | None
) -> Iterator[tuple[int, NDArray[np.uint64], NDArray[np.uint8]]]:
    """(first row, hashes (N,), states (N,)) of a view's photos, piece by piece.

    Args:
        view: the corpus, or a split of it.
        workers: threads that decode.
        cache: a folder to keep the hashes in; None keeps none.
    """
    for first in range(0, len(view), PIECE):
        rows = range(first, min(len(view), first + PIECE))
        path = None
        if cache:
            name = f"{view.fingerprint[:32]}-{phash.VERSION}-{first // PIECE:06d}.npz"
            path = cache / name
        arrays = load_arrays(path) if path else None
        if arrays is None or len(arrays["hashes"]) != len(rows):
            arrays = _hash_rows(view, rows, workers)
            if path:
                store_arrays(path, arrays)
        yield first, arrays["hashes"], arrays["states"]


def read_squeezed(view: Corpus, number: int) -> NDArray[np.uint8] | None:
    """A row's photo as (32, 32, 3); None if it cannot be decoded."""
    try:
        return phash.squeezed(view.image_bytes(number), f"{view.path}: sample {number}")
    except ImageError:
        return None


def _hash_rows(view: Corpus, rows: range, workers: int) -> Arrays:
    hashes = np.zeros(len(rows), np.uint64)
    states = np.full(len(rows), UNREADABLE, np.uint8)
    photos: list[NDArray[np.uint8]] = []
    places: list[int] = []

    def flush() -> None:
        if photos:
            hashes[places], flat = phash.hashes(np.stack(photos))
            states[places] = np.where(flat, FLAT, USABLE)
        photos.clear()
        places.clear()

    read = ordered_map(lambda number: read_squeezed(view, number), rows, workers)
    for place, pixels in enumerate(read):
        if pixels is not None:
            photos.append(pixels)
            places.append(place)
        if len(photos) == _BATCH:
            flush()
    flush()
    return {"hashes": hashes, "states": states}


def load_arrays(path: Path) -> Arrays | None:
    """The arrays of a file that :func:`store_arrays` wrote; None if it is absent or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, KeyError):
        return None
    except Exception as error:  # zipfile's own errors, which have no common base
        if type(error).__module__ not in ("zipfile", "zlib"):
            raise
        return None


def store_arrays(path: Path, arrays: Arrays) -> None:
    """Write aside and rename. DataError if the folder cannot be written."""
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); choose another --hashes"
        ) from None
    finally:
        with suppress(OSError):  # the place may be none at all
            aside.unlink(missing_ok=True)
