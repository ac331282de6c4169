"""One process or several: the same training, and clashes that are named."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from tests.wholegrain.train import rank_program as program
from wholegrain.errors import ConfigError
from wholegrain.train import engine
from wholegrain.train.config import OptimConfig, RunConfig
from wholegrain.train.engine import Engine
from wholegrain.train.optim import Optimizer

PROGRAM = Path(program.__file__)


def figures(out: Path, kind: str) -> list[float]:
    """The losses, or the validated sums of weights, in the order of the steps."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    name = {"train": "loss", "val": "weight"}[kind]
    return [line[name] for line in lines if line["split"] == kind]


@pytest.mark.ranks
@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path: Path, launch: Callable[..., str]) -> None:
    two = tmp_path / "two"
    two.mkdir()
    launch("--standalone", "--nproc-per-node", 2, PROGRAM, two, program="torchrun")
    ranks: list[dict[str, Any]] = [
        json.loads((two / f"rank-{rank}.json").read_text()) for rank in range(2)
    ]
    one = program.train(tmp_path / "one", 1)
    assert len(figures(tmp_path / "one", "train")) == len(figures(tmp_path / "one", "val")) == 3
    for case in ("plain", "parts", "zero1", "zero3"):
        for rank in ranks:
            assert rank[case]["weight"][0] == pytest.approx(one["weight"][0], rel=1e-5)
        for kind in ("train", "val"):
            wanted = figures(tmp_path / "one", kind)
            assert figures(two / case, kind) == pytest.approx(wanted, rel=1e-5)
    # Each rank's norm saw its own samples; what is validated and kept is the first rank's.
    assert len(ranks[0]["norm"]["validated"]) == 3 * program.FEATURES
    assert ranks[0]["norm"] == ranks[1]["norm"]
    for number, rank in enumerate(ranks):
        assert rank["any"] == [True, False]
        assert rank["mean"] == {"a": 0.5, "b": 3.0}
        assert (rank["rank"], rank["world"], rank["main"]) == (number, 2, number == 0)
        assert rank["local"] == number
        for case, kept in (("diverged", ["step_000002"]), ("compared", [])):
            status, said, *left = rank[case]
            assert status == "71" and "rank 0 and rank 1 differ at step 4" in said
            assert left == kept
        assert rank["never compared"] == ["step_000004", "step_000005"]
        assert rank["errors"] == [
            "run.batch_size 7 does not divide into 2 ranks x 1 accumulated parts; make it a "
            "multiple",
            "run.batch_size 1 is less than the 2 ranks that the launcher started; raise it or "
            "start fewer",
        ]


def test_accumulation_must_divide_the_batch() -> None:
    with pytest.raises(ConfigError, match=r"batch_size 10 .*accumulation 4 parts; make it a mul"):
        RunConfig(batch_size=10, accumulation=4)


# --- what a launcher wants ------------------------------------------------------------------------


def zero2() -> str:
    return str(Path(__file__).parents[3] / "configs/deepspeed/zero2.json")


CLASHES: list[tuple[dict[str, str], bool, str]] = [
    (
        {"ACCELERATE_MIXED_PRECISION": "fp16"},
        False,
        "precision to 'fp16', run.precision is 'fp32'; set one of them",
    ),
    ({"ACCELERATE_MIXED_PRECISION": "bf16"}, False, "to 'bf16', run.precision is 'fp32'"),
    (
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
        False,
        "4 accumulation .*accumulation is 2; set run.accumulation alone",
    ),
    ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, False, "'inductor', run.compile is False; set"),
    ({"ACCELERATE_USE_FSDP": "true"}, False, "sets FSDP, run.deepspeed is None; start without"),
    ({"ACCELERATE_USE_MEGATRON_LM": "true"}, False, "sets Megatron-LM, run.deepspeed is None"),
    (
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
        False,
        "DeepSpeed with ZeRO stage 3, run.deepspeed is None; set run.deepspeed",
    ),
    (
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
        True,
        "ZeRO stage 3, run.deepspeed is '.*zero2.json' with stage 2; set run.deepspeed alone",
    ),
    (
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "other.json"},
        True,
        "the file other.json, run.deepspeed is '.*zero2.json'; set run.deepspeed alone",
    ),
    (
        {"MASTER_ADDR": "localhost", "ACCELERATE_MIXED_PRECISION": "no"},
        False,
        "set MASTER_ADDR but started one process alone .*torchrun --standalone",
    ),
]


@pytest.mark.parametrize(("environment", "deepspeed", "message"), CLASHES)
def test_a_launcher_that_wants_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], deepspeed: bool, message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = RunConfig(accumulation=2, deepspeed=zero2() if deepspeed else None)
    with pytest.raises(ConfigError, match=message) as caught:
        Engine(run)
    assert "\n" not in str(caught.value)


def test_a_launcher_that_wants_the_same_is_fine_and_acts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agreeing = {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": zero2(),
        "ACCELERATE_USE_FSDP": "false",
    }
    for name, value in agreeing.items():
        monkeypatch.setenv(name, value)
    engine = Engine(RunConfig(accumulation=2, precision="bf16", deepspeed=zero2()))
    assert engine.world == 1
    assert engine.accelerator.gradient_accumulation_steps == 1
    assert engine.accelerator.mixed_precision == "no", "the autocast is the engine's own"
    assert "ACCELERATE_USE_DEEPSPEED" not in os.environ


def test_processes_that_do_not_join_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    Engine(RunConfig())  # Accelerate keeps its state: it will not look at the variable again.
    monkeypatch.setattr(engine, "join", lambda *place, **limits: None)
    given = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**given, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ConfigError, match="started 2 processes, but 1 joined; start with `torchrun"
    ):
        Engine(RunConfig())


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_one_process_computes_in_the_runs_precision(
    precision: Literal["fp32", "bf16", "fp16"], dtype: torch.dtype
) -> None:
    run, module = RunConfig(precision=precision), nn.Linear(3, 2)
    engine = Engine(run)
    wrapped = engine.wrap(module, Optimizer(module, OptimConfig(), 10, run=run))
    with engine.part(wrapped, last=True):
        outputs = wrapped(torch.ones(1, 3, device=engine.device))
    assert outputs.dtype == dtype
    engine.backward(outputs.sum())
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.float32
    weights = engine.whole_weights(module)
    assert weights is not None
    assert torch.equal(weights["weight"], module.weight)
    engine.unwrap(module)
    assert module.weight.grad is None
    assert engine.replicated
    assert not Engine(RunConfig(deepspeed=zero2().replace("zero2", "zero3"))).replicated
