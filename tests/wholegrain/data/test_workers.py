"""Items come in order, each once, whatever is done to the processes that make them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from wholegrain.data.transport import receive, send
from wholegrain.data.workers import Workers
from wholegrain.errors import DataError


def square(number: int) -> tuple[int, Tensor]:
    return number, torch.full((50, 700), float(number))


def check(items: list[tuple[int, Tensor]], numbers: range) -> None:
    assert [number for number, _ in items] == list(numbers)
    for number, tensor in items:
        assert torch.equal(tensor, square(number)[1])


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("ahead", [1, 3])
def test_items_come_in_order(count: int, ahead: int) -> None:
    numbers = range(3, 40)
    check(list(Workers(square, numbers, count, ahead=ahead)), numbers)


def test_no_number_is_no_item() -> None:
    assert list(Workers(square, range(0), 2)) == []


def test_a_slow_worker_keeps_its_place() -> None:
    def make(number: int) -> int:
        time.sleep(0.15 if number % 3 == 0 else 0)
        return number

    assert list(Workers(make, range(12), 3)) == list(range(12))


def test_no_more_is_made_ahead_than_agreed(tmp_path: Path) -> None:
    made = tmp_path / "made"

    def make(number: int) -> int:
        with made.open("a") as file:
            file.write(f"{number}\n")
        return number

    items = iter(Workers(make, range(100), 2, ahead=2))
    assert next(items) == 0
    time.sleep(0.3)
    assert len(made.read_text().split()) <= 5
    items.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("when", ["before", "while", "after"])
def test_a_killed_worker_is_replaced(tmp_path: Path, when: str) -> None:
    def make(number: int) -> tuple[int, Tensor]:
        marker = tmp_path / str(number)
        if number % 5 == 2 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return square(number)

    def make_and_die(number: int) -> tuple[int, Tensor]:
        item = square(number)
        marker = tmp_path / str(number)
        if number % 5 == 2 and not marker.exists():
            marker.touch()

            class Fatal:
                def __reduce__(self) -> object:  # in the middle of being sent
                    os.kill(os.getpid(), signal.SIGKILL)

            return (*item, Fatal())  # type: ignore[return-value]
        return item

    workers = Workers(make_and_die if when == "while" else make, range(20), 2)
    items = []
    for item in workers:
        items.append(item)
        if when == "after" and len(items) == 10:
            for child in _children():
                os.kill(child, signal.SIGKILL)
    check(items, range(20))
    assert workers.restarts >= 4


@pytest.fixture(autouse=True)
def _others() -> None:
    """Children that other tests have left are not ours."""
    _FOREIGN.clear()
    _FOREIGN.update(_children())


_FOREIGN: set[int] = set()


def _children() -> list[int]:
    found = subprocess.run(
        ["ps", "--no-headers", "-o", "pid,comm", "--ppid", str(os.getpid())],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    pids = [int(line.split()[0]) for line in found if not line.split()[1].startswith("ps")]
    return [pid for pid in pids if pid not in _FOREIGN]


def test_a_number_that_kills_every_worker_ends_the_run() -> None:
    def make(number: int) -> int:
        if number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    seen = []
    with pytest.raises(DataError, match=r"3 loader workers in a row .* batch 4 \(signal SIGKILL\)"):
        for item in Workers(make, range(9), 2):
            seen.append(item)
    assert seen == [0, 1, 2, 3]
    assert _children() == []


def test_a_hung_worker_shows_its_stack_and_is_replaced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "hung"

    def make_and_hang_at_three(number: int) -> int:
        if number == 3 and not marker.exists():
            marker.touch()
            time.sleep(1000)
        return number

    with caplog.at_level(logging.WARNING):
        items = list(Workers(make_and_hang_at_three, range(8), 2, patience_s=0.5))
    assert items == list(range(8))
    assert "make_and_hang_at_three" in capfd.readouterr().err
    assert "gave no answer for 0 s" in caplog.text


def test_an_error_in_a_worker_arrives_with_its_traceback() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise KeyError("the cause")
        return number

    items = iter(Workers(make, range(5), 2))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(RuntimeError, match=r"(?s)failed.*KeyError: 'the cause'"):
        next(items)
    assert _children() == []


def test_a_consumer_that_stops_leaves_no_process() -> None:
    items = iter(Workers(square, range(1000), 3))
    next(items)
    assert len(_children()) == 3
    items.close()  # type: ignore[attr-defined]
    assert _children() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_to_the_whole_job_leave_the_workers_to_the_parent(number: int) -> None:
    items = iter(Workers(square, range(200), 2))
    found = [next(items)]
    for child in _children():
        os.kill(child, number)
    found += list(items)
    check(found, range(200))


PARENT = """
import os, time
from wholegrain.data.workers import Workers

def make(number):
    if number:
        time.sleep(0.05)
    return os.getpid()

items = iter(Workers(make, range(10**6), 2))
print(next(items), next(items), flush=True)
time.sleep(100)
"""


def test_workers_do_not_outlive_a_killed_parent(repository: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=repository, text=True
    ) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    assert len(set(workers) - {parent.pid}) == 2
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(200_000, dtype=torch.uint8).reshape(2, -1),
        lambda: torch.randn(300, 300)[:, ::2],
        lambda: torch.zeros(0, 4),
        lambda: torch.tensor(3),
        lambda: torch.rand(100_000) > 0.5,
        lambda: torch.arange(5, dtype=torch.int32),
    ],
)
def test_a_tensor_arrives_as_it_was_sent(make: Callable[[], Tensor]) -> None:
    one, other = Pipe()
    tensor = make()
    value = {"a": tensor, "b": [tensor, np.arange(3), "text"]}
    send(one, value)
    found = receive(other)
    for each in (found["a"], found["b"][0]):
        assert (each.dtype, each.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(each, tensor)
        each.copy_(each.clone())  # its memory may be written
    assert found["b"][2] == "text"
    assert np.array_equal(found["b"][1], np.arange(3))


def test_memory_of_what_was_sent_is_given_back() -> None:
    def shared_kib() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssShmem:")[2].split()[0])

    before = shared_kib()
    for item in Workers(lambda number: torch.ones(4_000_000), range(30), 2):
        assert item.sum() == 4_000_000
    del item
    assert shared_kib() - before < 40_000  # 30 items have 470 MB
