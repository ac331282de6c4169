"""Places for what must be a file, in memory where the machine has such a folder."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def scratch_folder() -> Path:
    """A folder of this process, gone at its end."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def scratch_file(data: bytes) -> Path:
    """A file of these bytes, until the next call."""
    path = scratch_folder() / "input"
    path.write_bytes(data)
    return path
