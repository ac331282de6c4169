"""Updates of their own before the main ones: which steps have them, and a resume among them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.wholegrain.train import extra_program as program
from wholegrain.errors import WholegrainError
from wholegrain.train import checkpoint, optim
from wholegrain.train.config import OptimConfig, RunConfig
from wholegrain.train.dry_run import timed_steps
from wholegrain.train.engine import Engine
from wholegrain.train.journal import tag
from wholegrain.train.updates import ExtraUpdates, seed_update

PROGRAM = Path(program.__file__)


def metrics(out: Path) -> list[dict[str, Any]]:
    entries = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
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


def coin(probability: float, name: str = "region") -> ExtraUpdates:
    return ExtraUpdates(name, lambda start, stop: [], 4, probability)


# The coin


def test_the_coin_is_a_function_of_seed_name_and_step() -> None:
    falls = [coin(0.5).due(7, step) for step in range(400)]
    assert falls == [coin(0.5).due(7, step) for step in range(400)]
    assert falls != [coin(0.5).due(8, step) for step in range(400)]
    assert falls != [coin(0.5, "video").due(7, step) for step in range(400)]
    assert 160 < sum(falls) < 240
    assert coin(0.5).count(7, 100) == sum(falls[:100])
    assert coin(0.5).count(7, 0) == 0


def test_the_coin_keeps_its_odds() -> None:
    assert coin(1.0).count(3, 500) == 500
    assert 0.07 < coin(0.1).count(3, 4000) / 4000 < 0.13
    # A rarer coin falls at some of the steps of a more frequent one.
    assert all(coin(0.6).due(3, s) for s in range(200) if coin(0.2).due(3, s))


def test_the_two_updates_of_a_step_draw_other_numbers() -> None:
    draws = []
    for name in ("", "region"):
        seed_update(1, 5, 0, name)
        draws.append(torch.rand(4))
    assert not torch.equal(*draws)


# The run


def parts_of(run: Any) -> list[tuple[str, int]]:
    seen: list[tuple[str, int]] = []
    run.at_part = lambda kind, part: seen.append((kind, part))
    run.fit()
    return seen


def test_heads_take_the_batches_of_their_own_stream_one_after_the_other(tmp_path: Path) -> None:
    seen = parts_of(program.ExtraRun(tmp_path / "run"))
    heads = iter(range(9))
    expected: list[tuple[str, int]] = []
    for step in range(9):
        expected += [("region", next(heads))] if coin(0.5).due(0, step) else []
        expected += [("main", step)]
    assert seen == expected
    assert 2 < len(expected) - 9 < 9  # a seed at which both kinds of steps occur


def test_figures_have_names_of_their_own_and_no_constants(tmp_path: Path) -> None:
    run = program.ExtraRun(tmp_path / "run")
    run.fit()
    lines = metrics(run.out)
    for step, line in enumerate(lines):
        assert "box" not in line  # main batches have no box loss, not even a zero
        regions = {name for name in line if name.startswith("region/")}
        names = ("line", "box", "loss", "gradient_norm", "skipped", "outliers")
        assert regions == ({f"region/{n}" for n in names} if coin(0.5).due(0, step) else set())
        assert line["loss"] == line["line"]
        if regions:
            assert line["region/loss"] == pytest.approx(line["region/line"] + line["region/box"])


def test_the_rate_goes_by_steps_and_the_optimizer_by_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[float, int]] = []
    original = optim.Optimizer.step

    def step(self: optim.Optimizer, kind: str) -> optim.Update:
        result = original(self, kind)
        taken.append((self.adamw.param_groups[0]["lr"], self.updates))
        return result

    monkeypatch.setattr(optim.Optimizer, "step", step)
    run = program.ExtraRun(tmp_path / "run")
    run.fit()
    due = [coin(0.5).due(0, step) for step in range(9)]
    rates = [optim.learning_rate(run.optim, step, 9) for step in range(9)]
    assert [rate for rate, _ in taken] == [
        rate for rate, extra in zip(rates, due, strict=True) for _ in range(1 + extra)
    ]
    assert [number for _, number in taken] == list(range(1, 10 + sum(due)))
    assert [line["learning_rate"] for line in metrics(run.out)] == pytest.approx(rates)


def test_each_update_is_complete(tmp_path: Path) -> None:
    """One step by hand: AdamW on the region batch, then AdamW on the main batch."""
    optim_config = OptimConfig(lr=0.05, warmup=0, schedule="constant", clip_norm=0.5)
    run = program.ExtraRun(
        tmp_path / "run",
        run=RunConfig(steps=1, batch_size=8, log_every=1),
        optim=optim_config,
        probability=1.0,
        dropout=0.0,
    )
    _, model = run.fit()
    torch.manual_seed(0)
    expected = program.TwoHeads(0.0)
    matrices = [p for p in expected.parameters() if p.ndim > 1]
    vectors = [p for p in expected.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.98))
    for seed, size in ((1000, program.EXTRA), (0, 8)):
        inputs = torch.randn(size, 3, generator=torch.Generator().manual_seed(seed))
        expected(program.Rows(inputs, size == program.EXTRA))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(expected.parameters(), 0.5)
        adamw.step()
        adamw.zero_grad()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, expected.get_parameter(name), rtol=1e-5, atol=1e-6)


def test_main_updates_leave_the_other_head_alone(tmp_path: Path) -> None:
    # Momentum and decay would go on moving it if its gradient were zero instead of none.
    seen: list[tuple[str, Tensor]] = []
    run = program.ExtraRun(tmp_path / "run")
    stages = []
    original = run.stage

    def stage(engine: Engine) -> Any:
        stages.append(original(engine))
        return stages[-1]

    run.stage = stage
    run.at_part = lambda kind, part: seen.append((kind, stages[0].model.box.weight.clone()))
    _, model = run.fit()
    seen.append(("end", model.box.weight.clone()))
    for (kind, before), (_, after) in pairwise(seen):
        # The first update has a rate of 0.
        assert torch.equal(before, after) == (kind == "main" or before is seen[0][1])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("log_every", [1, 4])
@pytest.mark.parametrize("recipe", ["plain", "xvlm"])
def test_a_killed_run_continues_as_if_nothing_had_happened(
    tmp_path: Path, accumulation: int, log_every: int, recipe: str
) -> None:
    settings = RunConfig(
        steps=9, batch_size=8, accumulation=accumulation, log_every=log_every, save_every=3
    )
    # A large epsilon makes the xvlm recipe's correction by the count of updates matter.
    rules = OptimConfig(lr=0.05, warmup=2, recipe=recipe, eps=1e-3)

    def die(kind: str, part: int) -> None:
        if (kind, part) == ("main", 8 * accumulation - 1):
            raise Killed

    make = program.ExtraRun
    whole = make(tmp_path / "whole", run=settings, optim=rules)
    killed = make(tmp_path / "killed", run=settings, optim=rules, at_part=die)
    _, expected = whole.fit()
    with pytest.raises(Killed):
        killed.fit()
    found = checkpoint.latest(killed.out)
    assert found is not None
    assert found.state()["optimizer"]["updates"] == 6 + coin(0.5).count(0, 6)
    killed.at_part = lambda kind, part: None
    start, model = killed.fit()
    assert start == 6
    assert metrics(killed.out) == metrics(whole.out)
    assert_same_weights(model, expected)


def test_an_update_that_is_not_finite_leaves_no_trace(tmp_path: Path) -> None:
    def spoil(kind: str, part: int, inputs: Tensor) -> Tensor:
        return inputs * float("nan") if (kind, part) == ("region", 1) else inputs

    settings = dataclasses.replace(program.ExtraRun(tmp_path).run, steps=9)
    spoiled = program.ExtraRun(tmp_path / "spoiled", run=settings, spoil=spoil)
    _, model = spoiled.fit()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    lines = metrics(spoiled.out)
    second = [step for step in range(9) if coin(0.5).due(0, step)][1]
    assert [line["skipped"] for line in lines] == [0.0] * 9
    lost = [step for step, line in enumerate(lines) if line.get("region/skipped")]
    assert lost == [second]
    assert lines[second]["region/loss"] is None
    assert isinstance(lines[second]["loss"], float)


def test_one_kind_that_is_always_lost_stops_the_run(tmp_path: Path) -> None:
    settings = RunConfig(steps=40, batch_size=8, log_every=1, max_skipped=3)

    def spoil(kind: str, part: int, inputs: Tensor) -> Tensor:
        return inputs * float("inf") if kind == "region" else inputs

    run = program.ExtraRun(tmp_path / "run", run=settings, spoil=spoil)
    with pytest.raises(WholegrainError, match="not finite for 4 updates in a row"):
        run.fit()
    fourth = [step for step in range(40) if coin(0.5).due(0, step)][3]
    assert metrics(run.out)[-1]["step"] == fourth + 1


def test_a_dry_run_shows_both_kinds(tmp_path: Path) -> None:
    run = program.ExtraRun(tmp_path / "run", probability=0.01)
    engine = Engine(run.run)
    text = timed_steps(run.stage(engine), run.run, run.optim, engine)
    assert "region       4 images in an update of their own before 1% of the steps; line" in text
    assert "losses       line" in text
    assert not run.out.exists()


@pytest.mark.ranks
def test_two_ranks_train_as_one(tmp_path: Path, launch: Callable[..., str]) -> None:
    two = tmp_path / "two"
    two.mkdir()
    launch("--standalone", "--nproc-per-node", 2, PROGRAM, two, program="torchrun")
    alone = program.trained(tmp_path / "one")
    for rank in range(2):
        found = json.loads((two / f"rank-{rank}.json").read_text())
        for case in ("plain", "parts"):
            for name, value in alone.items():
                assert found[case][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
