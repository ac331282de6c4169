"""Shows how far a conversion is: on a terminal a bar, in a log file a line a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_BAR_SECONDS, _LINE_SECONDS = 0.25, 60.0


class Meter:
    """Counts samples, parts and bad samples of this run; the rate is this run's own.

    It starts no thread, for the process that shows it forks others.

    Args:
        total: samples that this run is to see, those found done included; None if unknown.
        parts: parts that this run is to write, those found done included.
        clock: seconds.
    """

    def __init__(
        self,
        console: Console,
        name: str,
        total: int | None,
        parts: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._name, self._clock = console, name, clock
        self._total, self._parts = total, parts
        self._samples = self._parts_done = self._bad = 0
        self._before = self._parts_before = 0
        self._begun = self._shown = clock()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[line]}"),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task(name, total=parts, line="")

    def __enter__(self) -> Self:
        self._begun = self._clock()
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def found(self, samples: int, bad: int) -> None:
        """Takes a part that an earlier run has written."""
        self._before += samples
        self._parts_before += 1
        self._samples += samples
        self._bad += bad
        self._parts_done += 1

    def saw(self, samples: int, bad: int) -> None:
        """Takes samples just done."""
        self._samples += samples
        self._bad += bad
        self.tick()

    def part_done(self) -> None:
        """Takes a part just written."""
        self._parts_done += 1
        self.tick()

    def tick(self) -> None:
        """Shows the state if it is time."""
        now = self._clock()
        wait = _BAR_SECONDS if self._console.is_terminal else _LINE_SECONDS
        if now - self._shown < wait:
            return
        self._shown = now
        if self._console.is_terminal:
            share = self._share()
            done = self._parts_done if share is None else share * self._parts
            self._bar.update(self._task, completed=done, line=self.line())
            self._bar.refresh()
        else:
            line = f"{self._name}: {self.line()}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def line(self) -> str:
        """``1,200 of 5,000 samples, 1 of 5 parts, 240/s, 0:00:16 left, 3 bad``."""
        of = "" if self._total is None else f" of {self._total:,}"
        said = [
            f"{self._samples:,}{of} samples",
            f"{self._parts_done:,} of {self._parts:,} parts",
            f"{self.rate():,.0f}/s",
        ]
        if (left := self.seconds_left()) is not None:
            said.append(f"{int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d} left")
        if self._bad:
            said.append(f"{self._bad:,} bad")
        return ", ".join(said)

    def rate(self) -> float:
        """Samples a second of this run."""
        spent = self._clock() - self._begun
        return (self._samples - self._before) / spent if spent > 0 else 0.0

    def seconds_left(self) -> float | None:
        """At the pace so far; None where there is none yet."""
        spent = self._clock() - self._begun
        if self._total is not None:
            rate = self.rate()
            return (self._total - self._samples) / rate if rate else None
        done = self._parts_done - self._parts_before
        return spent / done * (self._parts - self._parts_done) if done else None

    def _share(self) -> float | None:
        return self._samples / self._total if self._total else None
