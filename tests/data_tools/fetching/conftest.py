"""A local HTTP server that misbehaves as told, and counts the bytes that it sends."""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from data_tools.fetching.catalogue import File


@dataclass
class Act:
    """How one request is answered; the default is a server without faults."""

    body: bytes | None = None
    """In place of the site's own."""
    status: int | None = None
    """An error without a body."""
    headers: dict[str, str] = field(default_factory=dict)
    """Added, or in place of the usual ones."""
    without: tuple[str, ...] = ()
    """Usual headers that are left out."""
    ranges: bool = True
    """Honour Range."""
    if_range: bool = True
    """Honour If-Range."""
    etag: str | None = '"one"'
    cut: int | None = None
    """Close the connection after this many bytes of body."""
    pause: float = 0.0
    """Seconds of silence at the cut, before it closes."""
    hold: threading.Event | None = None
    """Wait for this at the cut, then go on with the rest."""
    chunked: bool = False


@dataclass
class Request:
    """One request as the server saw it."""

    path: str
    range: str | None
    if_range: str | None
    sent: int = 0
    """Bytes of body."""


class Server:
    """Answers on localhost; ``acts[path]`` are used up one a request, the last one stays."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.acts: dict[str, list[Act]] = {}
        self.requests: list[Request] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Http(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # clients that leave are what the tests are about

        self._http = Http(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def add(self, path: str, body: bytes, *acts: Act) -> str:
        """Serve a body; returns its address."""
        self.bodies[path], self.acts[path] = body, list(acts) or [Act()]
        return self.root + path

    def stop(self) -> None:
        """Also closes the port, so that a connection is refused."""
        self._http.shutdown()
        self._http.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path
        request = Request(path, handler.headers["Range"], handler.headers["If-Range"])
        self.requests.append(request)
        if path not in self.bodies:
            handler.send_error(404)
            return
        acts = self.acts[path]
        act = acts.pop(0) if len(acts) > 1 else acts[0]
        body = self.bodies[path] if act.body is None else act.body
        headers = {"Content-Type": "application/octet-stream"}
        if act.etag:
            headers["ETag"] = act.etag
        status, start = act.status or 200, 0
        if act.status:
            body = b""
        elif act.ranges and (asked := re.fullmatch(r"bytes=(\d+)-", request.range or "")):
            same = request.if_range in (None, act.etag) or not act.if_range
            if same and int(asked[1]) >= len(body):
                status, body = 416, b""
            elif same:
                status, start = 206, int(asked[1])
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        part = body[start:]
        headers["Transfer-Encoding" if act.chunked else "Content-Length"] = (
            "chunked" if act.chunked else str(len(part))
        )
        headers |= act.headers
        handler.send_response(status)
        for name, value in headers.items():
            if name not in act.without:
                handler.send_header(name, value)
        handler.end_headers()
        self._send(handler, act, part, request)
        if act.cut is not None or "Content-Length" in act.without:
            handler.close_connection = True

    def _send(
        self, handler: BaseHTTPRequestHandler, act: Act, part: bytes, request: Request
    ) -> None:
        def write(data: bytes) -> None:
            try:
                for at in range(0, len(data), 16384):
                    block = data[at : at + 16384]
                    framed = b"%x\r\n%s\r\n" % (len(block), block) if act.chunked else block
                    handler.wfile.write(framed)
                    request.sent += len(block)
                handler.wfile.flush()
            except OSError:
                handler.close_connection = True

        cut = len(part) if act.cut is None else act.cut
        write(part[:cut])
        if act.cut is not None:
            time.sleep(act.pause)
            if act.hold is None:
                return
            act.hold.wait(60)
            write(part[cut:])
        if act.chunked:
            handler.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def act() -> type[Act]:
    """The class, since test modules cannot import each other."""
    return Act


@pytest.fixture(scope="session")
def body() -> bytes:
    """300,001 bytes in which every place is different."""
    return random.Random(7).randbytes(300_001)


@pytest.fixture(scope="session")
def published() -> Callable[..., File]:
    """Makes a catalogue's file: ``published(url, body)`` with size and sha256, if asked for."""

    def make(*urls: str, body: bytes | None = None, **changes: Any) -> File:
        facts: dict[str, Any] = {"name": "set.zip", "urls": urls, "allow_http": True}
        if body is not None:
            facts["bytes"] = len(body)
            facts["sha256"] = hashlib.sha256(body).hexdigest()
            facts["origin"] = "the test"
        return File(**(facts | changes))

    return make
