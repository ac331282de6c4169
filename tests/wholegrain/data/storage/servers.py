"""Servers on loopback that the storage tests read from."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3

BUCKET = "corpora"


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that leave in the middle are what the tests are about."""


class RangeServer:
    """HTTP with files in memory.

    Attributes:
        files: by path, without the slash in front.
        ranges: whether it knows of ranges.
        lengths: whether it says how long files are.
        refused: paths that are answered by 403.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges, self.lengths = True, True
        self.refused: set[str] = set()
        self._server = _QuietServer(("127.0.0.1", 0), self._handler())
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(outer) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                name = self.path.lstrip("/").partition("?")[0]
                data = outer.files.get(name)
                if name in outer.refused:
                    self.send_error(403)
                    return
                if data is None:
                    self.send_error(404)
                    return
                tag = f"{zlib.crc32(data):08x}"
                asked = self.headers.get("Range") if outer.ranges else None
                if asked:
                    first, last = asked.removeprefix("bytes=").split("-")
                    if int(first) >= len(data):
                        self.send_error(416)
                        return
                    data = data[int(first) : int(last) + 1]
                self.send_response(206 if asked else 200)
                self.send_header("ETag", tag)
                if outer.lengths:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


class S3Server:
    """moto's S3, as a process of its own that can be killed."""

    def __init__(self, folder: os.PathLike[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self._log = os.path.join(folder, "s3.log")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts it, empty, and waits until it answers."""
        code = "import sys; from moto.server import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(self.port)]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/moto-api/", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                assert self._process.poll() is None, Path(self._log).read_text()
                time.sleep(0.05)
        self._client().create_bucket(Bucket=BUCKET)

    def put(self, name: str, data: bytes) -> None:
        """Stores a file in the bucket."""
        self._client().put_object(Bucket=BUCKET, Key=name, Body=data)

    def kill(self) -> None:
        """SIGKILL; what it held is gone."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
