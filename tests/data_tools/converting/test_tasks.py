"""The result is the same whoever writes which part, and in whatever order."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Contents = Callable[[Path], dict[str, bytes]]
Run = Callable[..., Any]


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_any_number_of_processes(
    scale: Any,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    data_tools: Run,
    contents: Contents,
    processes: int,
) -> None:
    ran = data_tools(*scale.command(tmp_path / "out", "--processes", processes))
    assert ran.status == 0, ran.err
    assert contents(tmp_path / "out") == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("count", [1, 3, 5, 20])
def test_any_number_of_tasks_in_any_order(
    scale: Any,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    data_tools: Run,
    contents: Contents,
    count: int,
) -> None:
    out = tmp_path / "out"
    numbers = list(range(1, count + 1))
    random.Random(count).shuffle(numbers)
    for turn, number in enumerate(numbers):
        assert not out.exists() or turn >= 15  # with 20 tasks, 5 have no part
        ran = data_tools(*scale.command(out, "--task", f"{number}/{count}", "--processes", "2"))
        assert ran.status == 0, ran.err
    assert contents(out) == undisturbed
    ran = data_tools(*scale.command(out, "--task", f"1/{count}"))
    assert (ran.status, "up to date" in ran.out) == (0, True)


def test_a_task_says_what_is_missing(scale: Any, tmp_path: Path, data_tools: Run) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        ran = data_tools(*scale.command(out, "--task", "2/4"))
        assert ran.status == 0
        assert "task 2/4: all its parts are complete" in ran.out
        assert f"{out}: 11 of 15 parts are still missing" in ran.out
    assert not out.exists()
    # Another number of tasks, or none, goes on with the same parts.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.work").glob("shard-*")}
    assert len(before) == 4
    assert data_tools(*scale.command(out)).status == 0
    after = {out / path.name: time for path, time in before.items()}
    assert {path: path.stat().st_mtime_ns for path in after} == after


def test_tasks_at_once_and_twice(
    scale: Any,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    launch_many: Callable[..., Any],
    contents: Contents,
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    tasks = ["1/3", "2/3", "3/3", "1/3", "2/3"]
    launchers = [launch_many() for _ in tasks]
    for launcher, task in zip(launchers, tasks, strict=True):
        launcher.start(scale.command(out, "--task", task, "--processes", "1"), log)
    assert [launcher.status() for launcher in launchers] == [0] * len(tasks), log.read_text()
    assert contents(out) == undisturbed
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["log", "out"]


def test_whole_runs_at_once(
    scale: Any,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    launch_many: Callable[..., Any],
    contents: Contents,
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    launchers = [launch_many() for _ in range(3)]
    for launcher in launchers:
        launcher.start(scale.command(out, "--processes", "2"), log)
    assert [launcher.status() for launcher in launchers] == [0] * 3, log.read_text()
    assert contents(out) == undisturbed


def test_overwrite_with_tasks_replaces_once(scale: Any, tmp_path: Path, data_tools: Run) -> None:
    out = tmp_path / "out"
    assert data_tools(*scale.command(out, "--limit", "20")).status == 0
    told = []
    for task in ("1/2", "2/2", "1/2", "2/2"):
        ran = data_tools(*scale.command(out, "--overwrite", "--task", task))
        assert ran.status == 0, ran.err
        told.append("up to date" in ran.out)
    assert told == [False, False, True, True]
    assert not (tmp_path / "out.work").exists()


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "-1/3", "1/0"])
def test_a_task_that_is_none(
    scale: Any,
    tmp_path: Path,
    data_tools: Run,
    capsys: pytest.CaptureFixture[str],
    text: str,
) -> None:
    with pytest.raises(SystemExit):
        data_tools(*scale.command(tmp_path / "out", f"--task={text}"))
    assert "is not I/N with I from 1 to N" in capsys.readouterr().err


def test_restart_is_no_matter_of_one_task(scale: Any, tmp_path: Path, data_tools: Run) -> None:
    ran = data_tools(*scale.command(tmp_path / "out", "--task", "1/2", "--restart"))
    assert ran.status == 2 and "out.work before the tasks are started" in ran.err


def test_tars_are_parts(
    tmp_path: Path, write_tar: Run, photo: Run, data_tools: Run, contents: Contents
) -> None:
    for tar in range(4):
        members = []
        for number in range(5):
            image = photo(10 * tar + number, 16, 16) if number else b"<html>gone</html>"
            members += [(f"{number}.jpg", image), (f"{number}.txt", b"a caption")]
        write_tar(tmp_path / "tars" / f"{tar}.tar", members)
    damaged = tmp_path / "tars" / "2.tar"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    common = ["convert", "cc3m", "--tars", str(tmp_path / "tars" / "*.tar"), "--max-bad", "50%"]
    common += ["--shard-size", "3"]
    made = []
    for name, more in (("a", ["--processes", "1"]), ("b", ["--processes", "3"]), ("c", [])):
        out = tmp_path / name
        if name == "c":
            for task in ("3/3", "1/3", "2/3"):
                assert data_tools(*common, "--out", out, "--task", task).status == 0
        else:
            assert data_tools(*common, "--out", out, *more).status == 0
        made.append(contents(out))
    assert made[0] == made[1] == made[2]
    shards = [name for name in made[0] if name.endswith(".tar")]
    firsts = [f"shard-{part:06d}.tar" for part in range(4)]
    assert set(firsts) < set(shards) and len(shards) == 7  # 4 + 4 + 1 + 4 samples, 3 a shard
