import fcntl
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_tools.converting.plan import ConvertOptions, Plan
from data_tools.converting.work import LOCK, PLAN, WorkFolder
from data_tools.sources.base import Drafts, Source
from wholegrain.errors import DataError


def nothing(start: int, stop: int, left_out: Counter[str]) -> Drafts:
    return iter(())


def work(out: Path, **options: Any) -> WorkFolder:
    return WorkFolder(Plan(Source("s", {}, 9, nothing), ConvertOptions(out, **options)))


def test_many_may_write_and_one_may_merge(tmp_path: Path) -> None:
    first, second = work(tmp_path / "out"), work(tmp_path / "out")
    with first.shared(), second.shared():
        with pytest.raises(BlockingIOError), first.alone(patient=False):
            pass
        with pytest.raises(DataError, match=r"out\.work: another run is at work"):
            second.discard()
    with first.alone(patient=False) as there:
        assert there


def test_without_a_folder_there_is_nothing_to_merge(tmp_path: Path) -> None:
    with work(tmp_path / "out").alone(patient=True) as there:
        assert not there
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_folder_that_moved_away_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = work(tmp_path / "out")
    with out.shared():
        pass
    real, moved = fcntl.flock, []

    def flock(descriptor: int, kind: int) -> None:
        real(descriptor, kind)
        if not moved:  # as if another run had merged while we waited
            moved.append(out.path.rename(tmp_path / "out"))

    monkeypatch.setattr(fcntl, "flock", flock)
    with out.alone(patient=True) as there:
        assert not there
    with out.shared():
        assert (out.path / LOCK).exists()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, kind: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(os, "link", flock)  # nor links
    out = work(tmp_path / "out")
    with out.shared():
        out.open_plan()
    with out.alone(patient=False) as there:
        assert there


def test_a_plan_is_written_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with work(out).shared():
        work(out).open_plan()
        written = (tmp_path / "out.work" / PLAN).read_bytes()
        work(out, processes=3).open_plan()
        with pytest.raises(DataError, match=r"limit None, now 3.*pass --restart"):
            work(out, limit=3).open_plan()
    assert (tmp_path / "out.work" / PLAN).read_bytes() == written
    assert json.loads(written)["parts"] == 1
    assert sorted(os.listdir(tmp_path / "out.work")) == [LOCK, PLAN]


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 99}'])
def test_a_damaged_plan_is_named(tmp_path: Path, text: str) -> None:
    out = work(tmp_path / "out")
    with out.shared():
        (out.path / PLAN).write_text(text)
        with pytest.raises(DataError, match=r"plan\.json: .*--restart"):
            out.open_plan()


def test_parts_without_a_plan_are_nobodys(tmp_path: Path) -> None:
    out = work(tmp_path / "out")
    with out.shared():
        (out.path / "part-000000.json").write_text("{}")
        with pytest.raises(DataError, match=r"holds parts but no plan\.json"):
            out.open_plan()
    out.discard()
    assert not list(tmp_path.iterdir())


def test_only_an_untouched_folder_is_dropped(tmp_path: Path) -> None:
    out = work(tmp_path / "out")
    with out.shared():
        out.open_plan()
        out.drop_if_new()
        assert out.path.exists()
        (out.path / PLAN).unlink()
        out.drop_if_new()
        assert not out.path.exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out.work").write_text("a file")
    with (
        pytest.raises(DataError, match=r"out\.work: cannot be made"),
        work(tmp_path / "out").shared(),
    ):
        pass


def test_what_killed_runs_left_is_swept(tmp_path: Path) -> None:
    out = work(tmp_path / "out")
    with out.shared():
        out.open_plan()
        (out.path / ".shard-000000.tar.partial-host-7").write_bytes(b"half")
        (out.path / ".ids.partial-x").mkdir()
        (out.path / ".ids.partial-x" / "0").write_bytes(b"half")
        out.sweep()
    assert sorted(os.listdir(out.path)) == [LOCK, PLAN]
