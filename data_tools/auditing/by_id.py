"""Protected photos in a corpus, by their identity: the index's hashes first, then the records."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from wholegrain.data.corpus import Corpus
from wholegrain.data.index_file import id_hash

_ROWS_AT_A_TIME = 1 << 20
_FILTER_BITS = 22


class IdHashes:
    """Identities, to be found among the hashes of an index."""

    def __init__(self, photos: Collection[str]) -> None:
        hashed = sorted(id_hash(photo) for photo in photos)
        self._hashes = np.array(hashed, np.uint64)
        # Of a corpus of 10^9 rows nearly all are none of them: one look at 4 MB settles those.
        self._filter = np.zeros(1 << _FILTER_BITS, np.bool_)
        self._filter[self._hashes & np.uint64((1 << _FILTER_BITS) - 1)] = True

    def find(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The places in ``hashes`` (N,) that hold one of the identities' hashes."""
        if not len(self._hashes):
            return np.zeros(0, np.int64)
        maybe = np.flatnonzero(self._filter[hashes & np.uint64((1 << _FILTER_BITS) - 1)])
        wanted = hashes[maybe]
        places = np.searchsorted(self._hashes, wanted)
        places[places == len(self._hashes)] = 0
        return maybe[self._hashes[places] == wanted]


def find_by_id(view: Corpus, known: IdHashes, photos: Collection[str]) -> Iterator[tuple[int, str]]:
    """(row of the view, identity) wherever one of ``photos`` stands; rows ascend.

    The index is read in pieces. A hit is believed once its record says the same: 64 bits of two
    different identities may agree.
    """
    rows = view.index
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        hashes = np.ascontiguousarray(rows[start : start + _ROWS_AT_A_TIME]["id"])
        for place in known.find(hashes):
            number = start + int(place)
            photo = view.record(number).photo_id
            if photo in photos:
                yield number, photo
