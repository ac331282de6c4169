"""Single rows of a ``.npy`` file by positioned reads.

A memory map would do, but each page that a training run has touched counts as its memory: over an
epoch of 10^9 samples that is the whole file.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np

from wholegrain.errors import DataError


class RowFile:
    """Rows of a one-dimensional array on disk. Safe to share between threads and to fork.

    Args:
        mapped: the array, memory-mapped from ``path``; its pages are not touched.
    """

    def __init__(self, path: Path, mapped: np.ndarray) -> None:
        self.path, self.dtype, self._count = path, mapped.dtype, len(mapped)
        self._first = int(getattr(mapped, "offset", 0))  # of the first row; numpy sets it
        self._lock = threading.Lock()
        self._descriptor = -1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> np.void:
        """Row `number` as a scalar of the file's dtype."""
        if self._descriptor < 0:
            self._open()
        width = self.dtype.itemsize
        raw = os.pread(self._descriptor, width, self._first + number * width)
        if len(raw) < width:
            raise DataError(f"{self.path}: ends before row {number}; run `data_tools index` on it")
        row: np.void = np.frombuffer(raw, dtype=self.dtype)[0]
        return row

    def _open(self) -> None:
        with self._lock:
            if self._descriptor < 0:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            os.close(self._descriptor)
