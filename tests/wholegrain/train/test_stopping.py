"""A stop saves before all else; what it cuts off, a line or a row, goes on after the resume."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.wholegrain.train import stopping_program as program
from wholegrain.errors import WholegrainError
from wholegrain.train import checkpoint
from wholegrain.train.config import OutlierConfig, RunConfig
from wholegrain.train.journal import tag
from wholegrain.train.loop import Interrupted
from wholegrain.train.updates import LostUpdates

Toy = Callable[..., Any]
RUN = RunConfig(steps=9, batch_size=8, log_every=2, validate_every=5)


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics without what a clock says."""
    entries = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in entry.items() if not tag("train", k).startswith("speed/")}
        for entry in entries
    ]


def signalled_at(step: int) -> Callable[[int], None]:
    """Asks for a stop as the step of that number is made."""
    return lambda part: os.kill(os.getpid(), signal.SIGTERM) if part + 1 == step else None


def never(part: int) -> None:
    """Nothing is to go wrong."""


@pytest.fixture
def validations() -> list[bool]:
    """Whether there was a checkpoint at each of them."""
    return []


@pytest.fixture
def stopped(toy: Toy, validations: list[bool]) -> Any:
    run = toy("stopped", run=RUN)

    def validate(model: nn.Module) -> dict[str, float]:
        validations.append(checkpoint.latest(run.out) is not None)
        return {"figure": float(model.line.weight.sum())}

    run.validate = validate
    return run


@pytest.fixture
def whole(toy: Toy) -> Any:
    run = toy("whole", run=RUN)
    run.validate = lambda model: {"figure": float(model.line.weight.sum())}
    run.fit()
    return run


@pytest.mark.parametrize("step", [5, 9])
def test_a_stop_saves_and_leaves_the_validation_to_the_next_start(
    whole: Any, stopped: Any, validations: list[bool], step: int
) -> None:
    stopped.at_part = signalled_at(step)
    with pytest.raises(Interrupted, match=f"stopped at step {step} "):
        stopped.fit()
    assert len(validations) == (step - 1) // 5
    newest = checkpoint.latest(stopped.out)
    assert newest is not None and newest.step == step
    stopped.at_part = never
    assert stopped.fit()[0] == step
    assert metrics(stopped.out) == metrics(whole.out)
    assert len(validations) == 2
    before = (stopped.out / "metrics.jsonl").read_bytes()
    stopped.fit()  # done: it owes nothing more
    assert (stopped.out / "metrics.jsonl").read_bytes() == before
    assert len(validations) == 2


def test_a_validation_that_was_made_up_for_is_not_made_twice(
    whole: Any, stopped: Any, validations: list[bool]
) -> None:
    """The start that made up for it was killed before its next checkpoint."""
    stopped.at_part = signalled_at(5)
    with pytest.raises(Interrupted):
        stopped.fit()

    def die(part: int) -> None:
        if part == 7:
            raise KeyboardInterrupt

    stopped.at_part = die
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    stopped.at_part = never
    assert stopped.fit()[0] == 5
    assert len(validations) == 2
    assert metrics(stopped.out) == metrics(whole.out)


@pytest.mark.ranks
@pytest.mark.slow
def test_ranks_stop_before_a_validation_though_the_vote_is_on_its_way(
    tmp_path: Path, launch: Callable[..., str]
) -> None:
    arguments = ("--standalone", "--nproc-per-node", 2, program.__file__, tmp_path)
    said = launch(*arguments, program="torchrun")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["stopped"][:2] == ["stopped at step 5 by a signal; run again to continue", 0]
    assert found["resumed"][:2] == [5, 2]
    assert found["again"][:2] == [9, 0]
    assert found["whole"][2] == found["resumed"][2] == found["again"][2]
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    assert found["back"] == [3, 2, found["whole"][2]]
    assert said.count("is now called step_000006.set-aside") == 1


# --- outliers and lost updates between two lines --------------------------------------------------


def spiked(part: int, inputs: Tensor) -> Tensor:
    """Step 10 is far from those before it."""
    return inputs + 1e4 * (part == 9)


def test_an_outlier_between_the_last_line_and_a_stop_is_named(toy: Toy) -> None:
    outliers = OutlierConfig(8.0, 8)
    run = RunConfig(steps=14, batch_size=8, log_every=7, outliers=outliers)
    whole, stopped = toy("whole", run=run), toy("stopped", run=run)
    for each in (whole, stopped):
        each.spoil = spiked
    whole.fit()
    stopped.at_part = signalled_at(11)
    with pytest.raises(Interrupted):
        stopped.fit()
    named = [line["step"] for line in metrics(stopped.out) if "outlier_gradient_norm" in line]
    assert named == [10]
    stopped.at_part = never
    stopped.fit()
    assert metrics(stopped.out) == metrics(whole.out)


def lost_at(*steps: int) -> Callable[[int, Tensor], Tensor]:
    return lambda part, inputs: inputs * float("nan") if part + 1 in steps else inputs


LOSING = RunConfig(steps=9, batch_size=8, log_every=8, max_skipped=2)


def test_a_row_that_has_ended_by_the_next_line_stops_the_run_too(toy: Toy) -> None:
    run = toy(run=LOSING)
    run.spoil = lost_at(3, 4, 5)
    with pytest.raises(WholegrainError, match="not finite for 3 updates in a row"):
        run.fit()


def test_rows_that_are_short_enough_do_not_add_up(toy: Toy) -> None:
    run = toy(run=LOSING)
    run.spoil = lost_at(1, 2, 4, 5, 7, 8)
    run.fit()


def test_a_row_that_a_resume_cuts_goes_on(toy: Toy) -> None:
    """A scheduler that interrupts often would otherwise keep a broken run going for ever."""
    run = toy(run=replace(LOSING, log_every=1))
    run.spoil = lost_at(4, 5, 6)
    run.at_part = signalled_at(5)
    with pytest.raises(Interrupted):
        run.fit()
    run.at_part = never
    with pytest.raises(WholegrainError, match="not finite for 3 updates in a row"):
        run.fit()


def test_a_row_that_ends_with_the_resume_is_forgiven(toy: Toy) -> None:
    run = toy(run=replace(LOSING, max_skipped=1, log_every=9))
    run.spoil = lost_at(4, 5)
    run.at_part = signalled_at(5)
    with pytest.raises(Interrupted):
        run.fit()
    run.at_part = never
    run.fit()  # what was repaired meanwhile counts


def test_lost_updates_are_counted_by_kind() -> None:
    counted = LostUpdates()
    yes, no = torch.ones(()), torch.zeros(())
    assert counted.longest() == 0
    for kind, skipped, lost in (
        ("", yes, yes),
        ("region", yes, yes),
        ("", yes, no),  # the scale of the loss was the cause
        ("", yes, yes),
        ("region", no, no),
        ("region", yes, yes),
    ):
        counted.add(kind, skipped, lost)
    assert counted.longest() == 2
    assert counted.state() == {"": 2, "region": 1}
    resumed = LostUpdates()
    resumed.load(json.loads(json.dumps(counted.state())))
    assert resumed.longest() == 0
    resumed.add("region", yes, yes)
    assert resumed.longest() == 2
    assert resumed.state() == {"": 2, "region": 2}
