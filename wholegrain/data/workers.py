"""Processes that make numbered items and hand them over in order, whatever happens to them.

Each worker has a socket of its own, so that a worker which is killed, even while it writes, can
neither block the others nor leave half an item behind: its socket ends, another is started in its
place, and the numbers it had are made again. As an item is a function of its number alone, nothing
is lost and nothing comes twice. A worker that hangs is treated the same way after a while, with its
stack printed first. Large tensors travel in anonymous shared memory that vanishes with its users.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Generic, NoReturn, TypeVar

from wholegrain.data.transport import receive, send
from wholegrain.errors import DataError

T = TypeVar("T")

_ATTEMPTS = 3  # workers that may die over one number; more is no accident
_STACK_S = 1.0  # for a hung worker to print its stack

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Failed:
    """What a worker sends in place of an item that it could not make."""

    report: str


@dataclass(eq=False)
class _Worker:
    process: ForkProcess
    socket: Connection
    asked: deque[int] = field(default_factory=deque)
    """Numbers it has been given and has not answered, in order."""
    since: float = field(default_factory=time.monotonic)
    """When it last answered, or was given a number while it had none."""


class Workers(Generic[T]):
    """Iterates over ``make(number)`` for the numbers, in order, made by ``count`` processes.

    Args:
        make: called in the workers; its items are pickled, tensors on the CPU included.
        numbers: what to make.
        count: processes, at least 1.
        ahead: items that a worker makes before they are asked for.
        patience_s: seconds without an answer after which a worker counts as hung.

    Raises:
        DataError: workers died or hung repeatedly over one number.
        RuntimeError: `make` raised; with the worker's traceback.
    """

    def __init__(
        self,
        make: Callable[[int], T],
        numbers: range,
        count: int,
        *,
        ahead: int = 2,
        patience_s: float = 600.0,
    ) -> None:
        if count < 1 or ahead < 1:
            raise ValueError(f"count is {count} and ahead {ahead}; both must be at least 1")
        self._make, self._numbers, self._count = make, numbers, count
        self._ahead, self._patience_s = ahead, patience_s
        self.restarts = 0
        """Workers that had to be replaced so far."""

    def __iter__(self) -> Iterator[T]:
        pool = _Pool(self)
        try:
            for number in self._numbers:
                item = pool.take(number)
                if isinstance(item, _Failed):
                    raise RuntimeError(f"a loader worker failed:\n{item.report}")
                yield item
        finally:
            pool.close()


class _Pool(Generic[T]):
    """The workers of one iteration."""

    def __init__(self, rules: Workers[T]) -> None:
        self._rules = rules
        self._left = deque(rules._numbers)
        """Numbers that no worker has."""
        self._ready: dict[int, T | _Failed] = {}
        self._deaths: dict[int, int] = {}
        self._workers: list[_Worker] = []
        for _ in range(min(rules._count, len(self._left))):
            self._workers.append(self._start())
        self._give()

    def take(self, number: int) -> T | _Failed:
        """The item of a number, the next in order."""
        while number not in self._ready:
            self._receive()
            self._give()  # what a dead worker has left
        item = self._ready.pop(number)
        self._deaths.pop(number, None)
        self._give()
        return item

    def close(self) -> None:
        """Ends the workers, whatever they are at."""
        for worker in self._workers:
            worker.socket.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.process.close()
        self._workers.clear()

    def _start(self) -> _Worker:
        ours, theirs = multiprocessing.Pipe(duplex=True)
        others = [worker.socket for worker in self._workers]
        process = multiprocessing.get_context("fork").Process(
            target=_work, args=(self._rules._make, theirs, [ours, *others]), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _give(self) -> None:
        """Fills up each worker's list, the shortest first; stays near what is asked for next."""
        room = self._rules._count * self._rules._ahead - len(self._ready)
        room -= sum(len(worker.asked) for worker in self._workers)
        while room > 0 and self._left:
            worker = min(self._workers, key=lambda each: len(each.asked))
            number = self._left.popleft()
            if not worker.asked:
                worker.since = time.monotonic()
            worker.asked.append(number)
            try:
                worker.socket.send(number)
            except OSError:
                self._replace(worker, "ended")
            room -= 1

    def _receive(self) -> None:
        """Waits for an answer, or for a worker's end."""
        busy = [worker for worker in self._workers if worker.asked]
        if not busy:
            raise AssertionError("a number is awaited that no worker has")
        now = time.monotonic()
        deadline = min(worker.since for worker in busy) + self._rules._patience_s
        answered = wait([worker.socket for worker in busy], timeout=max(0.0, deadline - now))
        for worker in busy:
            if worker.socket in answered:
                self._read(worker)
            elif time.monotonic() - worker.since > self._rules._patience_s:
                self._hung(worker)

    def _read(self, worker: _Worker) -> None:
        try:
            number, item = receive(worker.socket)
        except (EOFError, OSError):
            self._replace(worker, "ended")
            return
        worker.asked.remove(number)
        worker.since = time.monotonic()
        self._ready[number] = item

    def _hung(self, worker: _Worker) -> None:
        if worker.process.pid is not None:
            os.kill(worker.process.pid, signal.SIGUSR2)  # faulthandler prints every thread's stack
            worker.process.join(_STACK_S)
        self._replace(worker, f"gave no answer for {self._rules._patience_s:.0f} s")

    def _replace(self, worker: _Worker, what: str) -> None:
        """Starts another worker in a dead one's place and gives its numbers back."""
        worker.socket.close()
        worker.process.kill()
        worker.process.join()
        code = worker.process.exitcode
        worker.process.close()
        self._workers.remove(worker)
        self._left.extendleft(reversed(worker.asked))
        self._rules.restarts += 1
        if worker.asked:
            first = worker.asked[0]  # the one that it was at
            self._deaths[first] = deaths = self._deaths.get(first, 0) + 1
            if deaths >= _ATTEMPTS:
                raise DataError(
                    f"{deaths} loader workers in a row {what} over batch {first} ({_cause(code)}); "
                    "if it was the kernel's out-of-memory killer, lower the number of workers"
                )
        _log.warning("a loader worker %s (%s); another takes its place", what, _cause(code))
        self._workers.append(self._start())


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit status {code}"


def _work(make: Callable[[int], T], socket: Connection, foreign: list[Connection]) -> NoReturn:
    """A worker's life. It ends when the parent's end of the socket does, however that came."""
    for other in foreign:  # a copy of the parent's end would keep us alive after the parent
        other.close()
    # The parent decides; a signal to the whole job must not take its batches away.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR2, all_threads=True, chain=False)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    gc.freeze()  # what the parent had is no garbage here; walking it would copy its pages
    _one_thread()
    status = 0
    try:
        while True:
            number = socket.recv()
            item: object
            try:
                item = make(number)
            except Exception:
                item = _Failed(traceback.format_exc())
            send(socket, (number, item))
    except (EOFError, OSError):
        pass  # the parent has gone, or wants no more
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)  # nothing of the parent's is ours to clean up


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
