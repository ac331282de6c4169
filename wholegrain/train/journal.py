"""What a run says of itself: lines on disk, TensorBoard, Weights & Biases, a progress bar.

All of it helps to watch a run, and the run is worth more: once training is under way, nothing here
ends it, but that another run has taken the folder over, or that nobody reads the output any more.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wholegrain.errors import ConfigError
from wholegrain.train.config import WandbConfig
from wholegrain.train.run_folder import replace_text

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
WANDB = "wandb.json"

_SHOWN = ("loss", "samples_per_second", "acc@0.5")
_KEPT_AT_MOST = 1000
_INIT_S = 30
_FINISH_S = 30
# Figures of training by the part of their name that says what they are; the others are losses and
# their like.
_GROUPS = {
    **dict.fromkeys(
        (
            "samples_per_second",
            "pairs_per_second",
            "real_token_share",
            "data_wait_share",
            "checkpoint_share",
            "validation_share",
            "step_seconds_p50",
            "step_seconds_p99",
            "tflops",
            "peak_share",
            "memory_gib",
        ),
        "speed",
    ),
    **dict.fromkeys(
        (
            "learning_rate",
            "gradient_norm",
            "skipped",
            "outliers",
            "outlier_gradient_norm",
            "loss_scale",
        ),
        "optim",
    ),
    "skipped_samples": "data",
}


def tag(split: str, name: str) -> str:
    """The name of a figure where names are grouped by what precedes their first slash.

    >>> tag("train", "matching/region"), tag("val", "loss"), tag("train", "region/gradient_norm")
    ('train/matching/region', 'val/loss', 'optim/region/gradient_norm')
    """
    group = split
    if split == "train":
        group = next((_GROUPS[part] for part in name.split("/") if part in _GROUPS), split)
    return f"{group}/{name}"


def truncate_metrics(path: Path, step: int) -> int:
    """Drops what a run wrote after `step`, so that a resumed run does not say things twice.

    Returns:
        The last step that was there; 0 where there was none.
    """
    if not path.exists():
        return 0
    kept, last = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError):
            continue  # the line that the kill cut short
        if isinstance(found, int):
            last = max(last, found)
            if found <= step:
                kept.append(line)
    replace_text(path, "".join(f"{line}\n" for line in kept))
    return last


def has_line(path: Path, step: int, split: str) -> bool:
    """Whether a run's metrics say something of `split` after `step`."""
    if not path.exists():
        return False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            if (entry["step"], entry["split"]) == (step, split):
                return True
        except (ValueError, TypeError, KeyError):
            continue
    return False


class Journal:
    """Writes metrics of the main process; other ranks stay silent.

    Args:
        run: the folder.
        steps: of the whole run.
        start: the step that it goes on from; what was said of later ones is withdrawn.
        title: shown.
        active: whether this rank writes.
        wandb: where else the metrics go.
        config: as resolved, for Weights & Biases.
        check: raises where the folder is no longer this run's; asked before anything is written.

    Raises:
        ConfigError: a file cannot be opened, or wandb is not installed; the latter on all ranks.
    """

    def __init__(
        self,
        run: Path,
        steps: int,
        start: int,
        title: str,
        active: bool,
        *,
        wandb: WandbConfig | None = None,
        config: Mapping[str, Any] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.active, self._check = active, check
        if wandb is not None and "wandb" not in sys.modules and find_spec("wandb") is None:
            raise ConfigError(
                "run.wandb is set, but its package is not installed; "
                "`pip install wholegrain[wandb]`, or set run.wandb to null"
            )
        if not active:
            return
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn(title),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[line]}"),
            console=console,
            # A log file wants lines, not a bar that redraws itself.
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=steps, completed=start, line="")
        self._console, self._title, self._steps = console, title, steps
        self._check()
        try:
            last = truncate_metrics(run / METRICS, start)
            self._lines = _WholeEntries(run / METRICS, self.note)
            self._board = _Board(run / TENSORBOARD, start, self.note)
        except OSError as error:
            raise ConfigError(
                f"{error.filename or run}: metrics cannot be written ({error.strerror}); make room "
                "or mend the permissions, or give another --out"
            ) from error
        self._wandb = _Wandb(wandb, run, start, last, config, self.note) if wandb else None
        self._bar.start()

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line of metrics."""
        if not self.active:
            return
        self._record(step, split, values)
        line = "  ".join(f"{name} {values[name]:.3f}" for name in _SHOWN if name in values)
        self._bar.update(self._task, completed=step, line=line)
        if not self._console.is_terminal:
            shown = f"{self._title} {step}/{self._steps} {split} {line}"
            _said(lambda: print(shown, flush=True))

    def outlier(self, step: int, norm: float) -> None:
        """Names a step whose gradient was far from those before it; in order, before `write`."""
        if self.active:
            self._record(step, "train", {"outlier_gradient_norm": norm})
            self.note(f"step {step}: the gradient norm {norm:.4g} is far from those before it")

    def note(self, text: str) -> None:
        """A sentence to whoever watches."""
        if not self.active:
            return
        # Brackets are no markup, and a log file's lines are as long as their sentences.
        plain: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
        if not _said(lambda: self._console.print(text, **plain)):
            with suppress(OSError), self._console.capture():
                pass  # takes out what the console would print again with each that follows

    def _record(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._check()
        # JSON knows no NaN: a figure that is none is null.
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        entry: dict[str, Any] = {"step": step, "split": split, **plain}
        self._lines.write(f"{json.dumps(entry, allow_nan=False)}\n".encode())
        tagged = {tag(split, name): value for name, value in values.items()}
        self._board.write(step, tagged)
        if self._wandb is not None:
            self._wandb.write(step, tagged)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.active:
            self._bar.stop()
            self._board.close()
            self._lines.close()
            if self._wandb is not None:
                self._wandb.close(failed=error is not None)


def _said(say: Callable[[], None]) -> bool:
    """Whether a line could be printed. A disk that is full under the log of what is printed ends no
    run; a reader that left does.
    """
    try:
        say()
    except BrokenPipeError:
        raise
    except OSError:
        return False
    return True


class _WholeEntries:
    """A file that grows by whole entries, also where the disk is full for a while.

    What could not be written is kept and tried again with the next entry.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path, self._say, self._said = path, say, False
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._end = os.fstat(self._file).st_size
        self._waiting: deque[bytes] = deque(maxlen=_KEPT_AT_MOST)

    def write(self, entry: bytes) -> None:
        """Adds an entry, after those that wait for room."""
        self._waiting.append(entry)
        try:
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            if not self._said:
                self._said = True
                self._say(
                    f"{self._path}: cannot be written ({error.strerror}); training goes on, and "
                    f"the last {_KEPT_AT_MOST:,} entries are kept until they can be"
                )

    def close(self) -> None:
        """Gives the file back."""
        try:
            os.close(self._file)
        except OSError as error:  # a file system on the network may say only now what it lost
            self._say(f"{self._path}: its end may be missing ({error.strerror})")

    def _write(self, entry: bytes) -> None:
        left = memoryview(entry)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(entry)


