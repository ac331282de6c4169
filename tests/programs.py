"""Programs that tests start, of which nothing is left, and waits that come to an end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

BOUND_S = 60.0


def run_program(
    command: Sequence[object],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    merged: bool = False,
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run``, but whatever the program started is killed, however it ends.

    To kill its group would not do: torchrun gives each rank a session of its own. All that comes of
    the program has a mark in its environment.

    Args:
        command: words.
        timeout_s: after which the test fails, with the last of what was said.
        env: None is this process's.
        cwd: None is this process's.
        merged: whether standard error goes where the output goes.
    """
    mark = f"TEST_PROGRAM_{uuid.uuid4().hex}"
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env={**(os.environ if env is None else env), mark: "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        end_marked(mark)
        text = "\n".join(part[-6000:] for part in process.communicate() if part)
        pytest.fail(f"{process.args} has not ended after {timeout_s:g} s; it said\n{text}")
    finally:
        end_marked(mark)
        process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def end_marked(mark: str) -> None:
    """Kills every process whose environment names the mark; it may be starting others."""
    deadline = time.monotonic() + BOUND_S
    while (found := _marked(mark.encode())) and time.monotonic() < deadline:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _marked(mark: bytes) -> list[int]:
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is somebody else's
            if mark in environment.read_bytes():
                found.append(int(environment.parent.name))
    return found


def wait_until(met: Callable[[], bool], what: str, bound_s: float = BOUND_S) -> None:
    """Looks until the condition is met; after `bound_s` the test fails and says `what` is not."""
    deadline = time.monotonic() + bound_s
    while not met():
        assert time.monotonic() < deadline, f"not within {bound_s:g} s: {what}"
        time.sleep(0.005)
