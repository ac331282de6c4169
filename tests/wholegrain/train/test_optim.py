"""Groups, rates, and updates that wait for no host."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wholegrain.errors import CheckpointError
from wholegrain.train.config import OptimConfig, OutlierConfig, RunConfig
from wholegrain.train.optim import (
    Optimizer,
    OwnGroup,
    Update,
    learning_rate,
    parameter_groups,
)
from wholegrain.train.optimizer_state import Fragment, StoredState


class Named(nn.Module):
    """One parameter of each kind that the groups tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.cross_attention = nn.Linear(3, 3)
        self.match_head = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(5, 2))
        self.adapter = nn.Linear(3, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


OPTIM = OptimConfig(lr=1.0, new_lr_factor=2.0, adapter_lr_factor=5.0, weight_decay=0.1, warmup=4)


def grouped(optim: OptimConfig) -> dict[tuple[float, float], set[str]]:
    model = Named()
    groups = parameter_groups(model, optim, model.adapter.parameters())
    return {(g["factor"], g["weight_decay"]): set(g["names"]) for g in groups}


def test_groups_by_decay_and_rate() -> None:
    assert grouped(OPTIM) == {
        (1.0, 0.1): {"encoder.weight"},
        (1.0, 0.0): {
            "encoder.bias",
            "norm.weight",
            "norm.bias",
            "relative_position_bias_table",
        },
        (2.0, 0.1): {"cross_attention.weight", "match_head.0.weight"},
        (2.0, 0.0): {
            "cross_attention.bias",
            "match_head.0.bias",
            "match_head.1.weight",
            "match_head.1.bias",
            "temperature",
        },
        (5.0, 0.1): {"adapter.weight"},
        (5.0, 0.0): {"adapter.bias"},
    }


def test_xvlm_lets_temperature_and_head_norms_decay() -> None:
    import dataclasses

    decayed = grouped(dataclasses.replace(OPTIM, recipe="xvlm"))[2.0, 0.1]
    assert decayed - grouped(OPTIM)[2.0, 0.1] == {"temperature", "match_head.1.weight"}


def rates(steps: int, **changes: object) -> list[float]:
    optim = OptimConfig(**({"lr": 1.0, "warmup": 0.2} | changes))
    return [learning_rate(optim, step, steps) for step in range(steps)]


def test_schedules_by_hand() -> None:
    linear = rates(10)
    assert linear == pytest.approx([0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert rates(10, warmup=2) == linear
    cosine = rates(10, schedule="cosine")
    assert cosine[:3] == pytest.approx([0, 0.5, 1])
    assert cosine[6] == pytest.approx(0.5)
    assert cosine[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert rates(10, schedule="constant") == pytest.approx([0, 0.5, *[1] * 8])
    assert rates(4, warmup=0) == pytest.approx([1, 0.75, 0.5, 0.25])
    # A warm-up longer than the run never ends.
    assert rates(4, warmup=8) == pytest.approx([0, 1 / 8, 2 / 8, 3 / 8])


def test_every_group_follows_the_schedule() -> None:
    model = Named()
    optimizer = Optimizer(model, OPTIM, steps=12, adapters=model.adapter.parameters())
    assert optimizer.begin_step(2) == pytest.approx(0.5)
    found = {round(g["factor"]): g["lr"] for g in optimizer.adamw.param_groups}
    assert found == pytest.approx({1: 0.5, 2: 1.0, 5: 2.5})


def one_step(gradient: Tensor, **changes: object) -> tuple[Tensor, Tensor, Tensor]:
    """Weight after one AdamW step from ones with the gradient, and what `step` returned."""
    model = nn.Linear(len(gradient), 1, bias=False)
    nn.init.ones_(model.weight)
    settings = {"lr": 0.1, "warmup": 0, "weight_decay": 0.0, "schedule": "constant", **changes}
    optimizer = Optimizer(model, OptimConfig(**settings), steps=10)
    optimizer.begin_step(0)
    model.weight.grad = gradient[None].clone()
    update = optimizer.step()
    assert model.weight.grad is None
    return model.weight.detach()[0], update.norm, update.skipped


def test_an_update_by_hand() -> None:
    weight, norm, skipped = one_step(torch.tensor([3.0, -4.0]), clip_norm=1e9)
    assert norm.item() == 5.0
    assert skipped.item() == 0.0
    # At the first step the moments' corrections cancel: lr * sign(gradient).
    torch.testing.assert_close(weight, torch.tensor([0.9, 1.1]))
    decayed, _, _ = one_step(torch.tensor([3.0, -4.0]), weight_decay=0.5)
    torch.testing.assert_close(decayed, torch.tensor([0.85, 1.05]))


def test_the_moments_decay_as_the_betas_say() -> None:
    model, plain = nn.Linear(2, 1, bias=False), nn.Parameter(torch.ones(1, 2))
    nn.init.ones_(model.weight)
    settings = {"lr": 0.1, "betas": (0.5, 0.75), "weight_decay": 0.0}
    optim = OptimConfig(**settings, warmup=0, schedule="constant", clip_norm=1e9)
    optimizer, adamw = Optimizer(model, optim, steps=10), torch.optim.AdamW([plain], **settings)
    for step, gradient in enumerate(([3.0, -4.0], [1.0, 2.0], [-5.0, 0.5])):
        optimizer.begin_step(step)
        model.weight.grad, plain.grad = torch.tensor([gradient]), torch.tensor([gradient])
        optimizer.step()
        adamw.step()
    torch.testing.assert_close(model.weight, plain)


def test_clipping_scales_to_the_largest_norm() -> None:
    # A huge epsilon makes the first update proportional to the gradient: lr g / (|g| + eps).
    free, _, _ = one_step(torch.tensor([3.0, -4.0]), clip_norm=1e9, eps=1e3)
    clipped, norm, _ = one_step(torch.tensor([3.0, -4.0]), clip_norm=1.0, eps=1e3)
    assert norm.item() == 5.0
    torch.testing.assert_close(
        (1 - free) / (1 - clipped), torch.tensor([5.0, 5.0]), rtol=0.01, atol=0
    )


def test_xvlm_adds_epsilon_before_the_correction() -> None:
    gradient, eps = torch.tensor([1e-3]), 1e-4
    weight, _, _ = one_step(gradient, recipe="xvlm", eps=eps)
    first, second = 0.1 * gradient, 0.02 * gradient.square()
    expected = 1 - 0.1 * (math.sqrt(0.02) / 0.1) * first / (second.sqrt() + eps)
    torch.testing.assert_close(weight, expected, rtol=1e-5, atol=0)
    plain, _, _ = one_step(gradient, eps=eps)
    assert abs(plain - weight).item() > 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_gradients_that_are_not_finite_change_nothing(value: float) -> None:
    weight, _, skipped = one_step(torch.tensor([1.0, value]))
    assert skipped.item() == 1.0
    assert weight.tolist() == [1.0, 1.0]


def test_a_lost_step_does_not_count_for_the_moments() -> None:
    def after(gradients: list[list[float]]) -> Tensor:
        model = nn.Linear(2, 1, bias=False)
        nn.init.ones_(model.weight)
        optim = OptimConfig(lr=0.1, warmup=0, schedule="constant")
        optimizer = Optimizer(model, optim, steps=10)
        for step, gradient in enumerate(gradients):
            optimizer.begin_step(step)
            model.weight.grad = torch.tensor([gradient])
            optimizer.step()
        return model.weight.detach()

    good = [[1.0, -2.0], [0.5, 0.1]]
    assert torch.equal(after([good[0], [float("nan"), 0.0], good[1]]), after(good))


def test_statistics_of_a_lost_step_are_put_back() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    optimizer = Optimizer(model, OptimConfig(), steps=10)
    for step, scale in enumerate([1.0, float("nan"), float("nan"), 2.0]):
        optimizer.begin_step(step)
        before = model[0].running_mean.clone()
        model(scale * torch.tensor([[0.0, 1.0], [2.0, 5.0]])).sum().backward()
        optimizer.step()
        assert torch.equal(model[0].running_mean, before) == math.isnan(scale)
        assert torch.isfinite(model[0].running_var).all()
    assert model[0].num_batches_tracked == 2


# --- losses ---------------------------------------------------------------------------------------


def line(run: RunConfig, **settings: Any) -> tuple[nn.Linear, Optimizer]:
    """A line of ones, and its optimizer at a constant rate."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    optim = OptimConfig(lr=0.1, warmup=0, schedule="constant", weight_decay=0.0)
    return model, Optimizer(model, optim, steps=1000, run=run, **settings)


def update(model: nn.Linear, optimizer: Optimizer, factor: float = 1.0) -> Update:
    optimizer.begin_step(0)
    loss = factor * model(torch.tensor([[3.0, -4.0]])).sum()
    optimizer.scaled(loss).backward()
    return optimizer.step()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_has_no_finite_gradient(value: float) -> None:
    _, optimizer = line(RunConfig())
    weight = torch.ones(3, requires_grad=True)
    optimizer.scaled(weight.sum() + value).backward()  # whose own gradient is 1
    assert weight.grad is not None
    assert weight.grad.isnan().all()
    weight.grad = None
    optimizer.scaled(weight.sum()).backward()
    assert weight.grad.tolist() == [1.0, 1.0, 1.0]  # type: ignore[union-attr]


def test_the_loss_scale_cancels() -> None:
    plain, scaled = line(RunConfig()), line(RunConfig(precision="fp16"))
    weight = torch.ones(1, requires_grad=True)
    scaled[1].scaled(weight.sum()).backward()
    assert weight.grad == 2.0**16
    for factor in (1.0, 0.1, 5.0):
        norms = [float(update(*each, factor).norm) for each in (plain, scaled)]
        assert norms[1] == pytest.approx(norms[0]) == pytest.approx(5.0 * factor)
        torch.testing.assert_close(scaled[0].weight, plain[0].weight)


def test_updates_are_lost_to_the_scale_only_while_it_can_fall() -> None:
    model, optimizer = line(RunConfig(precision="fp16"))
    seen = [update(model, optimizer, math.nan) for _ in range(18)]
    assert [float(each.skipped) for each in seen] == [1.0] * 18
    assert [float(each.lost) for each in seen] == [0.0] * 16 + [1.0] * 2
    assert optimizer.rates()["loss_scale"] == 1.0
    without = line(RunConfig())
    assert float(update(*without, math.nan).lost) == 1.0


@pytest.mark.parametrize("skip", [False, True])
def test_an_outlier_is_flagged_and_left_out_only_where_the_run_says_so(skip: bool) -> None:
    model, optimizer = line(RunConfig(outliers=OutlierConfig(window=8, skip=skip)))
    for _ in range(8):
        assert update(model, optimizer).outlier == 0.0
    before = model.weight.detach().clone()
    found = update(model, optimizer, 100.0)
    assert (float(found.outlier), float(found.skipped)) == (1.0, 0.0)
    assert torch.equal(model.weight, before) == skip


def test_values_keep_within_their_limits() -> None:
    model = Named()
    limits = {"temperature": (0.1, 0.2), "encoder.bias": (-0.01, 0.01)}
    optimizer = Optimizer(model, OptimConfig(lr=0.1, warmup=0), 10, limits=limits)
    assert float(model.temperature.detach()) == pytest.approx(0.1)
    assert model.encoder.bias.abs().max() <= 0.01
    for _ in range(3):
        optimizer.begin_step(0)
        model.temperature.grad = torch.tensor(-1.0)
        model.encoder.bias.grad = torch.ones(3)
        optimizer.step()
    assert float(model.temperature.detach()) == pytest.approx(0.2)
    assert model.encoder.bias.tolist() == pytest.approx([-0.01] * 3)
    with pytest.raises(KeyError):
        Optimizer(model, OptimConfig(), 10, limits={"frozen.weight": (0.0, 1.0)})


# --- groups of their own --------------------------------------------------------------------------


class Paced(nn.Module):
    """A model, and a learnt number of its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(2, 1, bias=False)
        self.cross_attention = nn.Linear(2, 1, bias=False)
        self.rho = nn.Parameter(torch.tensor(1.0))
        for weight in (self.model.weight, self.cross_attention.weight):
            nn.init.ones_(weight)

    def own(self, lr: float = 0.5) -> OwnGroup:
        return OwnGroup("sigma", [self.rho], lr, clip_norm=2.0)

    def give(self, model: float, rho: float) -> None:
        """Gradients whose norms are 5 times `model`, and `rho`."""
        self.model.weight.grad = model * torch.tensor([[3.0, 0.0]])
        self.cross_attention.weight.grad = model * torch.tensor([[0.0, 4.0]])
        self.rho.grad = torch.tensor(rho)

    def values(self) -> list[float]:
        weights = self.model.weight, self.cross_attention.weight
        return [weights[0][0, 0].item(), weights[1][0, 1].item(), self.rho.item()]


def test_an_own_group_is_apart_and_does_not_decay() -> None:
    model = Named()
    # The rates and decays that other groups have too, and a matrix.
    held = [model.temperature, model.frozen.weight, model.cross_attention.weight]
    own = OwnGroup("sigma", held, lr=2.0, clip_norm=1.0)
    groups = parameter_groups(model, OPTIM, model.adapter.parameters(), [own])
    (found,) = [group for group in groups if group["own"] is own]
    assert found["names"] == ["temperature", "cross_attention.weight"]
    assert (found["factor"], found["weight_decay"]) == (2.0, 0.0)
    others = {name for group in groups if group["own"] is None for name in group["names"]}
    assert others == {n for names in grouped(OPTIM).values() for n in names} - set(found["names"])
    foreign = OwnGroup("sigma", [nn.Parameter(torch.ones(2))], lr=2.0, clip_norm=1.0)
    with pytest.raises(KeyError, match="own groups sigma"):
        Optimizer(model, OPTIM, 10, own=[foreign])


def test_an_own_rate_is_absolute_and_follows_the_schedule() -> None:
    for lr in (1.0, 1e-3):
        module = Paced()
        optim = OptimConfig(lr=lr, new_lr_factor=2.0, warmup=4)
        optimizer = Optimizer(module, optim, steps=12, own=[module.own(lr=5e-5)])
        for step, share in ((2, 0.5), (4, 1.0), (8, 0.5)):
            optimizer.begin_step(step)
            assert optimizer.rates() == pytest.approx(
                {
                    "learning_rate": share * lr,
                    "learning_rate/new": share * 2 * lr,
                    "learning_rate/sigma": share * 5e-5,
                }
            )
    # Of equal rates neither is taken for the other.
    module = Paced()
    module.cross_attention.requires_grad_(False)
    optim = OptimConfig(lr=1.0, new_lr_factor=2.0)
    optimizer = Optimizer(module, optim, steps=12, own=[module.own(lr=2.0)])
    assert optimizer.rates().keys() == {"learning_rate", "learning_rate/sigma"}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_own_group_and_the_model_clip_apart(precision: Any) -> None:
    def moved(model: float, rho: float, own: bool = True) -> tuple[list[float], float]:
        # A huge epsilon makes the first update proportional to the gradient: lr g / eps.
        settings: dict[str, Any] = {"lr": 1.0, "new_lr_factor": 1.0, "eps": 1e4, "warmup": 0}
        optim = OptimConfig(**settings, weight_decay=0.0, clip_norm=1.0, schedule="constant")
        module, run = Paced(), RunConfig(precision=precision)
        groups = [module.own()] if own else []
        optimizer = Optimizer(module, optim, 10, own=groups, run=run)
        optimizer.begin_step(0)
        scale = float(optimizer.scaled(torch.tensor(1.0)))
        assert scale == (65536.0 if precision == "fp16" else 1.0)
        module.give(model * scale, rho * scale)
        update = optimizer.step()
        assert (float(update.skipped), module.rho.grad) == (0.0, None)
        return [1e4 * (1 - value) for value in module.values()], float(update.norm)

    for model, rho, expected in (
        (0.1, 0.5, [0.3, 0.4, 0.25]),
        (0.1, 800.0, [0.3, 0.4, 1.0]),
        (90.0, 0.5, [0.6, 0.8, 0.25]),
        (90.0, 800.0, [0.6, 0.8, 1.0]),
    ):
        found, norm = moved(model, rho)
        assert found == pytest.approx(expected, rel=5e-3), (model, rho)
        assert norm == pytest.approx(5 * model)
    together, norm = moved(0.1, 800.0, own=False)
    assert max(together[:2]) < 0.01, "clipped together the one stops the other"
    assert norm == pytest.approx(800.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("spoilt", ["model", "rho"])
def test_one_gradient_that_is_not_finite_stops_all_groups(spoilt: str, value: float) -> None:
    module = Paced()
    optimizer = Optimizer(module, OptimConfig(warmup=0), 10, own=[module.own()])
    for factor, skipped in ((value, 1.0), (1.0, 0.0)):
        optimizer.begin_step(0)
        module.give(**{"model": 1.0, "rho": 1.0, spoilt: factor})
        assert float(optimizer.step().skipped) == skipped
        assert (module.values() == [1.0, 1.0, 1.0]) == bool(skipped)


def test_an_own_group_that_an_update_passes_by_stays() -> None:
    module = Paced()
    optimizer = Optimizer(module, OptimConfig(warmup=0), 10, own=[module.own()])
    optimizer.begin_step(0)
    module.give(1.0, 1.0)
    module.rho.grad = None
    assert float(optimizer.step().norm) == 5.0
    assert module.values()[2] == 1.0
    assert module.values()[0] < 1.0


def test_own_groups_are_saved_and_loaded_with_the_rest() -> None:
    optim = OptimConfig(lr=0.1, warmup=0, schedule="constant")
    module, again = Paced(), Paced()
    optimizer = Optimizer(module, optim, 10, own=[module.own()])
    other = Optimizer(again, optim, 10, own=[again.own()])

    def step(which: Paced, by: Optimizer, rho: float) -> None:
        by.begin_step(0)
        which.give(1.0, rho)
        by.step()

    for rho in (1.0, -0.3):
        step(module, optimizer, rho)
    again.load_state_dict(module.state_dict())
    other.load(Held(optimizer.fragments()))
    other.load_state(optimizer.state())
    for which, by in ((module, optimizer), (again, other)):
        step(which, by, 0.7)
    assert again.values() == module.values()


# --- what a checkpoint holds ----------------------------------------------------------------------


class Held(StoredState):
    """Fragments in memory."""

    def __init__(self, fragments: list[Fragment]) -> None:
        self.held = {fragment.name: fragment for fragment in fragments}

    def names(self) -> Iterable[str]:
        return self.held.keys()

    def require_fit(self, shapes: Mapping[str, Sequence[int]]) -> None:
        for name, fragment in self.held.items():
            assert fragment.shape == tuple(shapes[name])

    def read(self, name: str, start: int, count: int) -> tuple[float, dict[str, Tensor]]:
        fragment = self.held[name]
        part = slice(start, start + count)
        return fragment.step, {moment: t[part].clone() for moment, t in fragment.tensors.items()}


def test_fragments_are_of_what_has_had_an_update() -> None:
    model = Named()
    optimizer = Optimizer(model, OptimConfig(warmup=0), 10)
    assert optimizer.fragments() == []
    for _ in range(2):
        optimizer.begin_step(0)
        model.encoder.weight.grad = torch.ones(3, 3)
        model.temperature.grad = torch.tensor(1.0)
        optimizer.step()
    found = {fragment.name: fragment for fragment in optimizer.fragments()}
    assert found.keys() == {"encoder.weight", "temperature"}
    assert (found["encoder.weight"].start, found["encoder.weight"].shape) == (0, (3, 3))
    assert found["encoder.weight"].step == 2.0
    assert found["encoder.weight"].count == 9
    assert found["temperature"].shape == ()


def test_a_loaded_optimizer_goes_on_as_the_one_that_was_saved() -> None:
    run = RunConfig(precision="fp16", outliers=OutlierConfig(window=8))
    model, optimizer = line(run)
    for factor in (1.0, math.nan, 0.3):
        update(model, optimizer, factor)
    again, other = line(run)
    update(again, other, 7.0)  # what was there before does not matter
    again.load_state_dict(model.state_dict())
    other.load(Held(optimizer.fragments()))
    other.load_state(json.loads(json.dumps(optimizer.state())))
    assert other.updates == 3
    for factor in (0.5, 2.0):
        assert update(model, optimizer, factor)[:2] == update(again, other, factor)[:2]
        assert torch.equal(again.weight, model.weight)
    assert other.state() == optimizer.state()


def test_what_was_never_updated_is_loaded_as_new() -> None:
    model, optimizer = line(RunConfig())
    update(model, optimizer)
    optimizer.load(Held([]))
    assert optimizer.fragments() == []
    assert not optimizer.adamw.state


def test_a_state_that_is_none_is_refused() -> None:
    _, optimizer = line(RunConfig())
    for state in ({}, {"updates": "x", "loss_scale": None, "outliers": None}):
        with pytest.raises(CheckpointError, match="state of the optimizer cannot be read"):
            optimizer.load_state(state)
