"""Meters, with a clock that only the test moves."""

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.programs import run_program
from wholegrain.data.skips import Skip, SkipLedger, SkipPolicy
from wholegrain.train import meters
from wholegrain.train.journal import tag
from wholegrain.train.meters import (
    MAXIMA,
    SUMS,
    Averages,
    SkippedSamples,
    Throughput,
    Work,
    across_ranks,
    combined,
    memory_meter,
)

CPU = torch.device("cpu")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def step(self, speed: Throughput, waited: float, computed: float, *works: Work) -> None:
        """A step of as many batches as there are works."""
        for work in works:
            speed.waiting()
            self.now += waited / len(works)
            speed.arrived()
            self.now += computed / len(works)
            speed.add(work)
        speed.step()


def test_throughput_by_hand() -> None:
    clock = Clock()
    speed = Throughput(clock, peak_flops=4e12, memory=lambda: 1.5)
    clock.now += 50  # compiling, resuming: no part of the speed
    clock.step(speed, 1, 3, Work(samples=8, pairs=20, tokens=90, padded_tokens=100, flops=6e12))
    clock.step(speed, 0, 1, Work(samples=12, pairs=30, tokens=110, padded_tokens=300, flops=4e12))
    assert speed.take() == {
        "samples_per_second": 4.0,  # 20 in 5 s
        "pairs_per_second": 10.0,
        "real_token_share": 0.5,  # 200 of 400
        "data_wait_share": 0.2,
        "tflops": 2.0,
        "peak_share": 0.5,
        "step_seconds_p50": 1.0,
        "step_seconds_p99": 4.0,
        "memory_gib": 1.5,
    }


def test_throughput_begins_anew_with_each_look() -> None:
    clock = Clock()
    speed = Throughput(clock)
    clock.step(speed, 5, 5, Work(samples=1))
    speed.take()
    clock.now += 1  # what comes between two steps belongs to the next
    clock.step(speed, 0, 1, Work(samples=6))
    assert speed.take() == {
        "samples_per_second": 3.0,
        "data_wait_share": 0.0,
        "step_seconds_p50": 2.0,
        "step_seconds_p99": 2.0,
    }


def test_batches_of_a_step_are_one_step() -> None:
    clock = Clock()
    speed = Throughput(clock)
    clock.step(speed, 2, 6, Work(samples=3), Work(samples=5))
    assert speed.take() == {
        "samples_per_second": 1.0,
        "data_wait_share": 0.25,
        "step_seconds_p50": 8.0,
        "step_seconds_p99": 8.0,
    }


def test_nothing_is_said_where_there_is_nothing_to_go_by() -> None:
    clock = Clock()
    speed = Throughput(clock, peak_flops=1e12)
    assert speed.take() == {}
    with speed.paused("validation"):
        clock.now += 5  # before training began
    assert speed.take() == {}
    clock.step(speed, 0, 1, Work(samples=1))
    assert {"tflops", "peak_share", "pairs_per_second", "real_token_share"}.isdisjoint(speed.take())
    assert speed.take() == {}


def test_pauses_are_kept_out_of_steps_and_rates() -> None:
    clock = Clock()
    speed = Throughput(clock)
    clock.step(speed, 1, 1, Work(samples=6))
    with speed.paused("validation"):
        clock.now += 10
    with speed.paused("checkpoint"):
        clock.now += 3
    clock.step(speed, 0, 4, Work(samples=6))
    with speed.paused("checkpoint"):
        clock.now += 1
    assert speed.take() == {
        "samples_per_second": 2.0,  # 12 in 6 s
        "data_wait_share": pytest.approx(1 / 6),
        "step_seconds_p50": 2.0,
        "step_seconds_p99": 4.0,
        "validation_share": 0.5,  # 10 of 20 s
        "checkpoint_share": 0.2,
    }
    clock.step(speed, 0, 4, Work(samples=8))
    later = speed.take()
    assert later["samples_per_second"] == 2.0
    assert (later["validation_share"], later["checkpoint_share"]) == (0.0, 0.0)


