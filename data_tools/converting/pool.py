"""Writes many parts at a time, each in a process of its own.

A part's process is forked after the source was opened, so that all share its annotations, and ends
with its part, so that what it touched of them (Python counts references in place) does not pile
up. It hears of the parent's death by its own parent changing.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path

from data_tools.converting.judge import Judge
from data_tools.converting.meter import Meter
from data_tools.converting.part import write_part
from data_tools.converting.plan import Plan
from data_tools.sources.base import Bad
from wholegrain.data.part import read_part
from wholegrain.errors import DataError, WholegrainError

_REPORT_SECONDS = 0.2
_FORK = multiprocessing.get_context("fork")


class Watch:
    """Hears of every sample and part of a run: shows them, and stops the run if all is lost."""

    def __init__(self, folder: Path, judge: Judge, meter: Meter) -> None:
        self._folder, self._judge, self._meter = folder, judge, meter
        self._next = 0

    def found(self, number: int) -> bool:
        """Whether part ``number`` is there already; it is counted then."""
        marker = read_part(self._folder, number)
        if marker is None:
            return False
        notes = marker["notes"]
        self._meter.found(notes["seen"], len(notes["skipped"]))
        if self._judge.total is not None:
            self._judge.saw(notes["seen"], (Bad(**bad) for bad in notes["skipped"]))
        return True

    def saw(self, samples: int, bad: list[Bad]) -> None:
        """Takes samples just done. DataError if too many are bad."""
        self._meter.saw(samples, len(bad))
        if self._judge.total is not None:
            self._judge.saw(samples, bad)

    def part_done(self) -> None:
        """Takes a part just written. DataError if too many samples are bad."""
        self._meter.part_done()
        while self._judge.total is None and (marker := read_part(self._folder, self._next)):
            self._judge.saw_part(marker["notes"])
            self._next += 1

    def tick(self) -> None:
        """Lets the display go on."""
        self._meter.tick()


def write_parts(
    plan: Plan, folder: Path, parts: Iterable[int], processes: int, watch: Watch
) -> None:
    """Writes those of ``parts`` that are not there.

    Raises:
        DataError: a part cannot be written, a process died, or too many samples are bad. Parts
            that are complete stay.
    """
    todo = [number for number in parts if not watch.found(number)]
    if processes > 1 and len(todo) > 1:
        _Pool(plan, folder, processes, watch).run(todo)
        return
    for number in todo:
        # Another run may have written it since.
        if read_part(folder, number) is None:
            write_part(plan, folder, number, lambda bad: watch.saw(1, [] if bad is None else [bad]))
        watch.part_done()


@dataclass(slots=True)
class _Worker:
    part: int
    process: ForkProcess
    reports: Connection


class _Pool:
    def __init__(self, plan: Plan, folder: Path, processes: int, watch: Watch) -> None:
        self._plan, self._folder = plan, folder
        self._processes, self._watch = processes, watch
        self._workers: list[_Worker] = []

    def run(self, parts: list[int]) -> None:
        from PIL import Image

        Image.init()  # loads the formats; else the process of each part would, for half a second
        waiting = deque(parts)
        try:
            while waiting or self._workers:
                while waiting and len(self._workers) < self._processes:
                    self._start(waiting.popleft())
                ready = wait([worker.reports for worker in self._workers], timeout=0.5)
                for worker in [one for one in self._workers if one.reports in ready]:
                    self._hear(worker)
                self._watch.tick()
        finally:
            for worker in self._workers:
                worker.process.kill()
            for worker in self._workers:
                worker.process.join()
                worker.reports.close()

    def _start(self, part: int) -> None:
        if read_part(self._folder, part) is not None:  # another run has written it since
            self._watch.part_done()
            return
        receiver, sender = _FORK.Pipe(duplex=False)
        process = _FORK.Process(
            target=_work, args=(self._plan, self._folder, part, sender, os.getpid()), daemon=True
        )
        process.start()
        sender.close()  # the child's copy is then the only one, and its death ends the stream
        self._workers.append(_Worker(part, process, receiver))

    def _hear(self, worker: _Worker) -> None:
        try:
            report = worker.reports.recv()
        except (EOFError, OSError):
            self._ended(worker)
            return
        if isinstance(report, WholegrainError):
            raise report
        self._watch.saw(*report)

    def _ended(self, worker: _Worker) -> None:
        worker.process.join()
        worker.reports.close()
        self._workers.remove(worker)
        status = worker.process.exitcode or 0
        if status:
            how = (
                f"was ended by {signal.Signals(-status).name}"
                if status < 0
                else f"ended with exit status {status} (its error stands above)"
            )
            raise DataError(
                f"{self._folder}: the process that wrote part {worker.part} {how}; the parts that "
                "are complete are kept, run the same command again to go on"
            )
        self._watch.part_done()


def _work(plan: Plan, folder: Path, part: int, sender: Connection, parent: int) -> None:
    """What a part's process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too and ends us
    # The collector would touch, and so copy, every object of the annotations.
    gc.freeze()
    reporter = _Reporter(sender, parent)
    try:
        write_part(plan, folder, part, reporter.saw)
        reporter.send()
    except WholegrainError as error:
        with suppress(BrokenPipeError):
            sender.send(error)


class _Reporter:
    """Tells the parent of samples, a few times a second, and ends the process if it is gone."""

    def __init__(self, sender: Connection, parent: int) -> None:
        self._sender, self._parent = sender, parent
        self._seen, self._bad = 0, list[Bad]()
        self._sent = time.monotonic()

    def saw(self, bad: Bad | None) -> None:
        if os.getppid() != self._parent:
            raise SystemExit(1)
        self._seen += 1
        if bad is not None:
            self._bad.append(bad)
        if time.monotonic() - self._sent >= _REPORT_SECONDS:
            self.send()

    def send(self) -> None:
        try:
            self._sender.send((self._seen, self._bad))
        except BrokenPipeError:
            raise SystemExit(1) from None
        self._seen, self._bad, self._sent = 0, [], time.monotonic()
