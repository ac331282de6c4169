"""Places for what must be a file, in memory where the machine has such a folder."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

# Where a process shall put its folder that may end without clearing up.
PARENT = "WHOLEGRAIN_FUZZ_SCRATCH"


def memory_folder() -> str | None:
    """A folder in memory, if there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@cache
def scratch_folder() -> Path:
    """A folder of this process, gone at its end."""
    parent = os.environ.get(PARENT) or memory_folder()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=parent))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def scratch_file(data: bytes) -> Path:
    """A file of these bytes, until the next call."""
    path = scratch_folder() / "input"
    path.write_bytes(data)
    return path
