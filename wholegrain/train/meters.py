"""What a run says of itself: metrics on disk, in TensorBoard, and in a progress bar."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

METRICS = "metrics.jsonl"


class Averages:
    """Means of named scalars since the last look; tensors stay on their device until then.

    What is not finite is left out: one lost step must not hide the others of its line.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Adds one observation of each name."""
        for name, value in values.items():
            tensor = torch.as_tensor(value).detach().double()
            finite = torch.isfinite(tensor)
            self._add(name, torch.where(finite, tensor, 0.0), finite.double())

    def take(self) -> dict[str, float]:
        """The means (NaN of nothing), after which counting starts anew. The host waits here."""
        means = {name: float(total / self._counts[name]) for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> dict[str, float]:
        """Sums and counts so far, for a checkpoint; the host waits here."""
        sums = {f"sum/{name}": float(total) for name, total in self._sums.items()}
        return sums | {f"count/{name}": float(count) for name, count in self._counts.items()}

    def load(self, state: Mapping[str, float]) -> None:
        """Continues from `state`."""
        for key, total in state.items():
            kind, _, name = key.partition("/")
            if kind == "sum":
                count = torch.tensor(state[f"count/{name}"], dtype=torch.float64)
                self._add(name, torch.tensor(total, dtype=torch.float64), count)

    def _add(self, name: str, total: Tensor, count: Tensor) -> None:
        known = name in self._sums
        # The earlier sum comes second: one that was read from a checkpoint lies on the CPU, and
        # follows to the device of the rest.
        self._sums[name] = total + self._sums[name].to(total.device) if known else total
        self._counts[name] = count + self._counts[name].to(count.device) if known else count


class Throughput:
    """Samples a second and the share of time spent waiting for data.

    Args:
        clock: seconds; replaced in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start: float | None = None
        self._samples = 0
        self._waited = 0.0
        self._wait_from = 0.0

    def waiting(self) -> None:
        """The loop asks for a batch."""
        self._wait_from = self._clock()
        if self._start is None:
            self._start = self._wait_from

    def arrived(self) -> None:
        """The batch is there."""
        self._waited += self._clock() - self._wait_from

    def step(self, samples: int) -> None:
        """A step over `samples` images of all ranks is done."""
        self._samples += samples

    def take(self) -> dict[str, float]:
        """Figures since the last look."""
        now = self._clock()
        elapsed = now - self._start if self._start is not None else 0.0
        figures = {
            "samples_per_second": self._samples / elapsed if elapsed > 0 else 0.0,
            "data_wait_share": self._waited / elapsed if elapsed > 0 else 0.0,
        }
        self._start, self._samples, self._waited = now, 0, 0.0
        return figures


def truncate_metrics(path: Path, step: int) -> None:
    """Drops what a run wrote after `step`, so that a resumed run does not say things twice."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the line that the kill cut short
        if entry["step"] <= step:
            kept.append(line)
    aside = path.with_suffix(".partial")
    aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    aside.replace(path)


class Journal:
    """Writes metrics of the main process; other ranks stay silent."""

    def __init__(self, run: Path, steps: int, start: int, title: str, active: bool) -> None:
        self.active = active
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        truncate_metrics(run / METRICS, start)
        self._file = (run / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)
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
        self._bar.start()

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line of metrics."""
        if not self.active:
            return
        # JSON knows no NaN: a figure that is none is null.
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        entry: dict[str, Any] = {"step": step, "split": split, **plain}
        self._file.write(json.dumps(entry, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)
        shown = ("loss", "samples_per_second", "acc@0.5")
        line = "  ".join(f"{name} {values[name]:.3f}" for name in shown if name in values)
        self._bar.update(self._task, completed=step, line=line)
        if not self._console.is_terminal:
            print(f"{self._title} {step}/{self._steps} {split} {line}", flush=True)

    def note(self, text: str) -> None:
        """A sentence to whoever watches."""
        if self.active:
            self._bar.console.print(text, highlight=False)

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
            self._file.close()