def test_a_pause_that_fails_counts_all_the_same() -> None:
    clock = Clock()
    speed = Throughput(clock)
    clock.step(speed, 0, 1, Work(samples=1))
    with pytest.raises(ZeroDivisionError), speed.paused("checkpoint"):
        clock.now += 3
        raise ZeroDivisionError
    assert speed.take()["checkpoint_share"] == 0.75


@pytest.mark.parametrize(
    ("count", "half", "most"),
    [(1, 1, 1), (2, 1, 2), (100, 50, 99), (101, 51, 100), (1000, 500, 990)],
)
def test_percentiles_are_steps_that_there_were(count: int, half: int, most: int) -> None:
    clock = Clock()
    speed = Throughput(clock)
    for number in torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist():
        clock.step(speed, 0, number + 1, Work(samples=1))
    figures = speed.take()
    assert (figures["step_seconds_p50"], figures["step_seconds_p99"]) == (half, most)


def test_percentiles_of_a_long_window_are_of_its_last_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meters, "_STEPS_AT_MOST", 3)
    clock = Clock()
    speed = Throughput(clock)
    for seconds in (50.0, 1.0, 3.0, 2.0):
        clock.step(speed, 0, seconds, Work(samples=1))
    figures = speed.take()
    assert (figures["step_seconds_p50"], figures["step_seconds_p99"]) == (2.0, 3.0)
    assert figures["samples_per_second"] == 4 / 56


def test_every_figure_of_speed_has_its_group_on_the_board() -> None:
    clock = Clock()
    speed = Throughput(clock, peak_flops=1.0, memory=lambda: 1.0)
    clock.step(speed, 1, 1, Work(1, 1, 1, 1, 1.0))
    for name in ("checkpoint", "validation"):
        with speed.paused(name):
            clock.now += 1
    names = speed.take()
    assert {tag("train", name) for name in names} == {f"speed/{name}" for name in names}
    # What is said of ranks is said of figures that there are.
    assert names.keys() >= (SUMS | MAXIMA) - {"skipped_samples"}


def test_memory_of_this_process() -> None:
    meter = memory_meter(CPU)
    before = meter()
    held = torch.ones(1 << 28, dtype=torch.uint8)  # a quarter of a GiB, touched
    grown = meter() - before
    assert before > 0.05
    assert grown == pytest.approx(0.25, abs=0.03)
    assert held.sum() == 1 << 28


def test_memory_of_a_gpu_is_its_peak_since_the_look_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peak = [3 << 30]
    resets: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[0])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    device = torch.device("cuda:1")
    meter = memory_meter(device)
    assert resets == []
    assert meter() == 3.0
    peak[0] = 1 << 29
    assert meter() == 0.5
    assert resets == [device, device]


def test_averages() -> None:
    averages = Averages()
    averages.add({"loss": torch.tensor(1.0), "skipped": 0.0})
    averages.add({"loss": torch.tensor(4.0)})
    assert averages.take() == {"loss": 2.5, "skipped": 0.0}
    assert averages.take() == {}


def test_averages_hold_no_graph() -> None:
    averages = Averages()
    loss = torch.ones((), requires_grad=True) * 2
    averages.add({"loss": loss})
    averages.add({"loss": loss})
    assert averages.take() == {"loss": 2.0}
    loss.backward()


def test_averages_leave_out_what_is_not_finite() -> None:
    averages = Averages()
    for value in (1.0, float("nan"), float("inf"), 3.0):
        averages.add({"loss": torch.tensor(value)})
    averages.add({"other": float("nan")})
    means = averages.take()
    assert means["loss"] == 2.0
    assert math.isnan(means["other"])


def test_averages_over_ranks_weigh_each_observation_the_same() -> None:
    ranks = [Averages(), Averages()]
    for rank, values in zip(ranks, ((1.0, 2.0, math.nan), (6.0, math.nan, math.nan)), strict=True):
        for value in values:
            rank.add({"loss": value, "lost": math.nan})
    states = [rank.state() for rank in ranks]
    between = {name: (states[0][name] + states[1][name]) / 2 for name in states[0]}
    for rank in ranks:
        means = rank.take_over(lambda state: between)
        assert means["loss"] == 3.0
        assert math.isnan(means["lost"])
        assert rank.take() == {}


