"""Headless Chromium for tests of pages, spoken to in its own protocol over two pipes.

The protocol, and no driver: it sets a window of any width (a headless window is never narrower
than 500 px), types keys, evaluates in pages whose policy forbids scripts, and tells of every
message on the console and every request.
"""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PATIENCE_S = 60.0
# Chromium looks for its pipes at descriptors 3 and 4.
_AT_3_AND_4 = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """The program's path; the test is skipped where there is none, unless it must run."""
    for name in _NAMES:
        found = shutil.which(name)
        if found:
            return found
    reason = "no Chromium here (apt-get install chromium), so no page can be looked at"
    if "chromium" in os.environ.get("WHOLEGRAIN_MUST_RUN", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)


def dump_dom(url: str, profile: Path) -> str:
    """The document of `url` after its script has run, as a command of one line gives it."""
    command = [chromium(), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", url]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, check=True, errors="replace"
    )
    return done.stdout


@dataclass
class Seen:
    """What a page did while it was open."""

    console: list[str] = field(default_factory=list)
    """Messages of the console, of the browser's log and of exceptions."""
    requests: list[str] = field(default_factory=list)
    """Addresses asked for, those inside the page (`data:`) left out."""


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.seen = Seen()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; returns its result."""
        return self._browser.call(method, parameters, self._session)

    def resize(self, width: int, height: int = 900, scale: float = 1.0) -> None:
        """Sets the window in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def prefer(self, scheme: str) -> None:
        """`dark` or `light`, as the reader's system would say."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def goto(self, url: str) -> None:
        """Opens `url` anew and waits until all of it is there."""
        self.call("Page.navigate", url="about:blank")
        self.seen.console.clear()
        self.seen.requests.clear()
        self.call("Page.navigate", url=url)
        self.wait("location.href != 'about:blank' && document.readyState == 'complete'")

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + PATIENCE_S
        while not self.value(condition):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression comes to."""
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """Presses a key: its name, its Windows key code, and the character it types."""
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        typed = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Types into what has the focus."""
        self.call("Input.insertText", text=text)

    def point_at(self, selector: str) -> None:
        """Moves the mouse to the middle of the first element that fits."""
        middle = (
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2] })"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        x, y = self.value(middle)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, whole: bool = False) -> Image.Image:
        """The window, or the whole page, as RGB."""
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        return Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")

    def too_wide(self) -> list[str]:
        """Elements that stick out of the window to the right; scrolling boxes' contents may."""
        return self.value(
            """[...document.querySelectorAll("body *")]
              .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5
                && !e.closest(".scroll, .photo, .picture"))
              .map(e => `${e.tagName}.${e.getAttribute("class")}: ${e.textContent.slice(0, 40)}`)
              .concat(document.documentElement.scrollWidth > innerWidth ? ["the page"] : [])"""
        )


class Browser:
    """A running Chromium with a fresh profile."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._number, self._unread = 0, b""
        self._pages: dict[str, Page] = {}

    def page(self, width: int = 1280, height: int = 900) -> Page:
        """A new tab."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        session = attached["sessionId"]
        self._pages[session] = page = Page(self, session)
        page.resize(width, height)
        return page

    def call(
        self, method: str, parameters: dict[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        """Sends a command and takes in events until its answer comes."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        page = self._pages.get(event.get("sessionId", ""))
        if page is None:
            return
        told = event["params"]
        if event["method"] == "Runtime.consoleAPICalled":
            page.seen.console.append(str(told["args"]))
        elif event["method"] == "Runtime.exceptionThrown":
            page.seen.console.append(str(told["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded":
            page.seen.console.append(str(told["entry"]))
        elif event["method"] == "Network.requestWillBeSent":
            url = told["request"]["url"]
            if not url.startswith(("data:", "about:")):
                page.seen.requests.append(url)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], PATIENCE_S)
            assert ready, "Chromium does not answer"
            more = os.read(self._from, 1 << 20)
            assert more, "Chromium has ended"
            self._unread += more
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)


@contextmanager
def running_chromium(profile: Path) -> Iterator[Browser]:
    """Chromium until the block ends; the test is skipped where there is none."""
    program = chromium()
    theirs_in, to_browser = os.pipe()
    from_browser, theirs_out = os.pipe()

    process = subprocess.Popen(
        [
            *(sys.executable, "-c", _AT_3_AND_4, str(theirs_in), str(theirs_out)),
            *(program, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(theirs_in, theirs_out),
    )
    os.close(theirs_in)
    os.close(theirs_out)
    browser = Browser(to_browser, from_browser)
    try:
        yield browser
        browser.call("Browser.close", {})
    finally:
        os.close(to_browser)
        os.close(from_browser)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_blank(picture: Image.Image) -> bool:
    """Whether a screenshot shows one colour and no more."""
    pixels = np.asarray(picture)
    return bool((pixels == pixels[0, 0]).all())
