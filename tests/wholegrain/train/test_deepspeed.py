"""Every engine trains to the same losses and weights: one process, DDP, DeepSpeed's stages."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.wholegrain.train.engines_program import TEMPERATURE, Case, train
from tests.wholegrain.train.start_engines import (
    SHIPPED,
    Ranks,
    difference,
    start,
    whole_moments,
    zero,
)

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

STEPS = 20
FP32 = 1e-5
# Of each engine to plain data parallelism over as many ranks: two units in the last place of bf16
# (2^-8). Stages 2 and 3 add up the gradients of parts and ranks in another order. That moves some
# weights by an ulp of fp32, of which a few then round to the next number of bf16.
BF16 = 2**-7
ENGINES = ("plain", "zero0", "zero1", "zero2", "zero3")
PRETRAINING = [("fp32", 1), ("fp32", 2), ("bf16", 2)]


def files(folder: Path) -> dict[str, str | None]:
    """What `run.deepspeed` is for each engine; in stage 3 no parameter stays whole."""
    return {
        "plain": None,
        "zero0": zero(folder, 0),
        "zero1": SHIPPED[1],
        "zero2": SHIPPED[2],
        "zero3": zero(folder, 3, stage3_param_persistence_threshold=0),
    }


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """The real pretraining module, trained by each engine on two ranks."""
    folder = tmp_path_factory.mktemp("pretrained")
    cases = [
        Case(
            f"{engine} {precision} {accumulation}",
            model="local",
            deepspeed=file,
            precision=precision,
            accumulation=accumulation,
            steps=STEPS,
        )
        for precision, accumulation in PRETRAINING
        for engine, file in files(folder).items()
    ]
    for engine in ("plain", "zero3"):
        file = files(folder)[engine]
        cases += [Case(f"{engine} {m}", model=m, deepspeed=file, steps=3) for m in ("swin", "timm")]
    return start(2, cases, folder / "out")


def mean_losses(ranks: Ranks, case: str) -> list[float]:
    each = [rank[case]["losses"] for rank in ranks]
    return [sum(losses) / len(losses) for losses in zip(*each, strict=True)]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_engine_equals_one_process(pretrained: Ranks, accumulation: int) -> None:
    one = train(Case("one", model="local", accumulation=accumulation, steps=STEPS))
    low, high = TEMPERATURE["model.temperature"]
    for engine in ENGINES:
        case = f"{engine} fp32 {accumulation}"
        found = pretrained[0][case]
        assert mean_losses(pretrained, case) == pytest.approx(one["losses"], rel=FP32), case
        weights = found["end"]["weights"]
        assert difference(weights, one["end"]["weights"]) < FP32, case
        norms = [update[0] for update in found["updates"]]
        assert norms == pytest.approx([update[0] for update in one["updates"]], rel=FP32), case
        temperature = float(weights["model.temperature"])
        assert low - 1e-6 < temperature < high + 1e-6
        if accumulation == 1:  # it is at its limit, which the update itself would leave
            assert temperature == pytest.approx(high, abs=1e-6)
        counts = {name: step for name, (step, _) in moments(pretrained, case).items()}
        assert counts == {name: step for name, (step, _) in moments([{"x": one}], "x").items()}


def moments(ranks: Ranks, case: str) -> dict[str, tuple[float, torch.Tensor]]:
    return whole_moments([rank[case]["end"] for rank in ranks])


def test_every_engine_equals_plain_ranks_in_bf16(pretrained: Ranks) -> None:
    plain = pretrained[0]["plain bf16 2"]["end"]["weights"]
    exact = pretrained[0]["plain fp32 2"]["end"]["weights"]
    assert difference(plain, exact) > 1e-3, "the products are not in bf16"
    for engine in ENGINES[1:]:
        found = pretrained[0][f"{engine} bf16 2"]["end"]["weights"]
        assert difference(found, plain) < BF16, engine
        case = f"{engine} bf16 2"
        assert mean_losses(pretrained, case) == pytest.approx(
            mean_losses(pretrained, "plain bf16 2"), rel=BF16
        )


@pytest.mark.parametrize("encoder", ["swin", "timm"])
def test_stage_3_divides_every_encoder(pretrained: Ranks, encoder: str) -> None:
    """Its hooks sit on submodules: who calls which with what decides whether it works."""
    plain, found = (pretrained[0][f"{engine} {encoder}"] for engine in ("plain", "zero3"))
    assert difference(found["end"]["weights"], plain["end"]["weights"]) < FP32
    assert found["losses"] == pytest.approx(plain["losses"], rel=FP32)
    assert found["validated"] == pytest.approx(plain["validated"], rel=FP32)


def test_ranks_hold_the_same_weights_within_and_after(pretrained: Ranks) -> None:
    first, second = pretrained
    for case in first:
        weights = first[case]["end"]["weights"]
        assert second[case]["end"]["weights"] is None
        for rank in (first, second):
            for name, parameter in rank[case]["whole"].items():
                assert torch.equal(parameter, weights[name]), (case, name)
                assert torch.equal(rank[case]["unwrapped"][name], weights[name]), (case, name)
            for (name, begin), piece in rank[case]["end"]["masters"].items():
                expected = weights[name].flatten()[begin : begin + len(piece)]
                assert torch.equal(piece, expected), (case, name)


# --- what goes wrong within an update -----------------------------------------------------------

SPOILT = 3


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """A regression of which one rank's loss is not finite once, and a part is passed by twice."""
    folder = tmp_path_factory.mktemp("spoilt")
    cases = []
    for engine, file in files(folder).items():
        common: dict[str, Any] = {"deepspeed": file, "spoilt_step": SPOILT}
        cases += [
            Case(f"{engine} nan", spoilt_by=(1.0, math.nan), passed_by=(1, 4), **common),
            Case(f"{engine} inf", spoilt_by=(math.inf, 1.0), accumulation=2, **common),
            Case(f"{engine} fp16", spoilt_by=(1.0, math.nan), precision="fp16", steps=20, **common),
            Case(
                f"{engine} outlier",
                deepspeed=file,
                spoilt_step=8,
                spoilt_by=(1e4, 1e4),
                steps=10,
                skip_outliers=True,
            ),
        ]
    return start(2, cases, folder / "out")


