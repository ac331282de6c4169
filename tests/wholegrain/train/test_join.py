"""Ranks that find each other, and what they say where they do not."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wholegrain.errors import ConfigError
from wholegrain.train.join import join
from wholegrain.train.launch import Place

PROGRAM = Path(__file__).with_name("join_program.py")
pytestmark = [pytest.mark.ranks, pytest.mark.slow]


@contextmanager
def listener() -> Iterator[int]:
    """A port where another program listens, and never answers."""
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        yield int(other.getsockname()[1])


def free_port() -> int:
    with listener() as port:
        return port


def run(repository: Path, port: int, *words: object, world: int = 2) -> list[tuple[int, str]]:
    """Status and output of each rank; one that stays away is ended when the others have."""
    place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place |= {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    away = {int(str(word)) for word in words[1:]}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), *map(str, words)],
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    here = [one for rank, one in enumerate(ranks) if rank not in away]
    try:
        return [
            (one.returncode, said) for one in here for said in [one.communicate(timeout=120)[0]]
        ]
    finally:
        for one in ranks:
            one.kill()
            one.wait()


def test_all_join(repository: Path) -> None:
    assert run(repository, free_port(), 60) == [(0, "rank 0 of 2: 3\n"), (0, "rank 1 of 2: 3\n")]


def test_a_port_that_is_taken(repository: Path) -> None:
    with listener() as port:
        (status, said), (other_status, _) = run(repository, port, 5)
    assert (status, other_status) == (2, 2)
    assert said == (
        f"error: MASTER_PORT is {port}, which another program on 127.0.0.1 uses; set MASTER_PORT "
        "to a free port\n"
    )


def test_ranks_that_stay_away_are_named(repository: Path) -> None:
    port = free_port()
    said = "".join(said for _, said in run(repository, port, 15, 1, world=3))
    pattern = rf"1 of 3 ranks did not join at 127\.0\.0\.1:{port} within 15 s \(ranks 1\)"
    assert len(re.findall(pattern, said)) >= 1, said
    assert "Traceback" not in said


def test_rank_0_that_stays_away(repository: Path) -> None:
    port = free_port()
    ((status, said),) = run(repository, port, 2, 0)
    assert status == 2
    assert re.fullmatch(
        rf"error: rank 0 was not met at 127\.0\.0\.1:{port} within 2 s \(.*refused\); .*\n", said
    )


def test_an_address_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    monkeypatch.setenv("MASTER_PORT", "15000")
    with pytest.raises(
        ConfigError, match=r"MASTER_ADDR is 'no-such-host.invalid', which this node"
    ):
        join(Place(0, 2, 0, 2, "srun"), "gloo")


def test_one_process_needs_no_group() -> None:
    join(Place(0, 1, 0, 1, "alone"), "gloo")
