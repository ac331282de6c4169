"""Checkpoints: a folder that exists only when it is whole.

``checkpoints/step_000500/`` holds ``model.safetensors``, the optimizer files of the ranks,
``state.json``, the files that a release needs, and ``checksums.json`` about them all. It is written
aside (see ``checkpoint_writer``), flushed, marked ``COMPLETE``, renamed, and only then are older
ones removed. Everything else of a resume is arithmetic: order, augmentation and dropout are
functions of the step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import nn

from wholegrain.errors import CheckpointError
from wholegrain.model.tensor_file import Sum, file_sum, flush_folder, write_text
from wholegrain.model.weights import load_weights
from wholegrain.train.optimizer_state import StoredState, is_optimizer_file

T = TypeVar("T")

MARKER = "COMPLETE"
WEIGHTS, STATE, CHECKSUMS = "model.safetensors", "state.json", "checksums.json"
_NAME = re.compile(r"step_(\d+)")
_LARGEST_JSON = 64 << 20
_TRIES, _PAUSE_S = 4, 2.0
# What the storage says of a file that is not what was written; all else it says of itself.
_NOT_THERE = (FileNotFoundError, NotADirectoryError)
_DAMAGED = (*_NOT_THERE, IsADirectoryError)


class StorageError(CheckpointError):
    """The storage gives no answer, which says nothing of the checkpoint that it holds."""

    exit_status = 1
    """As of a crash: the next start, on other nodes perhaps, may be answered."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        match = _NAME.match(self.folder.name)
        return int(match.group(1)) if match else 0

    @property
    def weights(self) -> Path:
        """The weights, as safetensors."""
        return self.folder / WEIGHTS

    def state(self) -> dict[str, Any]:
        """What was stored beside the tensors."""
        return self._read(STATE)

    def sums(self) -> dict[str, Sum]:
        """What each file of the checkpoint must be, by name.

        Raises:
            CheckpointError: ``checksums.json`` is missing or says something else.
            StorageError: the storage does not let it be read.
        """
        values = self._read(CHECKSUMS)
        try:
            sums = {name: Sum(str(v["sha256"]), int(v["bytes"])) for name, v in values.items()}
        except (TypeError, KeyError, ValueError) as error:
            raise self._unreadable(CHECKSUMS, repr(error)) from error
        for name in sums:
            if name in {"", ".", ".."} or Path(name).name != name:
                raise self._unreadable(CHECKSUMS, f"{name!r} is not the name of a file")
        return sums

    def load(self, model: nn.Module) -> None:
        """Loads the weights; nothing is executed.

        Raises:
            CheckpointError: a name is missing or left over, or the file is damaged.
        """
        load_weights(model, self.weights)

    def optimizer(self) -> StoredState:
        """The optimizer state of all ranks that wrote it.

        Raises:
            CheckpointError: a file is damaged; names it.
        """
        return StoredState(self.folder, sorted(filter(is_optimizer_file, self.sums())))

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name

        def text() -> str:
            size = path.stat().st_size
            if size > _LARGEST_JSON:
                raise ValueError(f"{size} bytes are too many")
            return path.read_text(encoding="utf-8")

        try:
            return dict(json.loads(patiently(text, path)))
        except (*_DAMAGED, ValueError, TypeError, RecursionError) as error:
            raise self._unreadable(name, error) from error

    def _unreadable(self, name: str, error: object) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}/{name}: cannot be read ({error}); remove the folder to fall back to "
            "the checkpoint before it"
        )