def without_trace(found: Mapping[str, Any]) -> bool:
    before, after = found["before"], found["after"]
    kept = before["moments"].keys() == after["moments"].keys()
    for key, (step, tensors) in before["moments"].items():
        kept &= after["moments"][key][0] == step
        kept &= all(torch.equal(after["moments"][key][1][name], t) for name, t in tensors.items())
    weights = after["weights"] or {}
    return kept and all(torch.equal(weights[n], w) for n, w in (before["weights"] or {}).items())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_one_ranks_loss_makes_every_rank_skip(spoilt: Ranks, engine: str, value: str) -> None:
    for rank in spoilt:
        found = rank[f"{engine} {value}"]
        assert [update[1] for update in found["updates"]] == [0, 0, 0, 1, 0, 0]
        assert [update[3] for update in found["updates"]] == [0, 0, 0, 1, 0, 0]
        assert without_trace(found)
    plain = spoilt[0][f"plain {value}"]["end"]["weights"]
    assert difference(spoilt[0][f"{engine} {value}"]["end"]["weights"], plain) < FP32


@pytest.mark.parametrize("engine", ENGINES)
def test_what_an_update_passes_by_is_left_alone(spoilt: Ranks, engine: str) -> None:
    counts = {name: step for name, (step, _) in moments(spoilt, f"{engine} nan").items()}
    # Of six updates one is skipped, and two pass by the extra part.
    assert counts == {
        "hidden.weight": 5.0,
        "hidden.bias": 5.0,
        "line.weight": 5.0,
        "line.bias": 5.0,
        "scale": 5.0,
        "extra.weight": 3.0,
        "extra.bias": 3.0,
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_the_loss_scale_is_found_and_is_no_loss(spoilt: Ranks, engine: str) -> None:
    found = spoilt[0][f"{engine} fp16"]
    skipped = [update[1] for update in found["updates"]]
    assert skipped[0] == 1.0, "2^16 is too much for these gradients"
    assert skipped[-1] == 0.0
    assert sum(update[3] for update in found["updates"]) == 0.0
    assert found["state"]["loss_scale"]["scale"] == 2.0 ** (16 - sum(skipped))
    plain = spoilt[0]["plain fp16"]
    assert skipped == [update[1] for update in plain["updates"]]
    assert difference(found["end"]["weights"], plain["end"]["weights"]) < 1e-3


@pytest.mark.parametrize("engine", ENGINES)
def test_an_outlier_is_left_out_where_the_run_says_so(spoilt: Ranks, engine: str) -> None:
    found = spoilt[0][f"{engine} outlier"]
    assert [update[2] for update in found["updates"]] == [0.0] * 8 + [1.0, 0.0]
    assert not any(update[1] for update in found["updates"])
    assert without_trace(found)
