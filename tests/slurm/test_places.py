"""Which process of a real Slurm counts as a rank."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Slurm

pytestmark = pytest.mark.slow

PROGRAM = """\
import os
from wholegrain.train.launch import find_place
place = find_place(os.environ)
met = [os.environ.get(f"MASTER_{name}") for name in ("ADDR", "PORT")]
print(place.rank, place.world, place.local_rank, place.local_world, place.started_by, *met)
"""
ALONE = "0 1 0 1 alone None None"


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    path = tmp_path / "place.py"
    path.write_text(PROGRAM)
    return [sys.executable, str(path)]


def test_tasks_of_srun_are_ranks(slurm: Slurm, repository: Path, program: list[str]) -> None:
    options = ("--nodes=2", "--ntasks=3", "--ntasks-per-node=2", "--distribution=block")
    said = slurm.command("srun", *options, *program, PYTHONPATH=str(repository))
    lines = [line.split() for line in said.splitlines() if " srun " in line]
    port = lines[0][-1]
    assert 15_000 < int(port) < 32_000
    assert sorted(map(" ".join, lines)) == [
        f"0 3 0 2 srun n1 {port}",
        f"1 3 1 2 srun n1 {port}",
        f"2 3 0 1 srun n1 {port}",
    ]
    said = slurm.command("srun", "--ntasks=1", *program, PYTHONPATH=str(repository))
    # Where the nodes are not free again yet, srun says first that it waits.
    assert said.splitlines()[-1] == "0 1 0 1 srun None None"


def test_a_shell_of_an_allocation_is_no_rank(
    slurm: Slurm, repository: Path, program: list[str], tmp_path: Path
) -> None:
    size = ("--nodes=2", "--ntasks=4")
    said = slurm.command("salloc", *size, *program, PYTHONPATH=str(repository))
    assert ALONE in said.splitlines()
    log = tmp_path / "job.log"
    wrapped = f"--wrap={' '.join(program)}"
    slurm.command(
        *("sbatch", "--wait", *size, f"--output={log}", wrapped), PYTHONPATH=str(repository)
    )
    assert log.read_text().strip() == ALONE
