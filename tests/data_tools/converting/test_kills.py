"""Killed at random and started again, a conversion comes to the bytes of an undisturbed one."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.programs import wait_until
from wholegrain.data.part import assemble

KILLS = 30


def children(process: int) -> list[int]:
    try:
        listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return []
    return [int(number) for number in listed.split()]


def workers_of(process: int) -> list[int]:
    """Its children, as soon as there are some; none where it has ended."""
    found: list[int] = []

    def there() -> bool:
        found[:] = children(process)
        return bool(found) or not Path(f"/proc/{process}").exists()

    wait_until(there, "a conversion starts processes or ends")
    return found


def stage(out: Path) -> str:
    """How far a conversion was when it was killed."""
    work = out.with_name("out.work")
    if (work / "manifest.json").exists():
        return "assembled"
    parts = len(list(work.glob("part-*.json")))
    return "parts" if parts else "begun" if work.exists() else "nothing" if not out.exists() else ""


@pytest.mark.slow
def test_kills(
    scale: Any,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    launch_many: Callable[..., Any],
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    chance = random.Random(20)
    launcher = launch_many()
    out, log = tmp_path / "out", tmp_path / "log"
    command = scale.command(out)
    began = time.monotonic()
    assert launcher.run([*command, "--processes", "2"], log) == 0
    lasted = time.monotonic() - began
    kills: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    finished = 0
    shutil.rmtree(out)
    while kills.total() < KILLS or not finished:
        kind = "worker" if chance.random() < 0.4 else "parent"
        processes = chance.choice([2, 3] if kind == "worker" else [1, 2, 3])
        process = launcher.start([*command, "--processes", str(processes)], log)
        time.sleep(chance.uniform(0, lasted))
        victim = process
        if kind == "worker":
            found = workers_of(process)
            victim = chance.choice(found) if found else 0
        with suppress(ProcessLookupError):  # it came to its end before
            if victim:
                os.kill(victim, signal.SIGKILL)
        status = launcher.status()
        if status == 0:
            assert contents(out) == undisturbed
            finished += 1
            shutil.rmtree(out)
            continue
        expected = {"parent": -signal.SIGKILL, "worker": 2}
        assert status == expected[kind], log.read_text()
        kills[kind] += 1
        stages[stage(out)] += 1
    assert min(kills["parent"], kills["worker"]) >= 5, kills
    assert stages["parts"] >= 10, stages
    assert launcher.run(command, log) == 0
    assert contents(out) == undisturbed
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["log", "out"]
    assert "was ended by SIGKILL" in log.read_text()


class Killed(BaseException):
    """Ends a run at a moment that random kills seldom meet."""


def half_removed(folder: Path, *arguments: Any, **options: Any) -> None:
    """Assembles, and dies while the parts' own files are removed."""
    later = {path: path.read_bytes() for path in folder.glob("part-*[7-9].*")}
    assert later
    assemble(folder, *arguments, **options)
    for path, data in later.items():
        path.write_bytes(data)
    raise Killed


def before_the_move(*_: object, **__: object) -> None:
    raise Killed


def amid_the_move(work: Path, out: Path, **_: object) -> None:
    out.rename(out.with_name("out.replaced-1"))
    raise Killed


@pytest.mark.parametrize(
    ("what", "kill"),
    [
        ("assemble", half_removed),
        ("publish_folder", before_the_move),
        ("publish_folder", amid_the_move),
    ],
)
def test_killed_while_merging(
    scale: Any,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    data_tools: Callable[..., Any],
    contents: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    kill: Callable[..., None],
) -> None:
    out = tmp_path / "out"
    command = scale.command(out, "--processes", "1", "--overwrite")
    assert data_tools(*scale.command(out, "--limit", "20")).status == 0
    with monkeypatch.context() as patch:
        patch.setattr(f"data_tools.converting.merge.{what}", kill)
        with pytest.raises(Killed):
            data_tools(*command)
    assert data_tools(*command).status == 0
    assert contents(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_killed_after_the_move(
    scale: Any,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    data_tools: Callable[..., Any],
    contents: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("data_tools.converting.merge.LOCK", "no such file")
        assert data_tools(*scale.command(out)).status == 0
    assert (out / ".lock").exists()
    assert "up to date" in data_tools(*scale.command(out)).out
    assert contents(out) == undisturbed
