"""One process or several: the same training, and clashes that are named."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wholegrain.errors import ConfigError
from wholegrain.train.config import RunConfig
from wholegrain.train.engine import Engine

PROGRAM = Path(__file__).with_name("rank_program.py")


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """`rank_program`, whose runs are repeated here in one process."""
    spec = importlib.util.spec_from_file_location("train_rank_program", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in losses_file(out) if '"train"' in line]


def losses_file(out: Path) -> list[str]:
    return (out / "metrics.jsonl").read_text().splitlines()


@pytest.mark.ranks
def test_two_ranks_train_as_one(
    program: ModuleType, tmp_path: Path, launch: Callable[..., str]
) -> None:
    two = tmp_path / "two"
    two.mkdir()
    launch("--standalone", "--nproc-per-node", 2, PROGRAM, two, program="torchrun")
    ranks: list[dict[str, Any]] = [
        json.loads((two / f"rank-{rank}.json").read_text()) for rank in range(2)
    ]
    one = program.train(tmp_path / "one", 1)
    for case in ("plain", "parts"):
        for rank in ranks:
            assert rank[case]["weight"][0] == pytest.approx(one["weight"][0], rel=1e-5)
        assert losses(two / case) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
        assert len(losses_file(two / case)) == len(losses_file(tmp_path / "one"))
    # Each rank's norm saw its own samples; what is validated and kept is the first rank's.
    assert len(ranks[0]["norm"]["validated"]) == program.FEATURES
    assert ranks[0]["norm"] == ranks[1]["norm"]
    for number, rank in enumerate(ranks):
        assert rank["any"] == [True, False]
        assert rank["mean"] == {"a": 0.5, "b": 3.0}
        assert (rank["rank"], rank["world"], rank["main"]) == (number, 2, number == 0)
        assert "ConfigError: run.batch_size 7 does not divide into 2 ranks x 1" in rank["error"]


def test_accumulation_must_divide_the_batch() -> None:
    with pytest.raises(ConfigError, match=r"batch_size 10 .*accumulation 4 parts; make it a mul"):
        RunConfig(batch_size=10, accumulation=4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "precision to 'fp16', run.precision is 'fp32'"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "precision to 'bf16', run.precision is 'fp32'"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "4 accumulation .*accumulation is 2"),
    ],
)
def test_a_launcher_that_wants_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        Engine(RunConfig(accumulation=2))


def test_a_launcher_that_wants_the_same_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    assert Engine(RunConfig(accumulation=2)).world == 1


def test_processes_that_do_not_join_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    Engine(RunConfig())  # Accelerate keeps its state: it will not look at the variable again.
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError, match="started 2 processes, but 1 joined; start with `torchrun"
    ):
        Engine(RunConfig())
