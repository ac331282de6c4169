"""A background thread that brings files into the cache before they are needed."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wholegrain.data.storage.cache import RemoteFile

_log = logging.getLogger(__name__)


class Prefetcher:
    """Works through a short list of files in one thread a process, started when first needed.

    Args:
        fetch: fetches one file; its errors are only logged, since whoever needs the file meets
            them again.
        limit: files that may wait.
    """

    _running: bool

    def __init__(self, fetch: Callable[[RemoteFile], None], limit: int) -> None:
        self._fetch, self._limit = fetch, limit
        self._start()

    def want(self, files: Iterable[RemoteFile]) -> None:
        """Replaces the list: what is asked for now is what will be needed next."""
        if self._limit == 0:
            return
        if self._pid != os.getpid():
            self._start()  # a forked child has neither the thread nor, for certain, a free lock
        with self._changed:
            self._waiting.clear()
            for file in files:
                if len(self._waiting) == self._limit:
                    break
                self._waiting.append(file)
            if self._waiting and not self._running:
                self._running = True
                threading.Thread(target=self._work, name="prefetch", daemon=True).start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Lock()
        self._waiting: deque[RemoteFile] = deque()
        self._running = False

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._running = False
                    return
                file = self._waiting.popleft()
            try:
                self._fetch(file)
            except Exception as error:
                _log.debug("not fetched ahead: %s", error)
