"""One run at a time writes to a run folder."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from wholegrain.errors import ConfigError, WholegrainError
from wholegrain.train.lock_holder import Holder, read_holder, runs, this_process

LOCK = ".lock"
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}


class LockLost(WholegrainError):
    """Another run has taken the run folder over; this one must not write there any more."""


class RunLock:
    """Holds a run folder by a file ``.lock`` that says who does; rank 0 alone makes one.

    The file is made whole or not at all, and touched every `beat_s` seconds. A file that a dead
    process left is taken over: at once where the process is known to have ended (it ran on this
    machine, or in this Slurm job before it was requeued), else once nobody has touched it for
    `stale_s` seconds. Times are compared as the file system gives them, never with this host's
    clock. Where only time can tell, `acquire` waits for it: a live run shows itself by its next
    touch, and is then refused for.

    A taker first makes a file named after the hold that it ends, which only one can, so that of
    two takers one wins; should it die before it is done, that file is taken over in its turn.

    Args:
        run: the run folder; made where it is missing.
        beat_s: seconds between touches.
        stale_s: seconds without one after which a holder counts as dead.
        say: told in one line when `acquire` begins to wait, and of a lock taken over.
    """

    def __init__(
        self,
        run: Path,
        *,
        beat_s: float = 15.0,
        stale_s: float = 120.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self._run, self._path = run, run / LOCK
        self._beat_s, self._stale_s, self._say = beat_s, stale_s, say
        self._ours: Holder | None = None
        self._touched = 0.0
        self._lost = ""
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)

    def acquire(self) -> None:
        """Takes the run folder.

        Raises:
            ConfigError: another run holds it, or the lock cannot be written.
        """
        ours = this_process()
        draft = self._run / f"{LOCK}.draft-{ours.token}"
        try:
            self._run.mkdir(parents=True, exist_ok=True)
            _write(draft, ours)
            try:
                while not (_linked(draft, self._path) or self._taken_over(ours, draft)):
                    pass
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{self._path}: the run folder cannot be locked ({error.strerror or error}); "
                "give another --out"
            ) from error
        self._ours, self._touched = ours, time.monotonic()
        self._thread.start()

    def check(self) -> None:
        """Asks whether the run folder is still ours; to be called before anything is written.

        Raises:
            LockLost: it is not.
        """
        if self._ours is None:
            raise LockLost(f"{self._path}: this run does not hold the run folder")
        self._look(self._ours)
        if self._lost:
            raise LockLost(
                f"{self._path}: {self._lost} while this run was suspended or cut off from its "
                "storage; nothing more was written; see that only one of them runs"
            )

    def release(self) -> None:
        """Gives the run folder back, where it is still ours."""
        if self._ours is None:
            return
        self._left.set()
        self._thread.join()
        if self._look(self._ours):
            with suppress(OSError):  # it will be found dead
                self._path.unlink()
        self._ours = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _beat(self) -> None:
        while self._ours is not None and not self._left.wait(self._beat_s):
            if self._look(self._ours):
                with suppress(OSError):  # storage may come back; `_look` knows until when
                    os.utime(self._path)
                    self._touched = time.monotonic()

    def _look(self, ours: Holder) -> bool:
        """Whether the folder is seen to be ours; notes it where it is not any more."""
        try:
            holder, _ = read_holder(self._path)
        except FileNotFoundError:
            self._lost = "the lock is gone; another run took the folder over, or it was removed,"
            return False
        except OSError as error:
            # Nobody takes over what was touched a moment ago.
            if time.monotonic() - self._touched > self._stale_s:
                self._lost = f"the lock cannot be read ({error.strerror or error})"
            return False
        if holder is None or holder.token != ours.token:
            self._lost = f"the run folder was taken over by {holder or 'somebody'}"
        return not self._lost

    def _taken_over(self, ours: Holder, draft: Path) -> bool:
        """Waits until the holder is found dead and puts us in its place; False to begin anew.

        Raises:
            ConfigError: it is found alive.
        """
        chain: list[tuple[Path, str]] = []
        path = self._path
        while True:
            found = self._dead(path, ours, draft)
            if found is None:
                return False
            chain.append((path, found))
            path = self._run / f"{LOCK}.after-{found}"
            if _linked(draft, path):
                break
        # From here on nobody else may end that hold; but it may have ended before.
        mine = all(_identity(place) == identity for place, identity in chain)
        if mine:
            _write(aside := self._run / f"{LOCK}.next-{ours.token}", ours)
            aside.replace(self._path)
            self._say(f"{self._path}: taken over from a run that has ended")
        for place, _ in chain[1:] if mine else ():
            place.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return mine

    def _dead(self, path: Path, ours: Holder, draft: Path) -> str | None:
        """The identity of a dead holder; None where the file is gone."""
        looks: list[tuple[str, int]] = []
        while True:
            try:
                holder, status = read_holder(path)
            except FileNotFoundError:
                return None
            os.utime(draft)
            age = draft.stat().st_mtime - status.st_mtime
            known = None if holder is None else runs(holder, ours)
            identity = holder.token if holder else f"inode-{status.st_ino}"
            if known is False or (known is None and age > self._stale_s):
                return identity
            looks.append((identity, status.st_mtime_ns))
            if known or looks[-1] != looks[0]:
                raise self._in_use(holder, age)
            # Not at the first look, which may find a process in the moment of its end.
            if len(looks) == 2:
                self._say(
                    f"{self._path}: held by {holder or 'an unknown run'}, last sign of life "
                    f"{age:.0f} s ago; waiting up to {self._stale_s - age:.0f} s for another"
                )
            time.sleep(min(1.0, self._beat_s / 4))

    def _in_use(self, holder: Holder | None, age: float) -> ConfigError:
        remedy = "wait for it or end it, or give another --out"
        return ConfigError(
            f"{self._run} is in use by {holder or 'another run'}; its last sign of life came "
            f"{max(age, 0):.0f} s ago; {remedy}"
        )


def _identity(path: Path) -> str | None:
    try:
        holder, status = read_holder(path)
    except FileNotFoundError:
        return None
    return holder.token if holder else f"inode-{status.st_ino}"


def _write(path: Path, holder: Holder) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(holder.to_json())
        file.flush()
        os.fsync(file.fileno())


def _linked(draft: Path, path: Path) -> bool:
    """Makes `path` a copy of the draft unless there is one, whole and for one process alone."""
    try:
        os.link(draft, path)
    except FileExistsError:
        # A network file system may have done it, lost the answer and been asked again.
        return _identity(path) == _identity(draft)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(draft.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True
