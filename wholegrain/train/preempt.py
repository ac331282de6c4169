"""SIGTERM and SIGUSR1 ask for a checkpoint at the next step boundary."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from queue import SimpleQueue
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_DEFAULT = ctypes.c_void_p(signal.SIG_DFL.value)


class StopRequest:
    """Within the block, remembers that the run was asked to stop; asked again, it ends at once.

    The same signal within `same_s` seconds is the same request: a scheduler sends it to every
    process of a job, and a supervisor that gets it passes it on. SIGINT is left alone: who presses
    Ctrl-C wants to have the terminal back.
    """

    def __init__(self, same_s: float = 10.0) -> None:
        self.received: signal.Signals | None = None
        self._same_s = same_s
        self._until: dict[int, float] = {}
        self._before: dict[int, object] = {}
        # Of all ways to wake a thread, this one is made for handlers: it needs no lock that the
        # interrupted code may hold.
        self._asked: SimpleQueue[int | None] = SimpleQueue()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._end_when_asked_again, daemon=True)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        now = time.monotonic()
        if number not in self._until:
            self._until[number] = now + self._same_s
            self._asked.put(number)
        elif now > self._until[number]:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _end_when_asked_again(self) -> None:
        # Python runs handlers in its main thread alone, which may hang in a collective by then, and
        # lets no other thread call signal.signal. The C function sets what the kernel does itself.
        while (number := self._asked.get()) is not None:
            if self._left.wait(self._until[number] - time.monotonic()):
                return
            ctypes.CDLL(None).signal(number, _DEFAULT)

    def __enter__(self) -> StopRequest:
        self._thread.start()
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        self._asked.put(None)
        self._thread.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
