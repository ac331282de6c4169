"""Meters, with a clock that only the test moves."""

import json
import math
from pathlib import Path

import pytest
import torch

from wholegrain.train.meters import METRICS, Averages, Journal, Throughput, truncate_metrics


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def step(self, speed: Throughput, waited: float, computed: float, samples: int) -> None:
        speed.waiting()
        self.now += waited
        speed.arrived()
        self.now += computed
        speed.step(samples)


def test_throughput_counts_from_the_first_wait() -> None:
    clock = Clock()
    speed = Throughput(clock)
    clock.now += 50  # compiling, resuming: no part of the speed
    clock.step(speed, waited=1, computed=3, samples=8)
    clock.step(speed, waited=0, computed=1, samples=12)
    assert speed.take() == {"samples_per_second": 4.0, "data_wait_share": 0.2}


def test_throughput_begins_anew_with_each_look() -> None:
    clock = Clock()
    speed = Throughput(clock)
    clock.step(speed, waited=5, computed=5, samples=1)
    speed.take()
    clock.step(speed, waited=0, computed=2, samples=6)
    assert speed.take() == {"samples_per_second": 3.0, "data_wait_share": 0.0}
    clock.now += 60  # a validation, after which the loop looks and lets the figures go
    speed.take()
    clock.step(speed, waited=1, computed=1, samples=4)
    assert speed.take() == {"samples_per_second": 2.0, "data_wait_share": 0.5}


def test_throughput_of_nothing() -> None:
    assert Throughput(Clock()).take() == {"samples_per_second": 0.0, "data_wait_share": 0.0}


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


def test_metrics_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    lines = [f'{{"step": {step}, "split": "train"}}' for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"step": 4, "spl')
    truncate_metrics(path, 2)
    assert path.read_text() == "\n".join(lines[:2]) + "\n"
    truncate_metrics(tmp_path / "absent", 2)
    assert [p.name for p in tmp_path.iterdir()] == [METRICS]


def test_journal_writes_strict_json_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal(tmp_path, steps=9, start=0, title="toy", active=True) as journal:
        journal.write(1, "train", {"loss": 0.5, "gradient_norm": float("inf")})
        # There at once, not only when the run ends.
        text = (tmp_path / METRICS).read_text()
        journal.write(1, "val", {"acc@0.5": 0.25})
    assert json.loads(text) == {"step": 1, "split": "train", "loss": 0.5, "gradient_norm": None}
    assert "toy 1/9 train loss 0.500" in capsys.readouterr().out
    with Journal(tmp_path, steps=9, start=0, title="toy", active=True):
        pass
    assert (tmp_path / METRICS).read_text() == ""


def test_journal_of_another_rank_writes_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path, steps=9, start=0, title="toy", active=False) as journal:
        journal.write(1, "train", {"loss": 0.5})
        journal.note("hello")
    assert list(tmp_path.iterdir()) == []
