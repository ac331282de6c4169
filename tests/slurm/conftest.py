"""A running cluster, a data set of several parts, and the corpus that one process makes of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from tests.slurm import cluster
from tests.slurm.cluster import Slurm

PHOTOS = 26


@dataclass(frozen=True)
class Given:
    """Arguments of ``convert`` without ``--out``, and the files that it makes of them."""

    arguments: list[str]
    files: dict[str, bytes]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if not path.is_dir()
    }


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Given:
    root = tmp_path_factory.mktemp("slurm")
    (root / "photos of mine").mkdir()
    captions = {}
    for number in range(PHOTOS):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        photo = root / "photos of mine" / f"{number:012d}.jpg"
        photo.write_bytes(simplejpeg.encode_jpeg(pixels))
        captions[str(number)] = [f"caption of photo {number}"]
    (root / "captions.json").write_text(json.dumps(captions))
    arguments = ["coco", "--images", str(root / "photos of mine"), "--shard-size", "3"]
    arguments += ["--captions", str(root / "captions.json"), "--max-side", "24"]
    command = [sys.executable, "-m", "data_tools", "convert", *arguments, "--processes", "1"]
    subprocess.run([*command, "--out", str(root / "out")], cwd=repository, check=True)
    return Given(arguments, contents(root / "out"))


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A cluster that all tests share; they leave its nodes as they found them."""
    reason = cluster.missing()
    if reason is not None:
        must_run = "slurm" in os.environ.get("WHOLEGRAIN_MUST_RUN", "").split(",")
        (pytest.fail if must_run else pytest.skip)(reason)
    # A short path: that of munge's socket may have 107 characters.
    run = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        yield cluster.start(run)
    finally:
        cluster.stop(run)
        shutil.rmtree(run, ignore_errors=True)
