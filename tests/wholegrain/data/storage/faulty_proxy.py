"""A proxy for HTTP that does to answers what networks and overloaded storage do to them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import deque
from typing import NamedTuple

FAULTS = ("500", "503", "reset", "truncate", "short", "garbage", "garbled", "stall")
_STALL_S = 30.0
_SLOWDOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class Seen(NamedTuple):
    """A request, and what became of it: a fault, "" for none, "down" without a server behind."""

    method: str
    path: str
    range: str
    fault: str


class FaultyProxy:
    """Passes requests on to a port of this machine; threads of this process do the work.

    Attributes:
        port: to connect to.
        faults: each ranged read takes the next one; "" lets it pass.
        always: what happens to all reads and look-ups, in place of `faults`.
        bytes_per_second: of a body; None sends it at once.
        seen: all requests so far, in order of their ends.
        served: bytes of whole bodies of ranged reads that were passed on as they are.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.faults: deque[str] = deque()
        self.always = ""
        self.bytes_per_second: float | None = None
        self.seen: list[Seen] = []
        self.served = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def reads(self, path_end: str = "") -> list[Seen]:
        """The ranged reads of files whose path ends so."""
        return [seen for seen in list(self.seen) if seen.range and seen.path.endswith(path_end)]

    def close(self) -> None:
        """Refuses further connections."""
        self._closed.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(_STALL_S)
            head = _read_head(client)
            if not head:
                return
            method, path = head.split(b" ", 2)[:2]
            asked = _header(head, b"range")
            with self._lock:
                fault = self.always
                if not fault and asked and method == b"GET" and self.faults:
                    fault = self.faults.popleft()
            try:
                whole = self._spoil(client, head, fault)
                if whole is None:
                    fault = "down"
                elif not fault and asked:
                    with self._lock:
                        self.served += whole
                if fault != "reset":
                    client.shutdown(socket.SHUT_RDWR)  # closes it for forked processes too
            finally:
                seen = Seen(method.decode(), path.decode().partition("?")[0], asked, fault)
                with self._lock:
                    self.seen.append(seen)

    def _spoil(self, client: socket.socket, head: bytes, fault: str) -> int | None:
        """Answers with the fault, if any; returns the body's length, None without a server."""
        if fault == "reset":
            _reset(client)
        elif fault == "stall":
            self._closed.wait(_STALL_S)
        elif fault in {"500", "503"}:
            body = _SLOWDOWN if fault == "503" else b"<Error><Code>InternalError</Code></Error>"
            client.sendall(_answer(f"{fault} Trouble", body))
        elif fault == "garbled":
            client.sendall(b"\x00\xff" * 40 + b"\r\n\r\n")
        else:
            answer = _ask(self.upstream, head)
            if answer is None:
                _reset(client)
                return None
            top, _, body = answer.partition(b"\r\n\r\n")
            if fault == "garbage" and body:
                body = body[:-1] + bytes([body[-1] ^ 0x55])
            if fault == "short" and len(body) > 1:
                body = body[: len(body) // 2]
                top = _with_length(top, len(body))
            self._send(
                client, top + b"\r\n\r\n", body[: len(body) // 2 if fault == "truncate" else None]
            )
            return len(body)
        return 0

    def _send(self, client: socket.socket, top: bytes, body: bytes) -> None:
        client.sendall(top)
        if self.bytes_per_second is None:
            client.sendall(body)
            return
        step = max(1, int(self.bytes_per_second / 50))
        for start in range(0, len(body), step):
            client.sendall(body[start : start + step])
            time.sleep(step / self.bytes_per_second)


def _read_head(client: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        more = client.recv(65536)
        if not more:
            return b""
        head += more
    return head


def _ask(port: int, head: bytes) -> bytes | None:
    """The whole answer of the server behind; None if there is none, or only a part."""
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    lines.insert(1, b"Connection: close")
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_STALL_S) as server:
            server.sendall(b"\r\n".join(lines))
            # Not to the end of the stream: a process forked meanwhile may keep the other end open.
            while not _is_whole(answer, head.startswith(b"HEAD")):
                more = server.recv(1 << 20)
                if not more:
                    break
                answer += more
            else:
                return answer
    except OSError:
        return None
    top, end, _ = answer.partition(b"\r\n\r\n")
    return answer if end and not _header(top, b"content-length") else None


def _is_whole(answer: bytes, head_only: bool) -> bool:
    top, end, body = answer.partition(b"\r\n\r\n")
    length = _header(top, b"content-length")
    return bool(end) and (head_only or (length != "" and len(body) >= int(length)))


def _header(head: bytes, name: bytes) -> str:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip().decode()
    return ""


def _with_length(top: bytes, length: int) -> bytes:
    lines = [line for line in top.split(b"\r\n") if not line.lower().startswith(b"content-length:")]
    return b"\r\n".join([*lines, b"Content-Length: %d" % length])


def _answer(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
