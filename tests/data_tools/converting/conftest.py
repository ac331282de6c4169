"""A data set of 60 small photos that takes many parts, and real processes that convert it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

PHOTOS, SHARD_SIZE, PARTS = 60, 4, 15


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: each part waits for the disk several times."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Scale:
    """A Flickr30k Entities folder with two splits, two bad photos and phrases without a box."""

    root: Path
    flags: list[str] = field(default_factory=list)

    def command(self, out: Path, *more: object) -> list[str]:
        """The arguments of a conversion of it, with ``more`` at the end."""
        given = ["convert", "flickr30k_entities", "--root", str(self.root), "--out", str(out)]
        return [*given, *self.flags, *map(str, more)]


@pytest.fixture(scope="session")
def scale(tmp_path_factory: pytest.TempPathFactory) -> Scale:
    root = tmp_path_factory.mktemp("scale") / "flickr30k"
    for name in ("Annotations", "Sentences", "images"):
        (root / name).mkdir(parents=True)
    for number in range(PHOTOS):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        photo = np.ascontiguousarray(pixels.repeat(24, axis=0).repeat(24, axis=1))
        (root / "images" / f"{number}.jpg").write_bytes(simplejpeg.encode_jpeg(photo))
        (root / "Annotations" / f"{number}.xml").write_text(
            "<annotation><size><width>288</width><height>216</height></size>"
            "<object><name>1</name><bndbox><xmin>11</xmin><ymin>5</ymin>"
            f"<xmax>{20 + number}</xmax><ymax>24</ymax></bndbox></object></annotation>"
        )
        (root / "Sentences" / f"{number}.txt").write_text(
            f"[/EN#1/people Man {number}] waits at [/EN#2/scene a beach] .\n"
        )
    (root / "images" / "7.jpg").unlink()
    (root / "images" / "33.jpg").write_bytes(b"<html>gone</html>")
    # In an order of its own, and neither split a whole number of parts.
    (root / "train.txt").write_text("\n".join(str(n * 7 % 50) for n in range(50)))
    (root / "val.txt").write_text("\n".join(map(str, range(50, PHOTOS))))
    return Scale(root, ["--shard-size", str(SHARD_SIZE), "--max-side", "100", "--max-bad", "10%"])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


@pytest.fixture(name="contents")
def _contents() -> Callable[[Path], dict[str, bytes]]:
    return contents


@pytest.fixture(scope="session")
def undisturbed(
    scale: Scale, tmp_path_factory: pytest.TempPathFactory, repository: Path
) -> dict[str, bytes]:
    """The files of the corpus that one process makes at one go, started as a user does."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    command = [sys.executable, "-m", "data_tools", *scale.command(out, "--processes", 1)]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    found = contents(out)
    shards = [name for name in found if name.endswith(".tar")]
    assert len(shards) == PARTS
    rest = {"index.npy", "shards.npy", "manifest.json", "skipped.jsonl"}
    assert set(found) == {*shards, *rest}
    return found


class Launcher:
    """Starts conversions as processes of their own, without the imports of each."""

    def __init__(self, repository: Path, **options: Any) -> None:
        program = Path(__file__).with_name("launcher_program.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program)],
            cwd=repository,
            env=os.environ
            | {"PYTHONPATH": f"{repository}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )
        assert self._line() == "ready"

    def start(self, arguments: list[str], log: Path) -> int:
        """Starts ``python -m data_tools ARGUMENTS``, output to ``log``; returns its number."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([arguments, str(log)]) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def status(self) -> int:
        """Waits for the process; its exit status, or minus the signal that ended it."""
        return int(self._line())

    def run(self, arguments: list[str], log: Path) -> int:
        """Starts it and waits."""
        self.start(arguments, log)
        return self.status()

    def close(self) -> None:
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
def launch_many(repository: Path) -> Iterator[Callable[..., Launcher]]:
    """Makes launchers; each runs one process at a time."""
    made: list[Launcher] = []

    def make(**options: Any) -> Launcher:
        made.append(Launcher(repository, **options))
        return made[-1]

    yield make
    for launcher in made:
        launcher.close()
