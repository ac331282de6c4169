"""The protected photos themselves, as far as they lie at hand, made ready to be recognised."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.auditing import phash
from data_tools.auditing.by_id import IdHashes, find_by_id
from data_tools.auditing.hash_cache import (
    FLAT,
    UNREADABLE,
    USABLE,
    Arrays,
    load_arrays,
    store_arrays,
)
from data_tools.auditing.photo_ids import photo_id
from data_tools.auditing.protected import Protected
from data_tools.sources.base import listing_digest
from data_tools.threads import ordered_map
from wholegrain.data.corpus import Corpus
from wholegrain.data.corpus_manifest import MANIFEST
from wholegrain.data.decode import ImageError
from wholegrain.errors import DataError


@dataclass
class FoundPhotos:
    """How to read protected photos: identity to loader; ``origins`` name where they come from."""

    loaders: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    origins: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class KnownPhotos:
    """Protected photos that can be recognised.

    Attributes:
        photos: identities (N,).
        hashes: uint64 (N, turns), in the order of ``phash.TURNS``.
        thumbnails: uint8 (N, 16, 16, 3), as they are.
        flat: identities that show nothing to recognise.
        unreadable: identities whose photo is broken.
    """

    photos: list[str]
    hashes: NDArray[np.uint64]
    thumbnails: NDArray[np.uint8]
    flat: list[str]
    unreadable: list[str]


def find_photos(protected: Protected, places: Sequence[Path]) -> FoundPhotos:
    """A way to read each protected photo that lies in a converted set or in ``places``.

    Args:
        protected: the sets; those given as corpora bring photos, for all sets that show them.
        places: corpora (of all splits), and folders whose photos are named by their id, as COCO's
            and Flickr30k's are.
    """
    found = FoundPhotos()
    corpora = [corpus for one in protected.sets for corpus in one.corpora]
    corpora += [Corpus.open(place) for place in places if (place / MANIFEST).is_file()]
    hashes = IdHashes(protected.photos)
    for corpus in corpora:
        found.origins.append(corpus.fingerprint)
        for number, photo in find_by_id(corpus, hashes, protected.photos):
            found.loaders.setdefault(photo, partial(corpus.image_bytes, number))
    for place in places:
        if not (place / MANIFEST).is_file():
            listed = list(_named_photos(place, protected))
            found.origins.append(listing_digest((path.name, size) for _, path, size in listed))
            for photo, path, _ in listed:
                found.loaders.setdefault(photo, path.read_bytes)
    return found


def know_photos(found: FoundPhotos, workers: int, cache: Path | None) -> KnownPhotos:
    """Decode and hash what was found; the result is kept in ``cache`` by its origins."""
    names = sorted(found.loaders)
    text = json.dumps([phash.VERSION, list(phash.TURNS), names, found.origins])
    path = cache and cache / f"protected-{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"
    arrays = load_arrays(path) if path else None
    if arrays is None:
        arrays = _hash_all(names, found, workers)
        if path:
            store_arrays(path, arrays)
    states = arrays["states"]
    usable = states == USABLE
    return KnownPhotos(
        photos=_chosen(names, usable),
        hashes=arrays["hashes"][usable],
        thumbnails=arrays["thumbnails"][usable],
        flat=_chosen(names, states == FLAT),
        unreadable=_chosen(names, states == UNREADABLE),
    )


def _hash_all(names: list[str], found: FoundPhotos, workers: int) -> Arrays:
    count, side = len(names), phash.THUMBNAIL
    table = np.zeros((count, len(phash.TURNS)), np.uint64)
    thumbnails = np.zeros((count, side, side, 3), np.uint8)
    states = np.full(count, UNREADABLE, np.uint8)

    def squeeze(name: str) -> NDArray[np.uint8] | None:
        try:
            return phash.squeezed(found.loaders[name](), name)
        except ImageError:
            return None

    for number, pixels in enumerate(ordered_map(squeeze, names, workers)):
        if pixels is not None:
            turned = np.stack([turn(pixels) for turn in phash.TURNS.values()])
            table[number], flat = phash.hashes(turned)
            states[number] = FLAT if flat[0] else USABLE
            thumbnails[number] = phash.thumbnails(pixels)
    return {"hashes": table, "thumbnails": thumbnails, "states": states}


def _chosen(names: list[str], mask: NDArray[np.bool_]) -> list[str]:
    return [names[number] for number in np.flatnonzero(mask)]


def _named_photos(folder: Path, protected: Protected) -> Iterator[tuple[str, Path, int]]:
    """(identity, path, bytes) of the folder's files that are protected photos by their name."""
    try:
        with os.scandir(folder) as entries:
            files = sorted((entry.name, entry.stat().st_size) for entry in entries)
    except OSError as error:
        raise DataError(
            f"--photos {folder}: {error.strerror}; pass a corpus, or a folder of photos named by "
            "their id, such as COCO's train2014"
        ) from None
    spaces = sorted(protected.spaces)
    for name, size in files:
        names = (photo_id(name, space) for space in spaces)
        photo = next((one for one in names if one in protected.photos), None)
        if photo is not None:
            yield photo, folder / name, size
