"""A run folder that some rank cannot use is refused on all ranks, in the same words."""

import errno
import os
import platform
import shutil
from collections import namedtuple
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from wholegrain.errors import ConfigError
from wholegrain.train import shared_folder
from wholegrain.train.shared_folder import check_run_folder

HOST = platform.node()
RANKS_S = 30


def outcomes(folders: Sequence[Path], wait_s: float = RANKS_S, **settings: int) -> list[str]:
    """What each of several ranks, here threads, says to a folder of its own."""
    world = len(folders)
    barrier, texts = Barrier(world, timeout=RANKS_S), [""] * world

    def check(rank: int) -> str:
        def exchange(text: str) -> list[str]:
            texts[rank] = text
            barrier.wait()
            told = list(texts)
            barrier.wait()
            return told

        try:
            check_run_folder(folders[rank], rank, world, exchange, wait_s=wait_s, **settings)
        except ConfigError as error:
            return str(error)
        return "fine"

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(check, range(world)))


def test_one_folder_is_fine_and_keeps_nothing(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"
    assert outcomes([out] * 3) == ["fine"] * 3
    assert list(out.iterdir()) == []


def test_one_rank_needs_nobody(tmp_path: Path) -> None:
    check_run_folder(tmp_path / "run", 0, 1)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_that_another_host_has_for_itself_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    out = tmp_path / "out"
    folders = [out, out, own, own / "missing"]
    # Where it happens all of them have the same name.
    assert outcomes(folders, wait_s=0.2) == [
        f"out '{folder}' is not the folder that rank 0 writes to; name one on storage that all "
        f"hosts share; seen by rank 2 ({HOST}), rank 3 ({HOST})"
        for folder in folders
    ]
    assert list(out.iterdir()) == []
    assert list(own.iterdir()) == []


def test_a_folder_that_shows_late_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[bool] = []
    found = shared_folder._found

    def late(token: Path) -> bool:
        looks.append(len(looks) >= 2 and found(token))
        return looks[-1]

    monkeypatch.setattr(shared_folder, "_found", late)
    assert outcomes([tmp_path] * 2) == ["fine"] * 2
    assert looks == [False, False, True]


@pytest.mark.parametrize("below", [False, True])
def test_a_file_is_no_folder(tmp_path: Path, below: bool) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run" if below else tmp_path / "file"
    said = f"out '{out}' is a file or lies below one; name a folder; seen by rank 0 ({HOST})"
    assert outcomes([out, out]) == [said, said]


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_folder_that_a_rank_cannot_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, rank: int
) -> None:
    write = shared_folder._write

    def fail(path: Path) -> None:
        if path.name.endswith("-1") == (rank == 1):
            raise OSError(number, os.strerror(number), str(path))
        write(path)

    monkeypatch.setattr(shared_folder, "_write", fail)
    said = (
        f"out '{tmp_path}' cannot be written to ({os.strerror(number)}); make room there or name "
        f"another out; seen by rank {rank} ({HOST})"
    )
    assert outcomes([tmp_path, tmp_path]) == [said, said]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_really_read_only(tmp_path: Path) -> None:
    # No user, not even root, makes files there.
    [said] = outcomes([Path("/proc/self/wholegrain")])
    assert "cannot be written to (" in said


def test_room_for_a_checkpoint_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**39, 3 * 2**29))
    assert outcomes([tmp_path] * 2, need_bytes=2**30) == ["fine"] * 2
    said = set(outcomes([tmp_path] * 2, need_bytes=2**32))
    assert said == {
        f"out '{tmp_path}' has 1.5 GiB free and needs 4.0 GiB for one checkpoint; make room or "
        f"name another out; seen by rank 0 ({HOST})"
    }


@pytest.mark.ranks
def test_ranks_of_a_process_group_agree(launch: Callable[..., str], tmp_path: Path) -> None:
    program = Path(__file__).with_name("shared_folder_program.py")
    said = sorted(launch(program, tmp_path).splitlines())
    assert said[::2] == ["0: fine", "1: fine"]
    for rank, line in enumerate(said[1::2]):
        assert line.startswith(f"{rank}: out '{tmp_path}/own-{rank}' is not the folder that rank 0")
        assert line.endswith(f"; seen by rank 1 ({HOST})")
