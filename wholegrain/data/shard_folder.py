"""A folder that appears whole or not at all.

The work happens in ``OUT.partial-PID-xxxx`` beside ``OUT``, held by a lock that the kernel drops
when the process dies, however it dies. So a run can tell the leftovers of a killed one (unlocked:
removed) from the work of a live one (locked: left alone), on one machine and across machines whose
file system carries locks.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wholegrain.errors import DataError


@contextmanager
def atomic_folder(out: Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """Yields a fresh folder to fill; renames it to ``out`` if the block ends without exception.

    Args:
        out: must not exist, unless ``overwrite``.
        overwrite: replace an ``out`` that is empty or holds ``marker``; any other folder is
            refused all the same, since a mistyped path must not cost anybody's files. The old
            folder stays in place until the new one is complete.
        marker: name of the file that shows a folder to be of the replaceable kind.

    Raises:
        DataError: ``out`` exists, at the start or by the end, or cannot be made.
    """
    out = Path(os.path.abspath(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out)
        check_free(out, overwrite=overwrite, marker=marker)
        partial, lock = _make_partial(out)
    except OSError as error:
        remedy = "choose a place that you may write to"
        raise DataError(f"{out}: cannot be made ({error.strerror}); {remedy}") from error
    try:
        yield partial
        publish_folder(partial, out, overwrite=overwrite, marker=marker)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def publish_folder(folder: Path, out: Path, *, overwrite: bool, marker: str) -> None:
    """Renames a finished ``folder`` beside ``out`` to ``out``; see :func:`atomic_folder`.

    Raises:
        DataError: ``out`` exists and may not be replaced.
    """
    sync_folder(folder)
    check_free(out, overwrite=overwrite, marker=marker)
    _move(folder, out)
    sync_folder(out.parent)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keeps two runs from changing one folder at a time.

    Raises:
        DataError: another process is at it.
    """
    lock = _lock(folder, lock_or_nothing=False)
    if lock is None:
        raise DataError(f"{folder}: no folder, or another run is changing it; wait for that one")
    try:
        yield
    finally:
        os.close(lock)


def sync_folder(folder: Path) -> None:
    """Makes the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_free(out: Path, *, overwrite: bool, marker: str) -> None:
    """DataError if something is at ``out`` that may not be replaced; see :func:`atomic_folder`."""
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise DataError(f"{out}: the output folder exists; remove it, or ask to overwrite it")
    replaceable = (
        out.is_dir() and not out.is_symlink() and ((out / marker).is_file() or not os.listdir(out))
    )
    if not replaceable:
        raise DataError(
            f"{out}: exists and holds no {marker}, so it is not overwritten; choose another path"
        )


def _make_partial(out: Path) -> tuple[Path, int]:
    while True:
        partial = out.with_name(f"{out.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            partial.mkdir()
        except FileExistsError:
            continue
        lock = _lock(partial, lock_or_nothing=False)
        # Another run's sweep may have taken the folder in the instant before the lock.
        if lock is not None and partial.is_dir():
            return partial, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, *, lock_or_nothing: bool) -> int | None:
    """A descriptor that holds the folder's lock; None if another process holds it.

    Where the file system has no locks, work can go on without (a descriptor), but nobody's
    leftovers can be told from a live run's (None if ``lock_or_nothing``).
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if lock_or_nothing or isinstance(error, BlockingIOError):
            os.close(descriptor)
            return None
    return descriptor


def sweep(out: Path) -> None:
    """Clears up beside ``out`` after runs that were killed."""
    for path in _siblings(out, ".partial-"):
        lock = _lock(path, lock_or_nothing=True)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
    for path in _siblings(out, ".replaced-"):
        if os.path.lexists(out):
            shutil.rmtree(path, ignore_errors=True)
        else:  # killed between the two renames: the earlier folder is still the valid one
            path.rename(out)


def _siblings(out: Path, infix: str) -> list[Path]:
    names = sorted(os.listdir(out.parent))
    return [out.with_name(name) for name in names if name.startswith(out.name + infix)]


def _move(partial: Path, out: Path) -> None:
    replaced = out.with_name(f"{out.name}.replaced-{os.getpid()}")
    exists = os.path.lexists(out)
    if exists:
        out.rename(replaced)
    try:
        partial.rename(out)
    except OSError as error:  # another run finished first
        if exists and not os.path.lexists(out):
            replaced.rename(out)
        raise DataError(f"{out}: cannot be put in place ({error.strerror}); run again") from None
    if exists:
        shutil.rmtree(replaced, ignore_errors=True)
