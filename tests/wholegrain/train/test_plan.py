"""A plan's bytes are those that a hand counts, and those that a real step shows."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from wholegrain.errors import ConfigError
from wholegrain.train.config import RunConfig
from wholegrain.train.network import Collective
from wholegrain.train.plan import (
    FarNegatives,
    Gather,
    Memory,
    Plan,
    PlannedRun,
    Zero,
    activation_bytes,
    check_world,
    make_plan,
    plan_lines,
    plan_of,
    weight_traffic,
)
from wholegrain.train.step_memory import StepMemory

MILLION = 10**6
WORK = PlannedRun(MILLION, MILLION, steps=10, batch_size=64, world=8)
SMALL = Zero(stage=1, bucket=100_000, prefetch=50_000)


def named(plan: Plan) -> dict[str, Collective]:
    return {each.name: each for each in plan.traffic}


def test_memory_by_stage_by_hand() -> None:
    found = make_plan(WORK, SMALL, activations=7).memory
    m = MILLION
    # 4 bytes a weight and a gradient, 8 of moments; buckets of 0.1 M elements, 0.1 M fetched.
    assert found == (
        Memory(0, 4 * m, 4 * m, 0, 8 * m, 0, 0, 7),
        Memory(1, 4 * m + m // 2, 4 * m, 400_000, m, 0, 0, 7),
        Memory(2, 4 * m + m // 2, m // 2, 400_000, m, 0, 0, 7),
        Memory(3, m // 2, m // 2, 800_000, m, 0, 0, 7),
    )
    assert found[0].states == 16 * m and found[0].total == 16 * m + 7


def test_one_rank_shares_nothing() -> None:
    plan = make_plan(PlannedRun(MILLION, MILLION, 10, 64, world=1), gather=Gather(50, 128))
    assert plan.memory[0].states == 16 * MILLION
    assert plan.memory[0].gathered == 0 and plan.traffic == () and plan.sent() == 0
    shown = plan_lines(plan)
    assert "nothing: one rank" in shown and "1 rank x 1 part x 64 images" in shown
    assert "stage 0" in shown and "stage 1" not in shown


def test_frozen_weights_have_no_gradient_and_no_moments() -> None:
    work = PlannedRun(MILLION, MILLION // 4, 10, 64, world=4)
    plain = make_plan(work).memory[0]
    assert (plain.weights, plain.gradients, plain.optimizer) == (4 * MILLION, MILLION, 2 * MILLION)
    assert make_plan(work, Zero(3)).memory[3].weights == MILLION
    assert make_plan(work).checkpoint == 4 * MILLION + 2 * MILLION


def test_autocast_keeps_copies_and_overlap_a_second_bucket() -> None:
    half = PlannedRun(MILLION, MILLION, 10, 64, world=8, precision="bf16")
    assert [each.copies for each in make_plan(half, SMALL).memory] == [2 * MILLION] * 3 + [200_000]
    overlapping = Zero(stage=1, bucket=100_000, overlaps=True)
    assert make_plan(WORK, overlapping).memory[1].buckets == 800_000


def test_the_stages_that_fit() -> None:
    work = PlannedRun(3 * 10**9, 3 * 10**9, 10, 64, world=64)
    plan = make_plan(work, Zero(1, bucket=50 * MILLION), activations=10 * 2**30)
    # 48, 25, 12.8 and 1.4 GB of states; 11 GB of activations.
    assert plan.fitting(80 * 2**30) == [0, 1, 2, 3]
    assert plan.fitting(40 * 2**30) == [1, 2, 3]
    assert plan.fitting(16 * 2**30) == [3]
    assert plan.fitting(2**30) == []


def test_gradients_by_stage_by_hand() -> None:
    sent = {}
    for stage in (0, 1, 2, 3):
        zero = Zero(stage, bucket=100_000, prefetch=100_000)
        sent[stage] = sum(each.sent(8) for each in weight_traffic(WORK, zero))
    share = 7 / 8 * 4 * MILLION
    assert sent[0] == pytest.approx(2 * share)
    assert sent[1] == sent[2] == pytest.approx(3 * share)  # all sums to all, then weights
    assert sent[3] == pytest.approx(3 * share)  # weights twice, sums once
    scattered = weight_traffic(WORK, Zero(1, bucket=100_000, scatters=True))
    assert sum(each.sent(8) for each in scattered) == pytest.approx(2 * share)


def test_parts_of_a_batch_cost_stages_2_and_3_exchanges() -> None:
    parts = PlannedRun(MILLION, MILLION, 10, 64, world=8, accumulation=4)
    for stage, factor in ((0, 1.0), (1, 1.0), (2, (4 * 2 + 1) / 3), (3, 4.0)):
        once = sum(each.sent(8) for each in weight_traffic(WORK, Zero(stage)))
        often = sum(each.sent(8) for each in weight_traffic(parts, Zero(stage)))
        assert often == pytest.approx(factor * once), stage


def test_updates_before_steps_cost_exchanges_of_their_own() -> None:
    more = PlannedRun(MILLION, MILLION, 10, 64, world=8, updates=1.5)
    gather = Gather(10, 16)
    plain, often = make_plan(WORK, gather=gather), make_plan(more, gather=gather)
    assert named(often)["gradients"].sent(8) == 1.5 * named(plain)["gradients"].sent(8)
    assert named(often)["vectors"].sent(8) == 1.5 * named(plain)["vectors"].sent(8)


def test_gathered_rows_by_hand() -> None:
    found = named(make_plan(WORK, gather=Gather(concepts=10, embed_dim=16)))
    rows = 8 * 10
    assert found["vectors"].size == rows * 2 * 16 * 4
    assert found["gradients of vectors"] == Collective(
        "gradients of vectors", "reduce_scatter", rows * 2 * 16 * 4
    )
    assert found["keys"].size == rows * 3 * 8
    gloo = named(make_plan(WORK, gather=Gather(10, 16, scatters=False)))
    assert gloo["gradients of vectors"].sent(8) == 2 * found["gradients of vectors"].sent(8)


def test_far_negatives_grow_with_the_ranks() -> None:
    far = FarNegatives(images=8, tokens=30, text_width=32, patches=49, patch_width=64)
    found = named(make_plan(WORK, gather=Gather(10, 16, far=far)))
    assert found["far texts"].size == 8 * 10 * 30 * 32 * 4
    assert found["far patches"].size == 8 * 8 * 49 * 64 * 4
    assert found["far masks"].size == 8 * 10 * 49
    gathered = [Gather(10, 16, far=far).memory(ranks) for ranks in (8, 16)]
    assert gathered[1] == 2 * gathered[0] == 16 * 8 * 49 * 64 * 4
    local = FarNegatives(8, 30, 32, 49, 64, own_patches=True)
    assert named(make_plan(WORK, gather=Gather(10, 16, far=local)))["far patches"].size == (
        8 * (8 + 10) * 49 * 64 * 4
    )


def test_chunks_bound_the_similarities() -> None:
    whole, part = Gather(32, 256), Gather(32, 256, chunk=8)
    assert whole.memory(64) - part.memory(64) == 24 * 64 * 32 * 13


def test_gathered_collectives_are_those_that_the_loss_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from wholegrain.objectives import gather as module

    seen: list[tuple[str, int]] = []

    def all_gather(rows: torch.Tensor) -> torch.Tensor:
        seen.append(("all_gather", 4 * rows.numel() * rows.element_size()))
        return torch.cat([rows] * 4)

    def own_sum(gradient: torch.Tensor) -> torch.Tensor:
        seen.append(("reduce_scatter", gradient.numel() * gradient.element_size()))
        return gradient.chunk(4)[0]

    monkeypatch.setattr(module, "world", lambda: (0, 4))
    monkeypatch.setattr(module, "_all_gather", all_gather)
    monkeypatch.setattr(module, "_own_sum", own_sum)
    image, text = (torch.randn(5, 16, requires_grad=True) for _ in range(2))
    keys = torch.arange(5)
    everyone = module.gather_concepts(image, text, keys, keys, capacity=7)
    (everyone.image.sum() + everyone.text.sum()).backward()
    expected = Gather(7, 16).collectives(4, parts=1)[:-2]  # but counts and figures
    assert sorted(seen) == sorted((each.kind, int(each.size)) for each in expected)


def test_a_world_that_cannot_share_the_batch_names_those_that_can() -> None:
    with pytest.raises(ConfigError, match=r"run.batch_size 1024 .* 96 ranks .* 64 or 128 ranks$"):
        check_world({"run.batch_size": 1024}, 1, 96)
    with pytest.raises(ConfigError, match=r"nearest that work: 1024 ranks$"):
        check_world({"run.batch_size": 1024}, 1, 4096)
    # 3072 images would do, 5376 concepts do not.
    counts = {"run.batch_size": 3072, "data.max_concepts": 5376}
    with pytest.raises(ConfigError, match=r"data.max_concepts 5376 .* 768 ranks$"):
        check_world(counts, 1, 1024)
    with pytest.raises(ConfigError, match=r"4 accumulated parts; nearest that work: 8 or 16 ranks"):
        check_world({"run.batch_size": 64}, 4, 12)
    with pytest.raises(ConfigError, match=r"multiple of run.accumulation"):
        check_world({"run.batch_size": 64, "data.max_concepts": 63}, 4, 2)
    with pytest.raises(ConfigError, match="does not exist"):
        check_world({"run.batch_size": 64}, 1, 0)
    for world in (1, 2, 768):
        check_world(counts, 1, world)
    with pytest.raises(ConfigError, match=r"run\.batch_size 64"):
        make_plan(PlannedRun(10, 10, 1, 64, world=7))


def test_deepspeed_s_settings_are_read_with_its_defaults() -> None:
    assert Zero.of(None) == Zero()
    assert Zero.of({"zero_optimization": {"stage": 1}}) == Zero(1, overlaps=False)
    assert Zero.of({"zero_optimization": {"stage": 3}}) == Zero(3, overlaps=True)
    given = {
        "stage": 2,
        "reduce_bucket_size": 5e7,
        "overlap_comm": True,
        "use_multi_rank_bucket_allreduce": False,
    }
    assert Zero.of({"zero_optimization": given}) == Zero(2, 50_000_000, 50_000_000, True, True)
    half = Zero.of({"zero_optimization": {"stage": 1}, "communication_data_type": "bf16"})
    gradients, weights = weight_traffic(WORK, half)
    assert gradients.sent(8) == weights.sent(8)  # twice half as many bytes


def test_the_shipped_settings_of_deepspeed_can_be_planned(repository: Path) -> None:
    files = sorted((repository / "configs" / "deepspeed").glob("*.json"))
    stages = [Zero.of(json.loads(path.read_text())).stage for path in files]
    assert stages == [1, 2, 3]


def test_checkpoint_by_rank() -> None:
    assert make_plan(WORK).checkpoint == make_plan(WORK).checkpoint_share == 12 * MILLION
    sharded = make_plan(WORK, SMALL)
    assert sharded.checkpoint == 12 * MILLION
    assert sharded.checkpoint_share == 4 * MILLION + MILLION  # weights, and an eighth of moments


def test_the_lines_say_what_matters() -> None:
    work = PlannedRun(3 * 10**9, 3 * 10**9, 1000, 1024, world=64)
    text = plan_lines(
        make_plan(work, Zero(1), Gather(32, 256), activations=2**30), device=40 * 2**30
    )
    assert "64 ranks x 1 part x 16 images = 1,024 images a step; 1,000 steps" in text
    lines = {line.split()[1]: line for line in text.splitlines() if "stage" in line.split()[:1]}
    assert "does not fit 40 GiB" in lines["0"] and "fits 40 GiB  <- this run" in lines["1"]
    assert "gradients 23.62 GB in 6 calls" in text and "ms a step" in text
    unknown = plan_lines(make_plan(work, Zero(1)))
    assert "more than" not in unknown and "without activations" in unknown


def test_a_module_is_planned_as_it_is() -> None:
    module = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 10))
    module[1].requires_grad_(False)
    run = RunConfig(steps=5, batch_size=32, accumulation=2, precision="bf16")
    plan = plan_of(module, run, 4, growth=10**6)
    assert (plan.work.parameters, plan.work.trained) == (10_100 + 1_010, 10_100)
    assert plan.work.images == 4
    assert plan.memory[0].activations == 10**6 - 8 * 10_100 - 2 * 11_110
    assert activation_bytes(5, plan.work, Zero()) == 0


def test_activations_are_what_no_state_explains() -> None:
    m = MILLION
    assert activation_bytes(9 * m, WORK, Zero()) == m  # but 8 bytes of moments
    # A share of weights and moments, 0.4 MB of buckets.
    assert activation_bytes(9 * m, WORK, SMALL) == 9 * m - m // 2 - m - 400_000
    # Stage 3 gives back seven eighths of the weights that were there before.
    assert activation_bytes(0, WORK, Zero(3, 100_000, 50_000)) == 7 * m // 2 - m - 800_000
    line, size = nn.Linear(1000, 999), 999_999
    planned = plan_of(line, RunConfig(batch_size=8), 8, growth=10 * size, here=2)
    assert planned.memory[0].activations == 2 * size


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is Linux's to tell")
def test_a_real_step_holds_what_the_plan_says() -> None:
    """A model whose states are far larger than what else a process takes."""
    held = [_held_by_steps(size) for size in (10, 3000)]  # the first takes what torch loads late
    if held[1] is None:
        pytest.skip("this system lets no process reset its high-water mark")
    numbers = 2 * 3000 * 3001
    planned = make_plan(PlannedRun(numbers, numbers, 1, 4, world=1)).memory[0]
    # The weights were there before.
    assert held[1] == pytest.approx(planned.states - planned.weights, rel=0.15)


def _held_by_steps(size: int) -> int | None:
    module = nn.Sequential(nn.Linear(size, size), nn.Linear(size, size))
    memory = StepMemory(torch.device("cpu"))
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    for _ in range(2):
        module(torch.zeros(4, size)).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return memory.growth()
