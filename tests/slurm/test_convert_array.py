"""The script under bash, with the variables that Slurm gives to the tasks of an array."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


class Array:
    """The tasks of one array, submitted in the repository."""

    def __init__(self, repository: Path, arguments: list[str], numbers: range) -> None:
        self._command = ["bash", str(repository / "slurm" / "convert_array.sh"), *arguments]
        self._environment = os.environ | {
            "PYTHON": sys.executable,
            "SLURM_SUBMIT_DIR": str(repository),
            "SLURM_CPUS_PER_TASK": "2",
            "SLURM_ARRAY_TASK_MIN": str(numbers[0]),
            "SLURM_ARRAY_TASK_MAX": str(numbers[-1]),
            "SLURM_ARRAY_TASK_COUNT": str(len(numbers)),
        }

    def start(self, number: int) -> subprocess.Popen[str]:
        """Starts one task somewhere else than in the submission's folder."""
        return subprocess.Popen(
            self._command,
            cwd="/",
            env=self._environment | {"SLURM_ARRAY_TASK_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *numbers: int) -> list[tuple[int, str]]:
        """Starts tasks at once; exit status and output of each."""
        started = [self.start(number) for number in numbers]
        return [(one.returncode, said) for one in started for said in [one.communicate()[0]]]


@pytest.mark.slow
def test_all_tasks_come_to_the_corpus_of_one_process(
    repository: Path, tmp_path: Path, given: Any
) -> None:
    out = tmp_path / "the corpus"
    array = Array(repository, [*given.arguments, "--out", str(out)], range(4, 8))
    (first,) = array.run(7)
    assert first[0] == 0 and "task 4/4: all its parts are complete" in first[1], first
    assert "7 of 9 parts are still missing" in first[1]
    assert not out.exists()
    for status, said in array.run(4, 5, 6):
        assert status == 0, said
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    assert found == given.files
    assert [path.name for path in tmp_path.iterdir()] == ["the corpus"]
    # A task that is submitted once more, in an array of another size.
    again = Array(repository, [*given.arguments, "--out", str(out)], range(1))
    ((status, said),) = again.run(0)
    assert (status, "up to date" in said) == (0, True)


@pytest.mark.parametrize(
    ("numbers", "number", "message"),
    [(range(0, 8, 2), 6, "7/4"), (range(4), 2, "the following arguments are required")],
)
def test_what_cannot_be_right_ends_with_an_error(
    repository: Path, tmp_path: Path, given: Any, numbers: range, number: int, message: str
) -> None:
    arguments = given.arguments[:1] if "required" in message else given.arguments
    array = Array(repository, [*arguments, "--out", str(tmp_path / "out")], numbers)
    ((status, said),) = array.run(number)
    assert status == 2 and message in said, said
    assert not list(tmp_path.iterdir())


def test_without_a_source_the_script_says_what_is_missing(repository: Path) -> None:
    ((status, said),) = Array(repository, [], range(2)).run(0)
    assert status != 0 and "name the source" in said


def test_the_script_has_no_logic(repository: Path) -> None:
    text = (repository / "slurm" / "convert_array.sh").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert "set -euo pipefail" in lines
    assert not any(line.startswith(("if", "for", "while", "case", "function")) for line in lines)
    assert sum("python" in line.lower() for line in lines) == 1
