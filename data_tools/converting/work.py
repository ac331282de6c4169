"""``OUT.work``: the folder beside ``OUT`` in which the parts of a conversion gather.

Processes that write parts hold its lock together, one that merges holds it alone; the kernel drops
a lock when the last process that has it dies, however it dies. Where the file system has no locks,
everything is still written aside and renamed: of two runs that merge at once, one then fails, and
says "up to date" when it is started again.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_tools.converting.plan import Plan
from wholegrain.data.corpus_manifest import MANIFEST, read_manifest
from wholegrain.errors import DataError

LOCK = ".lock"
PLAN = "plan.json"

_PLAN_SCHEMA = 1
_PART = re.compile(r"part-\d+\.json")
_KEY_SHOWN = 16


class WorkFolder:
    """The parts of one plan.

    Attributes:
        path: the folder; it need not exist.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        out = Path(os.path.abspath(plan.options.out))
        self.path = out.with_name(f"{out.name}.work")

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Holds the folder (made if there is none) together with others that write parts."""
        lock = self._lock(fcntl.LOCK_SH, create=True)
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)

    @contextmanager
    def alone(self, *, patient: bool) -> Iterator[bool]:
        """Holds the folder alone; yields False where there is none (any more).

        Raises:
            BlockingIOError: others hold it, and ``patient`` is False.
        """
        lock = self._lock(fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB), create=False)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                os.close(lock)

    def open_plan(self) -> None:
        """Writes down whose parts these are, or checks it.

        Raises:
            DataError: the folder holds parts of other inputs or options, or cannot be written.
        """
        try:
            if not (self.path / PLAN).exists() and not self.assembled():
                self._write_plan()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from None
        found = self._found_plan()
        if found.get("key") != self._plan.key:
            raise DataError(
                f"{self.path}: holds parts of other inputs or options (key "
                f"{str(found.get('key'))[:_KEY_SHOWN]}, now {self._plan.key[:_KEY_SHOWN]}"
                f"{self._differing(found.get('options'))}); {self._restart()}, or another --out"
            )

    def discard(self) -> None:
        """Removes the folder with all parts. DataError if a run is at work there."""
        try:
            with self.alone(patient=False) as there:
                if there:
                    self._remove()
        except BlockingIOError:
            raise DataError(f"{self.path}: another run is at work there; wait for it") from None

    def drop_if_new(self) -> None:
        """Removes a folder in which nothing was begun."""
        with suppress(OSError):  # another run may do the same
            if os.listdir(self.path) == [LOCK]:
                (self.path / LOCK).unlink()
                self.path.rmdir()

    def complete_parts(self) -> int:
        """Parts that are there, whoever wrote them."""
        return sum(_PART.fullmatch(name) is not None for name in os.listdir(self.path))

    def assembled(self) -> bool:
        """Whether the corpus is whole in the folder already, and only has to be moved."""
        return (self.path / MANIFEST).is_file()

    def sweep(self) -> None:
        """Removes what killed runs left half-written; nobody else may be at work."""
        _remove_all(self.path.glob(".*.partial-*"))

    def clear(self) -> None:
        """Removes all that is no part of the assembled corpus, the lock apart."""
        self.sweep()
        _remove_all(self.path.glob("part-*"))
        (self.path / PLAN).unlink(missing_ok=True)

    def _remove(self) -> None:
        # The plan and the lock last: parts without them must never pass for another plan's.
        _remove_all(path for path in self.path.iterdir() if path.name not in (PLAN, LOCK))
        (self.path / PLAN).unlink(missing_ok=True)
        (self.path / LOCK).unlink(missing_ok=True)
        self.path.rmdir()

    def _write_plan(self) -> None:
        if self.complete_parts():
            raise DataError(f"{self.path}: holds parts but no {PLAN}; {self._restart()}")
        plan = {
            "schema": _PLAN_SCHEMA,
            "key": self._plan.key,
            "source": self._plan.source.name,
            "parts": self._plan.parts,
            "options": self._plan.deciding,
        }
        aside = self.path / f".{PLAN}.partial-{os.uname().nodename}-{os.getpid()}"
        with aside.open("w", encoding="utf-8") as file:
            json.dump(plan, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, self.path / PLAN)  # unlike a rename, it takes nobody's place
        except FileExistsError:
            pass  # another task was first; what it wrote is checked next
        except OSError:  # a file system without links
            aside.replace(self.path / PLAN)
        aside.unlink(missing_ok=True)

    def _found_plan(self) -> dict[str, Any]:
        path = self.path / PLAN
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:  # killed between the end of merging and the move
            return dict(read_manifest(self.path)["source"])
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: damaged ({error}); {self._restart()}") from None
        if not isinstance(found, dict) or found.get("schema") != _PLAN_SCHEMA:
            raise DataError(f"{path}: of another version; {self._restart()}")
        return found

    def _differing(self, options: Any) -> str:
        if not isinstance(options, dict):
            return ""
        now = self._plan.deciding
        names = [name for name in {**options, **now} if options.get(name) != now.get(name)]
        said = [f"{name} {options.get(name)}, now {now.get(name)}" for name in names]
        return "".join(f"; {one}" for one in said)

    def _restart(self) -> str:
        if self._plan.options.task is None:
            return "pass --restart to begin anew"
        return "remove it to begin anew, when no other task is at work"

    def _lock(self, kind: int, *, create: bool) -> int | None:
        """A descriptor that holds the lock; None if there is no folder and none is to be made."""
        path = self.path / LOCK
        while True:
            try:
                if create:
                    self.path.mkdir(parents=True, exist_ok=True)
                # Opened for writing: network file systems want that for a lock held alone.
                flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if self.path.is_dir() else 0)
                descriptor = os.open(path, flags, 0o666)
            except FileNotFoundError:
                if create:
                    continue  # merged and moved away in between
                return None
            except OSError as error:
                remedy = "choose a place that you may write to"
                raise DataError(
                    f"{self.path}: cannot be made ({error.strerror}); {remedy}"
                ) from None
            try:
                fcntl.flock(descriptor, kind)
            except BlockingIOError:
                os.close(descriptor)
                raise
            except OSError:
                return descriptor  # no locks here
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    return descriptor
            os.close(descriptor)  # the folder was moved or removed while we waited


def _remove_all(paths: Iterable[Path]) -> None:
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
