"""Arrays on a real Slurm: one that ends, and one that is cancelled and submitted again.

Skipped where Slurm and munge are not installed (Debian: ``slurm-wlm munge``), or not as root.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Slurm


class Jobs:
    """Submits the script from the repository; logs lie beside the corpus."""

    def __init__(self, slurm: Slurm, repository: Path, given: Any, folder: Path) -> None:
        self.slurm, self.out, self.logs = slurm, folder / "out", folder / "logs"
        self.logs.mkdir()
        self._script = repository / "slurm" / "convert_array.sh"
        self._arguments = [*given.arguments, "--out", self.out]

    def submit(self, numbers: str, *options: str) -> str:
        return self.slurm.command(
            *("sbatch", "--parsable", f"--array={numbers}", *options),
            f"--output={self.logs}/%x-%A_%a.log",
            *(f"--chdir={self._script.parents[1]}", self._script, *self._arguments),
            PYTHON=sys.executable,
        )

    def said(self) -> str:
        return "".join(path.read_text() for path in sorted(self.logs.iterdir()))

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.iterdir()}


@pytest.fixture
def jobs(slurm: Slurm, repository: Path, given: Any, tmp_path: Path) -> Jobs:
    return Jobs(slurm, repository, given, tmp_path)


@pytest.mark.slow
def test_an_array(jobs: Jobs, given: Any) -> None:
    job = jobs.submit("0-3", "--wait")
    assert jobs.files() == given.files, jobs.said()
    names = sorted(path.name for path in jobs.logs.iterdir())
    assert names == [f"convert-{job}_{number}.log" for number in range(4)]


@pytest.mark.slow
def test_a_cancelled_array_is_submitted_again(jobs: Jobs, given: Any) -> None:
    job = jobs.submit("1-3")
    work = jobs.out.with_name("out.work")
    until = time.monotonic() + 60
    while not list(work.glob("part-*.json")) and not jobs.out.exists():
        assert time.monotonic() < until, jobs.said()
        time.sleep(0.01)
    jobs.slurm.command("scancel", "--signal=KILL", "--full", job)
    jobs.slurm.command("scancel", job)
    jobs.submit("0-1", "--wait")
    assert jobs.files() == given.files, jobs.said()
    assert not work.exists()