class _Board:
    """TensorBoard's event file: scalars, one event a line of metrics, on disk at once.

    TensorBoard's own writer fails in a thread of its own, with a trace and out of our reach.
    """

    def __init__(self, folder: Path, start: int, say: Callable[[str], None]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{rest:09d}.{socket.gethostname()}"
        self._entries = _WholeEntries(folder / name, say)
        self._records = RecordWriter(self._entries)
        self._add(Event(file_version="brain.Event:2"))
        # Points of earlier files from this step on are withdrawn.
        log = SessionLog(status=SessionLog.START)
        self._add(Event(step=start + 1, session_log=log))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        made = [self._summary.Value(tag=name, simple_value=v) for name, v in values.items()]
        self._add(self._event(step=step, summary=self._summary(value=made)))

    def close(self) -> None:
        self._entries.close()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


class _Wandb:
    """A run of Weights & Biases; at its first failure it is said to be given up, and is.

    A resumed run goes on under its id, which stands in the run folder. Weights & Biases takes no
    point back: steps that are trained again after a resume are not sent again.
    """

    def __init__(
        self,
        settings: WandbConfig,
        run: Path,
        start: int,
        last: int,
        config: Mapping[str, Any] | None,
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._run: Any = None
        self._sent = 0
        try:
            import wandb

            known = _id_of(run / WANDB, settings.project) if start else None
            identity = known or secrets.token_hex(4)
            self._sent = last if known else 0
            replace_text(run / WANDB, json.dumps({"id": identity, "project": settings.project}))
            self._run = wandb.init(
                project=settings.project,
                name=settings.name or run.resolve().name,
                id=identity,
                resume="allow",
                mode=settings.mode,
                dir=str(run),
                config=dict(config or {}),
                settings={
                    "silent": True,
                    "console": "off",
                    "init_timeout": _INIT_S,
                    "finish_timeout": _FINISH_S,
                    "finish_timeout_raises": True,
                },
            )
            online = settings.mode == "online"
            where = self._run.url if online else f"`wandb sync {self._run.sync_dir}` sends it"
            say(f"Weights & Biases: {where}")
        except Exception as error:
            self._give_up(error)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._run is None or step <= self._sent:
            return
        try:
            self._run.log(dict(values), step=step)
        except Exception as error:
            self._give_up(error)

    def close(self, failed: bool) -> None:
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=int(failed))
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        told = " ".join(str(error).split()) or type(error).__name__
        self._say(f"Weights & Biases: given up ({told}); the run goes on, {METRICS} has all of it")


def _id_of(path: Path, project: str) -> str | None:
    if not path.exists():
        return None
    entry = json.loads(path.read_text(encoding="utf-8"))
    return str(entry["id"]) if entry["project"] == project else None