def complete(run: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first.

    Raises:
        OSError: the storage gives no answer.
    """
    return [found for found in _all(run) if _exists(found.folder / MARKER)]


def latest(run: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run.

    Raises:
        OSError: the storage gives no answer.
    """
    found = complete(run)
    return found[-1] if found else None


def verify(checkpoint: Checkpoint) -> str | None:
    """Why a checkpoint must not be used, in words; None where every byte is as it was written.

    Reads all of it, at the speed of the storage or of sha256, whichever is slower. What is missing,
    truncated or altered is damage; what cannot be read just now is not, and is tried again.

    Raises:
        StorageError: the storage does not let something be read, several times in a row.
    """
    folder = checkpoint.folder
    if not patiently(lambda: _exists(folder / MARKER), folder / MARKER):
        return f"{MARKER} is missing"
    if not patiently(lambda: _exists(folder / CHECKSUMS), folder / CHECKSUMS):
        return f"{CHECKSUMS} is missing, so it is of a form that this version does not read"
    try:
        sums = checkpoint.sums()
    except StorageError:
        raise
    except CheckpointError:
        return f"{CHECKSUMS} is damaged"
    unlisted = [name for name in (WEIGHTS, STATE) if name not in sums]
    if unlisted:
        return f"{CHECKSUMS} does not list {unlisted[0]}"
    for name, expected in sums.items():
        problem = _difference(folder / name, expected)
        if problem:
            return f"{name} {problem}"
    try:
        step = checkpoint.state().get("step")
    except StorageError:
        raise
    except CheckpointError:
        return f"{STATE} is not JSON"
    if step != checkpoint.step:
        return f"{STATE} is of step {step!r}"
    return None


def newest_whole(
    run: Path,
    resume: Literal["auto", "never"] | int,
    say: Callable[[str], None],
    defer: Callable[[Callable[[], None]], None] = lambda rename: rename(),
) -> Checkpoint | None:
    """The checkpoint that a run goes on from; None where it begins. Only one rank calls this.

    Args:
        run: the run folder.
        resume: as ``RunConfig.resume``. `auto` passes over what is not whole: that is named,
            renamed ``step_N.damaged``, and the one before is taken. A number takes the checkpoint
            of that step, and renames later ones ``step_N.set-aside``.
        say: takes a line for the user.
        defer: takes each rename, to be made once nothing refuses the run any more; by default it
            is made at once.

    Raises:
        CheckpointError: there are checkpoints and `resume` is `never`; that of the step is not
            there or not whole; none is whole; a rename that is made at once fails.
        StorageError: the storage gives no answer, so that nobody knows.
    """
    parent = run / "checkpoints"
    patiently(lambda: settle_replaced(run), parent)
    found = patiently(lambda: _all(run), parent)
    if resume == "never":
        if found:
            raise CheckpointError(
                f"{run}: has checkpoints up to step {found[-1].step}, and run.resume is 'never'; "
                "give another --out, or run.resume=auto to continue"
            )
        return None
    if resume != "auto":
        asked = _of_step(run, found, resume)
        for later in found[found.index(asked) + 1 :]:
            defer(partial(_set_aside, later, asked.step, say))
        return asked
    refused: list[tuple[Checkpoint, str]] = []
    for checkpoint in reversed(found):
        problem = verify(checkpoint)
        if problem is None:
            for other, why in refused:
                defer(partial(_call_damaged, other, why, checkpoint.step, say))
            return checkpoint
        refused.append((checkpoint, problem))
    if refused:
        # They keep their names: a run that is started again must not begin from nothing unasked.
        reasons = "; ".join(f"{c.folder.name}: {why}" for c, why in refused)
        raise CheckpointError(
            f"{run}: no checkpoint is whole ({reasons}); bring one back from a copy, or give "
            "another --out to begin anew"
        )
    return None


def prune(run: Path, keep: int, keep_every: int) -> None:
    """Removes complete checkpoints, but for the newest `keep` and multiples of `keep_every`.

    Args:
        run: the run folder.
        keep: at least 1.
        keep_every: steps; 0 keeps none for ever.

    Raises:
        OSError: the storage does not let one go.
    """
    for old in complete(run)[:-keep]:
        if not keep_every or old.step % keep_every:
            remove(old.folder)


def remove(folder: Path) -> None:
    """Removes a folder; at no moment is there one that looks whole and is not.

    Raises:
        OSError: the storage does not let it go.
    """
    gone = folder.with_name(f".removed-{folder.name.lstrip('.')}")
    if gone.exists():
        shutil.rmtree(gone)
    folder.rename(gone)
    shutil.rmtree(gone)


def settle_replaced(run: Path) -> None:
    """Removes checkpoints that were replaced, and puts one back whose replacement never came.

    Raises:
        OSError: the storage does not let one go.
    """
    for old in sorted((run / "checkpoints").glob(".step_*.replaced")):
        final = old.with_name(old.name.removeprefix(".").removesuffix(".replaced"))
        if final.exists():
            shutil.rmtree(old)
        else:
            old.rename(final)


def sweep(run: Path) -> None:
    """Removes what saves and removals that were cut short left behind; one rank, before any save.

    Raises:
        OSError: the storage does not let something go.
    """
    settle_replaced(run)
    parent = run / "checkpoints"
    for pattern in (".step_*.partial-*", ".removed-*"):
        for left_over in parent.glob(pattern):
            shutil.rmtree(left_over)
    for record in parent.glob(".save-*.failed"):
        record.unlink()


def seal(aside: Path, final: Path, sums: Mapping[str, Sum], mark: str) -> None:
    """Makes a checkpoint of a folder whose files are all written and flushed.

    Args:
        aside: the folder, beside `final`.
        final: the name that it gets; a checkpoint of that name is replaced, and stays beside it
            under a hidden name until ``settle_replaced``.
        sums: of its files.
        mark: what its marker says.

    Raises:
        OSError: the storage does not take it.
    """
    listed = {name: asdict(sums[name]) for name in sorted(sums)}
    write_text(aside / CHECKSUMS, json.dumps(listed, indent=1))
    write_text(aside / MARKER, mark)
    flush_folder(aside)
    if final.exists():
        final.rename(final.with_name(f".{final.name}.replaced"))
    aside.rename(final)
    flush_folder(final.parent)


def _all(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run, with and without their marker, oldest first."""
    parent = run / "checkpoints"
    try:
        # Not by glob, to which a folder that it may not list, or cannot, is an empty one: a run
        # would begin anew beside its checkpoints.
        names = os.listdir(parent)
    except _NOT_THERE:
        return []
    found = [parent / name for name in names if _NAME.fullmatch(name)]
    return sorted(map(Checkpoint, found), key=lambda checkpoint: checkpoint.step)


def _exists(path: Path) -> bool:
    # `Path.exists` takes some errors of the storage for a no, and in newer Pythons all of them.
    try:
        path.stat()
    except _NOT_THERE:
        return False
    return True


def patiently(look: Callable[[], T], path: Path) -> T:
    """Looks at a checkpoint's file or folder, and again where the storage gives no answer.

    Raises:
        OSError: what is there is not what was written: missing, or a folder for a file.
        StorageError: no answer came, several times in a row.
    """
    tries = 0
    while True:
        try:
            return look()
        except _DAMAGED:
            raise
        except OSError as error:
            tries += 1
            if tries == _TRIES:
                raise StorageError(
                    f"{error.filename or path}: cannot be read ({error.strerror}, {tries} times in "
                    "a row); no checkpoint was renamed; start again when the storage answers, or "
                    "move the checkpoint away to go on from the one before it"
                ) from error
        time.sleep(_PAUSE_S)


def _of_step(run: Path, found: list[Checkpoint], step: int) -> Checkpoint:
    asked = next((checkpoint for checkpoint in found if checkpoint.step == step), None)
    if asked is None:
        there = ", ".join(str(checkpoint.step) for checkpoint in found) or "none"
        raise CheckpointError(
            f"{run}: has no checkpoint of step {step}, which run.resume asks for; there are: "
            f"{there}"
        )
    problem = verify(asked)
    if problem:
        others = ", ".join(str(checkpoint.step) for checkpoint in found if checkpoint != asked)
        raise CheckpointError(
            f"{asked.folder}: is not whole ({problem}), and run.resume asks for it; there are "
            f"also: {others or 'none'}"
        )
    return asked


def _set_aside(later: Checkpoint, step: int, say: Callable[[str], None]) -> None:
    name = _rename(later, "set-aside")
    say(f"{later.folder} is now called {name}: the run continues from step {step}")


def _call_damaged(other: Checkpoint, why: str, step: int, say: Callable[[str], None]) -> None:
    name = _rename(other, "damaged")
    say(
        f"{other.folder} is not whole: {why}; it is now called {name}, and the run continues from "
        f"step {step}"
    )


def _rename(checkpoint: Checkpoint, ending: str) -> str:
    """Takes a checkpoint out of the row; returns its new name."""
    folder = checkpoint.folder
    new, number = folder.with_name(f"{folder.name}.{ending}"), 1
    while new.exists():
        number += 1
        new = folder.with_name(f"{folder.name}.{ending}-{number}")
    try:
        folder.rename(new)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be renamed {new.name} ({error.strerror}); make the run folder "
            "writable"
        ) from error
    return new.name


def _difference(path: Path, expected: Sum) -> str | None:
    try:
        size = patiently(lambda: path.stat().st_size, path)
        if size != expected.bytes:
            return f"has {size:,} bytes instead of {expected.bytes:,}"
        if patiently(lambda: file_sum(path), path) != expected:
            return f"is altered: its sha256 is not that of {CHECKSUMS}"
    except _NOT_THERE:
        return "is missing"
    except IsADirectoryError:
        return "is a folder"
    return None
