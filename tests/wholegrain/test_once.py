"""Which of several ranks says an error: one, and never none."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wholegrain import once

PROGRAM = Path(__file__).with_name("once_program.py")
pytestmark = [pytest.mark.ranks, pytest.mark.slow]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(repository: Path, *words: str, world: int = 3, port: int) -> list[subprocess.Popen[str]]:
    place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place |= {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), *words],
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def ends(ranks: list[subprocess.Popen[str]]) -> list[str]:
    """What they said, all together, after all have ended with the error's status."""
    said = []
    for rank in ranks:
        _, error = rank.communicate(timeout=90)
        assert rank.returncode == 2, error
        said += error.splitlines()
    return said


@pytest.mark.parametrize("when", ["before", "joined"])
def test_what_all_meet_is_said_once(repository: Path, when: str) -> None:
    ranks = start(repository, "--stepz is unknown", "all", when, port=free_port())
    assert ends(ranks) == ["error: --stepz is unknown"]


def test_what_each_meets_for_itself_is_said_by_each(repository: Path) -> None:
    ranks = start(repository, "RANK has no disk", "all", world=2, port=free_port())
    assert sorted(ends(ranks)) == ["error: 0 has no disk", "error: 1 has no disk"]


@pytest.mark.parametrize("alone", ["0", "1"])
def test_what_one_meets_it_says_and_does_not_wait_for_long(repository: Path, alone: str) -> None:
    ranks = start(repository, "a broken disk", alone, world=2, port=free_port())
    began = time.monotonic()
    try:
        assert ends([ranks[int(alone)]]) == ["error: a broken disk"]
        assert time.monotonic() - began < 30
        assert ranks[1 - int(alone)].poll() is None
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def test_a_path_that_is_no_utf8_is_said_once(repository: Path) -> None:
    message = os.fsdecode(b"/tmp/caf\xe9 is unknown")
    ranks = start(repository, message, "all", "before", world=2, port=free_port())
    assert ends(ranks) == ["error: /tmp/caf\\udce9 is unknown"]


def test_and_said_where_all_ranks_are_heard(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(once, "_kept", {"stderr": writer})
    try:
        once.say_once(os.fsdecode(b"caf\xe9"))
        assert os.read(reader, 100) == b"caf\\udce9\n"
    finally:
        os.close(reader)
        os.close(writer)
    assert capfd.readouterr().err == "caf\\udce9\n"


def test_where_the_port_is_taken_a_rank_speaks_for_itself(repository: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = int(other.getsockname()[1])
        said = ends(start(repository, "a wrong key", "all", world=2, port=port))
    assert said == ["error: a wrong key"] * 2


def test_under_torchrun(repository: Path) -> None:
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node=2", str(PROGRAM), "a wrong key", "all"],
        env=os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.count("error: a wrong key") == 1
    assert "exitcode  : 2" in done.stderr
