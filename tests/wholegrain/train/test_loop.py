"""The loop: resume as if nothing had happened, stop when asked, skip what is not finite."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wholegrain.errors import CheckpointError, WholegrainError
from wholegrain.train import checkpoint, checkpoint_writer
from wholegrain.train.config import OutlierConfig, RunConfig
from wholegrain.train.dry_run import timed_steps
from wholegrain.train.engine import Engine
from wholegrain.train.journal import tag
from wholegrain.train.loop import Interrupted
from wholegrain.train.meters import Work

Toy = Callable[..., Any]


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics without what a clock says; each must be strict JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = (out / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line, parse_constant=refuse) for line in lines]
    return [
        {k: v for k, v in entry.items() if not tag("train", k).startswith("speed/")}
        for entry in entries
    ]


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    expected = one.state_dict()
    for name, value in other.state_dict().items():
        assert torch.equal(value, expected[name]), name


class Killed(BaseException):
    """Ends a run as abruptly as an exception can."""


def killing_at(place: int, how: Callable[[], None]) -> Callable[[int], None]:
    def at_part(part: int) -> None:
        if part == place:
            how()

    return at_part


def die() -> None:
    raise Killed


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("log_every", [1, 4])
def test_a_killed_run_continues_as_if_nothing_had_happened(
    toy: Toy, accumulation: int, log_every: int
) -> None:
    # Checkpoints at 3 and 6, killed while step 8 is made; with log_every 4 the line of step 8 is
    # gathered partly before the checkpoint and partly after it.
    run = RunConfig(
        steps=9, batch_size=8, accumulation=accumulation, log_every=log_every, save_every=3
    )
    whole, killed = toy("whole", run=run), toy("killed", run=run)
    _, expected = whole.fit()
    killed.at_part = killing_at(8 * accumulation - 1, die)
    with pytest.raises(Killed):
        killed.fit()
    killed.at_part = lambda part: None
    start, model = killed.fit()
    assert start == 6
    assert metrics(killed.out) == metrics(whole.out)
    assert [entry["step"] for entry in metrics(whole.out)] == [
        *range(log_every, 9, log_every),
        9,
    ]
    assert_same_weights(model, expected)


def test_accumulated_parts_are_one_batch(toy: Toy) -> None:
    # Without norm and dropout, two parts of 4 have the gradient of the 8 together.
    first = toy("one", run=RunConfig(steps=1, batch_size=8, log_every=1))
    second = toy("two", run=RunConfig(steps=1, batch_size=8, accumulation=2, log_every=1))
    batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(5))
    first.spoil = lambda part, inputs: batch
    second.spoil = lambda part, inputs: batch[4 * part : 4 * part + 4]
    lines = []
    for run in (first, second):
        original = run.stage

        def plain(original: Callable[[], Any] = original) -> Any:
            stage = original()
            stage.model.norm, stage.model.dropout = nn.Identity(), nn.Identity()
            return stage

        run.stage = plain
        run.fit()
        lines.append(metrics(run.out)[0])
    assert lines[1]["loss"] == pytest.approx(lines[0]["loss"], rel=1e-6)
    assert lines[1]["gradient_norm"] == pytest.approx(lines[0]["gradient_norm"], rel=1e-6)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_at_the_next_step_with_a_checkpoint(
    toy: Toy, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    whole, stopped = toy("whole"), toy("stopped")
    _, expected = whole.fit()
    stopped.at_part = killing_at(4, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=r"stopped at step 5 .*run again to continue"):
        stopped.fit()
    assert signal.getsignal(number) is before
    found = checkpoint.latest(stopped.out)
    assert found is not None
    assert found.step == 5
    stopped.at_part = lambda part: None
    start, model = stopped.fit()
    assert start == 5
    assert metrics(stopped.out) == metrics(whole.out)
    assert_same_weights(model, expected)


def test_a_signal_in_the_last_step_changes_nothing(toy: Toy) -> None:
    stopped = toy()
    stopped.at_part = killing_at(8, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert stopped.fit()[0] == 0
    found = checkpoint.latest(stopped.out)
    assert found is not None
    assert found.step == 9


def test_a_finished_run_trains_no_further(toy: Toy) -> None:
    run = toy()
    _, expected = run.fit()
    before = (run.out / "metrics.jsonl").read_bytes()
    run.at_part = killing_at(9, die)
    start, model = run.fit()
    assert start == 9
    assert (run.out / "metrics.jsonl").read_bytes() == before
    assert_same_weights(model, expected)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("seed", 0, 1), ("batch_size", 8, 16), ("corpora", {"a": "12ab"}, {"a": "34cd"})],
)
def test_a_resume_under_other_facts_is_refused(toy: Toy, name: str, old: Any, new: Any) -> None:
    toy(facts={name: old}).fit()
    with pytest.raises(CheckpointError) as caught:
        toy(facts={name: new}).fit()
    for part in ("step_000009", name, repr(old), repr(new), "--out"):
        assert part in str(caught.value)


def test_a_step_that_is_not_finite_leaves_no_trace(toy: Toy) -> None:
    def spoil(part: int, inputs: Tensor) -> Tensor:
        return inputs * float("nan") if part == 4 else inputs

    def stage_at(steps: int) -> dict[str, Tensor]:
        run = toy(f"to-{steps}", run=RunConfig(steps=9, batch_size=8, log_every=1, save_every=1))
        run.spoil = spoil
        run.at_part = killing_at(steps, die)
        if steps < 9:
            with pytest.raises(Killed):
                run.fit()
        else:
            run.fit()
        found = checkpoint.latest(run.out)
        assert found is not None
        assert found.step == steps
        model = run.stage().model
        found.load(model)  # which refuses NaN, also among the statistics of the norm
        return model.state_dict()

    before, after, end = stage_at(4), stage_at(5), stage_at(9)
    for name, value in before.items():
        if name != "norm.num_batches_tracked":
            assert torch.equal(after[name], value), name
    assert not torch.equal(end["line.weight"], before["line.weight"])
    lines = metrics(toy("to-9").out)
    assert [entry["skipped"] for entry in lines] == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert lines[4]["loss"] is None
    assert all(isinstance(entry["loss"], float) for entry in lines if entry["step"] != 5)


def test_too_many_lost_steps_stop_the_run_and_name_the_last_good_checkpoint(toy: Toy) -> None:
    run = toy(run=RunConfig(steps=20, batch_size=8, log_every=1, save_every=4, max_skipped=3))
    run.spoil = lambda part, inputs: inputs * float("inf") if part >= 5 else inputs
    with pytest.raises(WholegrainError) as caught:
        run.fit()
    assert "not finite for 4 updates in a row" in str(caught.value)
    assert str(run.out / "checkpoints" / "step_000008") in str(caught.value)
    assert metrics(run.out)[-1]["step"] == 9


@pytest.mark.parametrize("skip", [False, True])
def test_a_spike_is_flagged_and_left_out_where_that_is_asked_for(toy: Toy, skip: bool) -> None:
    def weights_after(steps: int, spoiled: int | None) -> dict[str, Tensor]:
        outliers = OutlierConfig(window=8, skip=skip)
        settings = RunConfig(steps=12, batch_size=8, log_every=4, outliers=outliers, save_every=1)
        run = toy(f"{steps}-{spoiled}", run=settings)
        run.spoil = lambda part, inputs: inputs + 1e4 * (part == spoiled)
        run.at_part = killing_at(steps, die)
        with pytest.raises(Killed):
            run.fit()
        found = checkpoint.latest(run.out)
        assert found is not None
        model = run.stage().model
        found.load(model)
        return model.state_dict()

    before, after = weights_after(9, 9), weights_after(10, 9)
    moved = not torch.equal(before["line.weight"], after["line.weight"])
    assert moved == (not skip)
    assert torch.equal(before["norm.running_mean"], after["norm.running_mean"]) == skip
    run = toy("whole", run=RunConfig(steps=12, batch_size=8, log_every=4))
    run.run = RunConfig(steps=12, batch_size=8, log_every=4, outliers=OutlierConfig(8.0, 8, skip))
    run.spoil = lambda part, inputs: inputs + 1e4 * (part == 9)
    run.fit()
    lines = metrics(run.out)
    (flagged,) = [line for line in lines if "outlier_gradient_norm" in line]
    assert flagged["step"] == 10 and flagged["outlier_gradient_norm"] > 0
    assert [line["outliers"] for line in lines if "outliers" in line] == [0, 0, 0.25]
    assert [line["skipped"] for line in lines if "skipped" in line] == [0, 0, 0]


def test_lost_steps_that_do_not_follow_each_other_do_not_stop_a_run(toy: Toy) -> None:
    run = toy(run=RunConfig(steps=9, batch_size=8, log_every=1, max_skipped=1))
    run.spoil = lambda part, inputs: inputs * float("nan") if part % 2 else inputs
    run.fit()
    assert [entry["skipped"] for entry in metrics(run.out)] == [0, 1, 0, 1, 0, 1, 0, 1, 0]


def test_validation_comes_when_due_in_evaluation_mode(toy: Toy) -> None:
    seen: list[tuple[bool, bool]] = []

    def validate(model: nn.Module) -> dict[str, float]:
        seen.append((model.training, torch.is_grad_enabled()))
        return {"figure": float(len(seen))}

    run = toy(run=RunConfig(steps=9, batch_size=8, log_every=5, validate_every=4))
    run.validate = validate
    _, model = run.fit()
    assert seen == [(False, False)] * 3
    assert model.training
    found = [(e["step"], e["figure"]) for e in metrics(run.out) if e["split"] == "val"]
    assert found == [(4, 1.0), (8, 2.0), (9, 3.0)]


def test_validation_does_not_change_what_is_learnt(toy: Toy) -> None:
    plain, measured = toy("plain"), toy("measured")
    measured.run = RunConfig(steps=9, batch_size=8, log_every=1, validate_every=2)
    measured.validate = lambda model: {"figure": float(torch.rand(()))}
    assert_same_weights(plain.fit()[1], measured.fit()[1])


def test_a_model_in_evaluation_mode_is_trained_all_the_same(toy: Toy) -> None:
    plain, released = toy("plain"), toy("released")
    original = released.stage

    def stage() -> Any:
        made = original()
        made.module.eval()
        return made

    released.stage = stage
    assert_same_weights(plain.fit()[1], released.fit()[1])


@pytest.mark.parametrize("background", [True, False])
def test_checkpoints_are_written_beside_the_training_or_by_it(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    write, training = checkpoint_writer.write_tensors, threading.current_thread()
    by_training: list[bool] = []

    def noted(*given: Any) -> Any:
        by_training.append(threading.current_thread() is training)
        return write(*given)

    monkeypatch.setattr(checkpoint_writer, "write_tensors", noted)
    toy(run=RunConfig(steps=4, batch_size=8, save_every=2, save_in_background=background)).fit()
    assert set(by_training) == {not background}


def test_the_newest_checkpoints_and_every_nth_are_kept(toy: Toy) -> None:
    run = toy(run=RunConfig(steps=9, batch_size=8, save_every=1, keep=1, keep_every=4))
    run.fit()
    assert [found.step for found in checkpoint.complete(run.out)] == [4, 8, 9]


def test_the_share_of_the_peak_is_of_the_one_that_is_given(toy: Toy) -> None:
    run = toy(run=RunConfig(steps=4, batch_size=8, log_every=2, peak_tflops=2.5))
    original = run.stage

    def counted() -> Any:
        stage = original()
        stage.work = lambda batch: Work(samples=8, flops=1e9)
        return stage

    run.stage = counted
    run.fit()
    for line in map(json.loads, (run.out / "metrics.jsonl").read_text().splitlines()):
        assert line["tflops"] / line["peak_share"] == pytest.approx(2.5)


def test_timed_steps_say_what_the_run_will_be(toy: Toy) -> None:
    run = toy()
    text = timed_steps(run.stage(), run.run, run.optim, Engine(run.run))
    for part in ("13 parameters, 13 trained", "1 rank x 1 part x 8 images = 8 images", "72"):
        assert part in text
    for part in ("memory", "s a step", "loss "):
        assert part in text
    assert list(run.out.iterdir()) == []