def test_averages_continue_from_a_checkpoint_to_the_last_bit() -> None:
    values = [0.1, 0.7, 1e-9, 12345.678, float("nan"), 0.3]
    whole, first, second = Averages(), Averages(), Averages()
    for value in values:
        whole.add({"a/loss": value})
    for value in values[:3]:
        first.add({"a/loss": value})
    second.load(json.loads(json.dumps(first.state())))
    for value in values[3:]:
        second.add({"a/loss": value})
    assert second.take() == whole.take()


@pytest.fixture
def ledger() -> Callable[..., SkipLedger]:
    """Makes a ledger that has met bad samples of the given causes."""

    def make(*causes: str) -> SkipLedger:
        made = SkipLedger(SkipPolicy(always_allowed=99, log_lines=0))
        made.add(10, [Skip("a", number, cause, "") for number, cause in enumerate(causes)])
        return made

    return make


def test_skipped_samples_since_the_last_look(ledger: Callable[..., SkipLedger]) -> None:
    ledgers: list[SkipLedger] = []
    skipped = SkippedSamples(ledgers)
    assert skipped.take() == {}
    ledgers.append(ledger())
    assert skipped.take() == {"skipped_samples": 0.0}
    ledgers.append(ledger("truncated", "not an image", "truncated"))
    assert skipped.take() == {
        "skipped_samples": 3.0,
        "skipped_samples/truncated": 2.0,
        "skipped_samples/not_an_image": 1.0,
    }
    ledgers[0].add(1, [Skip("b", 7, "truncated", "")])
    assert skipped.take() == {
        "skipped_samples": 1.0,
        "skipped_samples/truncated": 1.0,
        "skipped_samples/not_an_image": 0.0,
    }


def test_figures_of_ranks_are_added_or_the_worst_or_a_mean() -> None:
    ranks = [
        {"loss": 1.0, "samples_per_second": 10.0, "step_seconds_p99": 2.0, "data_wait_share": 0.1},
        {"loss": 4.0, "samples_per_second": 30.0, "step_seconds_p99": 9.0, "data_wait_share": 0.0},
    ]
    assert combined(ranks) == {
        "loss": 2.5,
        "samples_per_second": 40.0,
        "step_seconds_p99": 9.0,
        "data_wait_share": 0.1,
    }


def test_figures_that_some_ranks_lack() -> None:
    ranks = [
        {"skipped_samples": 1.0, "skipped_samples/truncated": 1.0, "loss": math.nan},
        {"skipped_samples": 2.0, "skipped_samples/record": 2.0, "loss": 3.0, "box": math.inf},
    ]
    figures = combined(ranks)
    assert math.isnan(figures.pop("box"))
    assert figures == {
        "skipped_samples": 3.0,
        "skipped_samples/truncated": 1.0,
        "skipped_samples/record": 2.0,
        "loss": 3.0,
    }


def test_figures_of_one_rank_are_its_own() -> None:
    assert across_ranks({"loss": 0.1, "samples_per_second": 3.0}, CPU) == {
        "loss": 0.1,
        "samples_per_second": 3.0,
    }


RANKS = """
import json, sys
import torch, torch.distributed as dist
from wholegrain.train.meters import across_ranks
dist.init_process_group("gloo")
rank = dist.get_rank()
own = [
    {"loss": 0.1, "memory_gib": 2.0, "skipped_samples/not_an_image": 1.0, "box": float("nan")},
    {"loss": 0.7, "memory_gib": 3.0, "samples_per_second": 1.5, "a name that is longer": 1e-300},
][rank]
print(json.dumps([rank, across_ranks(own, torch.device("cpu"))]), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.ranks
def test_every_rank_gets_the_same_figures(repository: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--no-python", sys.executable, "-c", RANKS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    done = run_program(command, timeout_s=120, env=environment)
    assert done.returncode == 0, done.stderr
    told = dict(json.loads(line) for line in done.stdout.splitlines())
    assert told.keys() == {0, 1}
    for figures in told.values():
        assert math.isnan(figures.pop("box"))
        assert figures == {
            "loss": math.fsum([0.1, 0.7]) / 2,
            "memory_gib": 3.0,
            "skipped_samples/not_an_image": 1.0,
            "samples_per_second": 1.5,
            "a name that is longer": 1e-300,
        }
