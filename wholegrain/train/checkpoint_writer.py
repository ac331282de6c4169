"""Writes checkpoints beside the training, which waits for a copy to host memory alone.

All ranks write into one folder, which rank 0 makes aside under a name that the others find by the
step and the count of saves; they meet through files, never through a collective, which would run
into those of the training. A rank announces what it wrote in a small file of its own. When rank 0
has all announcements it adds the checksums, marks the folder, renames it, and removes older ones;
until then a file of its own that it touches shows the others that it lives. Where a rank fails,
rank 0 says so once, takes the folder away, and leaves a record by which the others know.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from wholegrain.errors import CheckpointError, WholegrainError
from wholegrain.model.tensor_file import Sum, write_tensors, write_text
from wholegrain.model.weights import distinct
from wholegrain.train import checkpoint
from wholegrain.train.checkpoint import MARKER, STATE, WEIGHTS
from wholegrain.train.optimizer_state import Fragment, fragment_table, optimizer_file, tensor_name
from wholegrain.train.pulse import Pulse, last_beat

T = TypeVar("T")

_FIRST_LOOK_S, _LOOK_S = 0.005, 0.5
_CLOSING_S = 60.0
_ALIVE, _BEAT_S, _BEATS = ".alive", 15.0, 8  # so many beats at least within the patience
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SHOWN_RANKS = 8
_GIVEN_UP = "rank 0 gave it up, and says why"


class _SaveFailedError(Exception):
    """A save that cannot become whole, in words."""


@dataclass(frozen=True)
class _Save:
    """One rank's share of a save, all of it in host memory."""

    step: int
    number: int
    weights: Mapping[str, Tensor] | None
    moments: Mapping[str, Tensor]
    table: Mapping[str, str]
    texts: Mapping[str, str]

    @property
    def bytes(self) -> int:
        """Of the tensors."""
        tensors = [*(self.weights or {}).values(), *self.moments.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Writer:
    """Writes the checkpoints of a run; every rank has one and calls the same methods.

    Constructing it on rank 0 removes what an earlier run left half written. No other rank may save
    before that is done: let the ranks meet once after construction.

    Args:
        run: the run folder, on storage that all ranks share.
        rank: this process.
        world: processes.
        keep: newest checkpoints that stay.
        keep_every: checkpoints of steps that are multiples of this stay for ever; 0 for none.
        background: whether `save` returns before the files are written.
        say: takes a line for the user; rank 0 calls it, from the writing thread.
        check: raises a `WholegrainError` where the folder is no longer this run's; rank 0 asks
            before it seals a checkpoint, and before it takes a failed one back.
        patience_s: seconds without a sign of life of rank 0 after which a save counts as failed.
            However long rank 0 writes, nobody leaves it alone with that. Rank 0 waits half as long
            for what the others write: so they learn from it that the save failed, and all agree.

    Raises:
        CheckpointError: the folder of checkpoints cannot be made or cleared.
    """

    stall_s: float
    """Seconds that `save` and `wait` have taken of the training, in all."""

    def __init__(
        self,
        run: Path,
        *,
        rank: int,
        world: int,
        keep: int,
        keep_every: int,
        background: bool,
        say: Callable[[str], None],
        patience_s: float,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._run, self._parent = run, run / "checkpoints"
        self._rank, self._world = rank, world
        self._keep, self._keep_every = keep, keep_every
        self._background, self._say = background, say
        self._check = check
        self._patience_s, self._patience_for_parts_s = patience_s, patience_s / 2
        self._copies = HostCopies()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._failure: str | None = None
        self._saves = 0
        self.stall_s = 0.0
        if rank == 0:
            try:
                self._parent.mkdir(parents=True, exist_ok=True)
                checkpoint.sweep(run)
            except OSError as error:
                raise CheckpointError(
                    f"{error.filename or self._parent}: {error.strerror}; make the run folder "
                    "writable, or give another --out"
                ) from error

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor] | None,
        fragments: Sequence[Fragment],
        state: Mapping[str, Any] | None,
        files: Mapping[str, str],
    ) -> None:
        """Saves the state after `step` updates; all ranks call it, in the same order.

        Waits for the save before, and for the copy. A failure to write is said, leaves the
        checkpoints that are there as they are, and is raised by `wait` alone.

        Args:
            step: optimizer steps done.
            weights: the whole model's, on rank 0; None elsewhere. Tensors that share memory are
                written once.
            fragments: what this rank holds of the optimizer's state.
            state: JSON-able facts, on rank 0; None elsewhere.
            files: name to text of files that go along; rank 0 writes them.
        """
        if self._rank == 0 and (weights is None or state is None):
            raise ValueError("rank 0 saves weights and state")
        began = time.perf_counter()
        self._join()
        self._saves += 1
        self._failure = None
        fragments = [fragment for fragment in fragments if fragment.count]
        named = {
            tensor_name(f.name, f.start, moment): values
            for f in fragments
            for moment, values in f.tensors.items()
        }
        weights = None if weights is None else distinct(weights)
        sources = {("weights", name): tensor for name, tensor in (weights or {}).items()}
        sources |= {("moments", name): tensor for name, tensor in named.items()}
        copies = self._copies.take(sources)
        texts = {}
        if state is not None:
            texts = {**files, STATE: json.dumps({"step": step, **state}, indent=1)}
        job = _Save(
            step,
            self._saves,
            None if weights is None else {name: copies["weights", name] for name in weights},
            {name: copies["moments", name] for name in named},
            fragment_table(fragments),
            texts,
        )
        if self._background:
            name = f"checkpoint-{step}"
            self._thread = threading.Thread(target=self._work, args=(job,), name=name)
            self._thread.start()
        else:
            self._work(job)
        self.stall_s += time.perf_counter() - began

    def wait(self) -> None:
        """Until the last save is on disk and complete.

        Raises:
            CheckpointError: it failed; says why.
        """
        began = time.perf_counter()
        self._join()
        self.stall_s += time.perf_counter() - began
        if self._failure is not None:
            raise CheckpointError(
                f"{self._failure}; see to the cause and run again to continue from there"
            )

    def close(self) -> None:
        """Lets a save under way end, at the end of a run that failed as well; raises nothing.

        Ranks that are gone are not waited for as long as within a run.
        """
        self._closing.set()
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self, save: _Save) -> None:
        try:
            if self._rank == 0:
                self._lead(save)
            else:
                self._follow(save)
        # Whatever it is, the training is worth more than this save; `wait` raises it.
        except Exception as error:
            self._failure = (
                f"the checkpoint of step {save.step} was not saved: {_words(error)}; the newest "
                f"is {_newest(self._run)}"
            )
            if self._rank == 0:
                self._say(f"{self._failure}; training goes on, and the next save is tried as due")

    def _lead(self, save: _Save) -> None:
        """Rank 0's part: makes the folder, and makes a checkpoint of it."""
        final = self._parent / f"step_{save.step:06d}"
        mark = secrets.token_hex(8)
        aside = self._parent / f".{final.name}.partial-{save.number}-{mark}"
        try:
            aside.mkdir()
            with self._alive(aside):
                sums = self._write_share(aside, save)
                sums |= self._gather(aside)
            self._check()
            checkpoint.seal(aside, final, sums, mark)
        except Exception as error:
            failure = self._explained(error, save)
            self._give_up(aside, save)
            raise failure from error
        try:
            checkpoint.settle_replaced(self._run)
            checkpoint.prune(self._run, self._keep, self._keep_every)
            for record in self._parent.glob(".save-*.failed"):
                record.unlink()
        except OSError as error:
            self._say(f"{error.filename}: cannot be removed ({error.strerror}); remove it by hand")

    def _follow(self, save: _Save) -> None:
        """Another rank's part: writes its share into rank 0's folder and waits for the mark."""
        aside = self._find(save)
        try:
            sums = self._write_share(aside, save)
            _announce(aside, self._rank, {"files": {n: asdict(sums[n]) for n in sums}})
        except Exception as error:
            if not aside.exists():
                raise _SaveFailedError(_GIVEN_UP) from error
            failure = self._explained(error, save)
            # What it wrote may be what there is no room for.
            (aside / optimizer_file(self._rank, self._world)).unlink(missing_ok=True)
            _announce(aside, self._rank, {"failed": _words(failure)})
            raise failure from error
        final = self._parent / f"step_{save.step:06d}"
        mark = aside.name.rpartition("-")[2]

        def ended() -> bool | None:
            if _marked(final, mark):
                return True
            self._refuse_given_up(save)
            return None

        if self._until(ended, self._patience_s, lambda: last_beat(aside / _ALIVE)) is None:
            raise _SaveFailedError(
                f"rank 0 has not completed {final.name}, nor given a sign of life for "
                f"{self._patience_s:g} s"
            )

    def _alive(self, aside: Path) -> AbstractContextManager[object]:
        """Shows the other ranks that this one, rank 0, still works at a save."""
        if self._world == 1:
            return nullcontext()
        return Pulse(aside / _ALIVE, min(_BEAT_S, self._patience_s / _BEATS))

    def _write_share(self, aside: Path, save: _Save) -> dict[str, Sum]:
        """Writes this rank's files; returns what they must be."""
        free = shutil.disk_usage(aside).free
        if save.bytes > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(aside))
        sums = {}
        if save.weights is not None:
            sums[WEIGHTS] = write_tensors(aside / WEIGHTS, save.weights, {})
        if save.moments:
            name = optimizer_file(self._rank, self._world)
            sums[name] = write_tensors(aside / name, save.moments, save.table)
        for name, text in save.texts.items():
            sums[name] = write_text(aside / name, text)
        return sums

    def _gather(self, aside: Path) -> dict[str, Sum]:
        """Waits until all other ranks have announced their files; returns what they must be."""
        missing = set(range(1, self._world))
        sums: dict[str, Sum] = {}

        def arrived() -> bool | None:
            there = set(os.listdir(aside)) if missing else set()
            for rank in sorted(missing):
                if _part(rank) not in there:
                    continue
                path = aside / _part(rank)
                part = json.loads(path.read_text(encoding="utf-8"))
                if "failed" in part:
                    raise _SaveFailedError(f"rank {rank}: {part['failed']}")
                sums.update({name: Sum(**values) for name, values in part["files"].items()})
                path.unlink()
                missing.discard(rank)
            return None if missing else True

        if self._until(arrived, self._patience_for_parts_s) is None:
            names = ", ".join(map(str, sorted(missing)[:_SHOWN_RANKS]))
            more = f" and {len(missing) - _SHOWN_RANKS} more" if len(missing) > _SHOWN_RANKS else ""
            raise _SaveFailedError(
                f"rank {names}{more} wrote no part within {self._patience_for_parts_s:g} s (is "
                f"{self._run} the same storage on all nodes?)"
            )
        return sums

    def _find(self, save: _Save) -> Path:
        """The folder that rank 0 makes for this save."""
        pattern = f".step_{save.step:06d}.partial-{save.number}-*"

        def made() -> Path | None:
            self._refuse_given_up(save)
            return next(self._parent.glob(pattern), None)

        found = self._until(made, self._patience_s)
        if found is None:
            raise _SaveFailedError(
                f"rank 0 has made no folder for it within {self._patience_s:g} s (is {self._run} "
                "the same storage on all nodes?)"
            )
        return found

    def _give_up(self, aside: Path, save: _Save) -> None:
        """Takes back a save that failed, and leaves a record for the ranks that wait for it."""
        try:
            self._check()
        except WholegrainError:
            # Another run's folder by now. Its checkpoints are not to be settled by us, and its
            # ranks would take a record of ours for one of their own save of that number.
            shutil.rmtree(aside, ignore_errors=True)
            return
        try:
            if aside.exists():
                checkpoint.remove(aside)
            checkpoint.settle_replaced(self._run)
            self._record(save).touch()
        except OSError as error:
            self._say(f"{error.filename}: {error.strerror}; a part of a checkpoint may lie there")

    def _refuse_given_up(self, save: _Save) -> None:
        if self._record(save).exists():
            raise _SaveFailedError(_GIVEN_UP)

    def _record(self, save: _Save) -> Path:
        return self._parent / f".save-{save.number}.failed"

    def _explained(self, error: Exception, save: _Save) -> Exception:
        """The error, with the room that there is where there is too little of it."""
        if not isinstance(error, OSError) or error.errno not in _FULL:
            return error
        try:
            free = shutil.disk_usage(self._parent).free
        except OSError:
            return error
        return _SaveFailedError(
            f"{_words(error)} ({free / 2**20:,.0f} MiB are free, {save.bytes / 2**20:,.0f} MiB are "
            f"to be written by rank {self._rank})"
        )

    def _until(
        self,
        look: Callable[[], T | None],
        patience_s: float,
        sign: Callable[[], object] = lambda: None,
    ) -> T | None:
        """Looks until there is something to see; None when patience ends.

        Args:
            look: gives what is waited for, None while it is not there.
            patience_s: seconds, counted from the last time that `sign` gave something else.
            sign: of life.
        """
        end = time.monotonic() + patience_s
        pause = _FIRST_LOOK_S
        seen = sign()
        while (found := look()) is None:
            if (now := sign()) != seen:
                seen, end = now, time.monotonic() + patience_s
            if self._closing.is_set():
                end = min(end, time.monotonic() + _CLOSING_S)
            left = end - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LOOK_S)
        return found


