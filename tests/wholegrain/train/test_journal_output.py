"""A run goes on where its printed lines cannot be written, and not where its folder is lost."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wholegrain.train.journal import METRICS, Journal, has_line
from wholegrain.train.run_lock import LockLost

# What is left in the buffers at the end is the whole program's affair, not the journal's.
PROGRAM = """
import os, sys
from pathlib import Path
from wholegrain.train.journal import Journal
with Journal(Path(sys.argv[1]), 400, 0, "toy", True) as journal:
    for step in range(1, 401):
        journal.outlier(step, 9.0)
        journal.write(step, "train", {"loss": 1.0})
os._exit(0)
"""


def steps(run: Path) -> list[int]:
    lines = map(json.loads, (run / METRICS).read_text().splitlines())
    return [line["step"] for line in lines if "loss" in line]


@pytest.mark.parametrize("full", [{"stdout"}, {"stderr"}])
def test_a_full_disk_under_the_log_ends_nothing(
    tmp_path: Path, repository: Path, full: set[str]
) -> None:
    """More is printed than any buffer holds."""
    with open("/dev/full", "w") as disk:
        streams = {name: disk if name in full else subprocess.PIPE for name in ("stdout", "stderr")}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        done = subprocess.run(command, cwd=repository, timeout=120, check=False, **streams)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert steps(tmp_path) == list(range(1, 401))
    if "stdout" not in full:
        assert done.stdout.count(b"\n") == 400


def test_a_reader_that_left_ends_it(tmp_path: Path, repository: Path) -> None:
    command = f"{sys.executable} -c '{PROGRAM}' {tmp_path} 2>{tmp_path}/said | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=repository, check=False)
    assert done.returncode != 0
    assert "BrokenPipeError" in (tmp_path / "said").read_text()
    assert len(steps(tmp_path)) < 400


@pytest.fixture
def lost() -> list[str]:
    """Not empty once another run has taken the folder over."""
    return []


@pytest.fixture
def check(lost: list[str]) -> Callable[[], None]:
    def ask() -> None:
        if lost:
            raise LockLost(lost[0])

    return ask


def test_a_run_that_lost_its_folder_writes_no_line_more(
    tmp_path: Path, lost: list[str], check: Callable[[], None]
) -> None:
    with Journal(tmp_path, 9, 0, "toy", True, check=check) as journal:
        journal.write(1, "train", {"loss": 1.0})
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        lost.append("taken over")
        with pytest.raises(LockLost):
            journal.write(2, "train", {"loss": 1.0})
        with pytest.raises(LockLost):
            journal.outlier(2, 9.0)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_nor_withdraws_it_what_the_new_owner_wrote(
    tmp_path: Path, lost: list[str], check: Callable[[], None]
) -> None:
    (tmp_path / METRICS).write_text('{"step": 7, "split": "train", "loss": 1.0}\n')
    lost.append("taken over")
    with pytest.raises(LockLost):
        Journal(tmp_path, 9, 0, "toy", True, check=check)
    assert steps(tmp_path) == [7]


def test_whether_there_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    assert not has_line(path, 3, "val")
    path.write_text('{"step": 3, "split": "train"}\n7\n{"st\n{"step": 6, "split": "val"}\n')
    assert has_line(path, 6, "val")
    assert not has_line(path, 3, "val") and not has_line(path, 6, "train")
