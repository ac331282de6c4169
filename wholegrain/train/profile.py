"""A window of steps under torch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerAction, profile

from wholegrain.train.config import ProfileConfig

FOLDER = "profile"
TRACE = "trace.json.gz"
TABLE = "table.txt"
_ROWS = 40


class StepProfile:
    """Records `config.steps` steps from `config.start` on, counted from the start or resume.

    Within the block call `step` after each step; outside the window that counts, and does nothing
    else. What is recorded goes to ``profile/rank-00000/`` of the run folder: a trace for
    https://ui.perfetto.dev or ``chrome://tracing``, and a table of the operators that take most
    time. A run that ends within the window writes what there is. A profile that fails is said to,
    and the run goes on.

    Args:
        config: None records nothing.
        run: the folder.
        rank: of this process; only the first records.
        say: tells where the profile is.
    """

    def __init__(
        self,
        config: ProfileConfig | None,
        run: Path,
        rank: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:
        self._config = config if rank == 0 else None
        self._folder = run / FOLDER / f"rank-{rank:05d}"
        self._say = say
        self._start = config.start if config is not None else 0
        self._done = 0
        self._profiler: profile | None = None

    def step(self) -> None:
        """A step is done."""
        if self._config is None:
            return
        self._done += 1
        if self._done == self._config.start + self._config.steps:
            self._tried(self._end)
        elif self._profiler is not None:
            self._tried(self._profiler.step)
        self._begin_if_due()

    def _begin_if_due(self) -> None:
        # The profiler warms up in the step before the window, where there is one.
        if self._config is not None and self._done == max(0, self._config.start - 1):
            warm_up = min(1, self._config.start)
            self._tried(lambda: self._begin(warm_up))

    def _begin(self, warm_up: int) -> None:
        def action(step: int) -> ProfilerAction:
            return ProfilerAction.WARMUP if step < warm_up else ProfilerAction.RECORD

        # Without activities named, it takes all that this machine has.
        self._profiler = profile(schedule=action, on_trace_ready=self._write)
        self._profiler.__enter__()

    def _end(self) -> None:
        profiler, self._profiler, self._config = self._profiler, None, None
        if profiler is not None:
            profiler.__exit__(None, None, None)

    def _write(self, profiler: profile) -> None:
        if self._done <= self._start:
            return  # the run ended before one step of the window was whole
        self._folder.mkdir(parents=True, exist_ok=True)
        aside = self._folder / f"partial-{TRACE}"  # the ending decides on compression
        profiler.export_chrome_trace(str(aside))
        aside.replace(self._folder / TRACE)
        key = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=key, row_limit=_ROWS)
        (self._folder / TABLE).write_text(f"{table}\n", encoding="utf-8")
        self._say(f"the profile lies in {self._folder}: {TRACE}, {TABLE}")

    def _tried(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, RuntimeError, AssertionError) as error:
            self._config = self._profiler = None
            self._say(f"{self._folder}: the profile failed ({error}); the run goes on without it")

    def __enter__(self) -> StepProfile:
        self._begin_if_due()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tried(self._end)