class HostCopies:
    """Memory of the host that tensors are copied to, used again by the next save.

    Pinned where the tensors are on a GPU, which then copies all of them in one go.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, Tensor] = {}

    def take(self, tensors: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
        """Contiguous copies under the same keys, valid until the next call."""
        taken: dict[Hashable, Tensor] = {}
        devices = set()
        for key, tensor in tensors.items():
            taken[key] = self._memory(key, tensor)
            taken[key].copy_(tensor.detach(), non_blocking=True)
            if tensor.is_cuda:
                devices.add(tensor.device)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        self._kept = taken
        return taken

    def _memory(self, key: Hashable, tensor: Tensor) -> Tensor:
        kept = self._kept.get(key)
        if kept is not None and kept.shape == tensor.shape and kept.dtype == tensor.dtype:
            return kept
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def _part(rank: int) -> str:
    """The name of a rank's announcement."""
    return f"part-{rank:05d}.json"


def _announce(aside: Path, rank: int, part: Mapping[str, Any]) -> None:
    """Tells rank 0 what this rank wrote, or why it did not; all at once."""
    partial = aside / f".{_part(rank)}.partial"
    partial.write_text(json.dumps(part), encoding="utf-8")
    partial.replace(aside / _part(rank))


def _marked(final: Path, mark: str) -> bool:
    try:
        return (final / MARKER).read_text(encoding="utf-8") == mark
    except OSError:
        return False


def _newest(run: Path) -> str:
    try:
        newest = checkpoint.latest(run)
    except OSError as error:
        return f"not to be seen ({error.strerror})"
    return str(newest.folder) if newest else "none yet"


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    if isinstance(error, _SaveFailedError):
        return str(error)
    return f"{type(error).__name__}: {error}"
