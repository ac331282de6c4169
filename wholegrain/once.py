"""An error that several ranks meet is said by one of them.

Ranks that read the same wrong setting all end with its error; a job of a thousand of them must not
print it a thousand times. Before they have joined, rank 0 speaks and answers for a few seconds at
MASTER_PORT what it has said; once they have joined, or where a launcher's agent is at that port,
each counts itself in for the message at the store that is there, and the first one speaks. A rank
that learns nothing in a few seconds speaks for itself: rather twice than never.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

_MEET_S = 6.0  # that ranks look for each other
_ANSWER_S = 2.0
_ASKS, _NEW, _KNOWN = b"wholegrain", b"new", b"old"
_kept: dict[str, int] = {}


def keep_stderr(descriptor: int) -> None:
    """Remembers where all ranks are heard, of a process whose own output goes elsewhere."""
    _kept["stderr"] = descriptor


def say_once(message: str) -> None:
    """Prints a line on stderr, unless another rank prints the same one.

    What is not UTF-8 of a path in it is shown as an escape, such as ``\\udce9``.
    """
    # A path's bytes that are no UTF-8 are lone surrogates in Python, which have no encoding.
    message = message.encode("utf-8", "backslashreplace").decode()
    if "stderr" in _kept:
        print(message, file=sys.stderr, flush=True)
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    digest = hashlib.sha256(message.encode()).digest()
    if world < 2:
        _speak(message)
    elif _joined() or launcher_holds_store():
        _ask_store(digest, message, rank, world)
    elif rank == 0:
        _speak(message)
        with suppress(OSError, ValueError, KeyError):
            _answer(digest, world)
    elif _is_new(digest):
        _speak(message)


def attempt() -> str:
    """What tells this start's entries in a store from those of the start before."""
    return f"wholegrain/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def launcher_holds_store() -> bool:
    """Whether torchrun's agent holds the store at MASTER_PORT, rather than rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def within(seconds: float, action: Callable[[], None]) -> None:
    """Does something that may never return; leaves it behind then.

    Raises:
        TimeoutError: it has not returned within so many seconds.
        Exception: what `action` raised.
    """
    raised: list[Exception] = []

    def attempted() -> None:
        try:
            action()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=attempted, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if raised:
        raise raised[0]


def _speak(message: str) -> None:
    if "stderr" in _kept:
        with suppress(OSError):  # the rank's own log has it
            os.write(_kept["stderr"], f"{message}\n".encode())
    else:
        print(message, file=sys.stderr, flush=True)


def _answer(said: bytes, world: int) -> None:
    """Tells other ranks for a while what has been said; each asks once."""
    known, until = {said}, time.monotonic() + _MEET_S
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    address = ("", int(os.environ["MASTER_PORT"]))
    with socket.create_server(address, family=family, dualstack_ipv6=dual) as server:
        for _ in range(world - 1):
            server.settimeout(max(0.01, until - time.monotonic()))
            asking, _ = server.accept()
            with asking, suppress(OSError):
                asking.settimeout(_ANSWER_S)
                asked = asking.recv(len(_ASKS) + len(said), socket.MSG_WAITALL)
                if not asked.startswith(_ASKS):
                    continue
                digest = asked[len(_ASKS) :]
                asking.sendall(_KNOWN if digest in known else _NEW)
                known.add(digest)


def _is_new(digest: bytes) -> bool:
    """Whether rank 0 knows of nobody who has said this; True where it cannot be asked."""
    until = time.monotonic() + _MEET_S
    try:
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        while True:
            try:
                with socket.create_connection(address, _ANSWER_S) as asked:
                    asked.sendall(_ASKS + digest)
                    return asked.recv(len(_KNOWN), socket.MSG_WAITALL) != _KNOWN
            except ConnectionRefusedError:  # rank 0 is not there yet
                if time.monotonic() > until:
                    return True
                time.sleep(0.05)
    except (OSError, ValueError, KeyError):
        return True


def _joined() -> bool:
    if "torch.distributed" not in sys.modules:
        return False
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def _ask_store(digest: bytes, message: str, rank: int, world: int) -> None:
    spoke = threading.Event()

    def speak() -> None:
        if not spoke.is_set():
            spoke.set()
            _speak(message)

    # Half a store, whose other end is gone, may raise or be silent.
    with suppress(Exception):
        within(3 * _MEET_S, lambda: _count_in(digest, speak, spoke, rank, world))
    if not spoke.is_set():
        speak()


def _count_in(
    digest: bytes, speak: Callable[[], None], spoke: threading.Event, rank: int, world: int
) -> None:
    from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

    if _joined():
        from torch.distributed.distributed_c10d import _get_default_store

        # Another view of the same connection: its limit on time leaves the group's as it is.
        store: Store = _get_default_store().clone()  # type: ignore[attr-defined]
    else:
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        limit = timedelta(seconds=_MEET_S)
        store = TCPStore(*where, is_master=False, timeout=limit)
    store.set_timeout(timedelta(seconds=_MEET_S))
    store = PrefixStore(f"{attempt()}/once", store)
    key = digest.hex()
    if store.add(key, 1) == 1:
        speak()
        store.set(f"{key}/done", "")
    else:
        # The first one may be ended with the job as soon as another rank has left.
        store.wait([f"{key}/done"], timedelta(seconds=_ANSWER_S))
        spoke.set()
    asked, until = store.add("asked", 1), time.monotonic() + _MEET_S
    # The store ends with rank 0 where no launcher holds it.
    while rank == 0 and not launcher_holds_store() and asked < world and time.monotonic() < until:
        time.sleep(0.05)
        asked = store.add("asked", 0)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else default
