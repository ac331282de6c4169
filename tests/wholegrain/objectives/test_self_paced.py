"""The self-paced loss: its sign, bounds and equilibrium, and the box losses that it weighs."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from wholegrain.config import from_dict, to_dict
from wholegrain.errors import ConfigError, WholegrainError
from wholegrain.objectives.box import box_losses
from wholegrain.objectives.self_paced import SelfPaced, SelfPacedConfig

LAMBDA = 0.75
MODES = ("detached", "literal")


def self_paced(**settings: Any) -> SelfPaced:
    """In fp64, of one term ``l1`` unless told otherwise."""
    module = SelfPaced(SelfPacedConfig(**{"terms": ("l1",), **settings}))
    return module.double()


def losses(count: int, seed: int = 0, most: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return most * torch.rand(count, generator=generator, dtype=torch.float64)


def printed(loss: Tensor, sigma: Tensor | float) -> Tensor:
    """The paper's formula, with nothing to bound it."""
    return (loss.square() / sigma**2).exp() * (loss - LAMBDA)


def slope_of_sigma(module: SelfPaced, loss: Tensor, term: str = "l1") -> Tensor:
    """Derivative by sigma, which the parameter's is a positive multiple of."""
    module({term: loss}).per_sample.sum().backward()
    rho = module.rho[term]
    assert rho.grad is not None
    found = rho.grad / torch.sigmoid(rho.detach())
    rho.grad = None
    return found


# --- values and derivatives -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_value_is_the_papers(mode: str) -> None:
    module = self_paced(mode=mode)
    loss = losses(20)
    torch.testing.assert_close(module({"l1": loss}).per_sample, printed(loss, 2.5))


@pytest.mark.parametrize("mode", MODES)
def test_a_large_sigma_leaves_the_plain_loss(mode: str) -> None:
    module = self_paced(terms=("l1", "giou"), mode=mode, sigma=1e6)
    assert float(module.sigma("l1").detach()) == pytest.approx(1e6)
    l1, giou = losses(20, 0, 4.0).requires_grad_(), losses(20, 1).requires_grad_()
    found = module({"l1": l1, "giou": giou}).per_sample
    torch.testing.assert_close(found, l1 + giou - 2 * LAMBDA, rtol=0, atol=1e-6)
    found.sum().backward()
    for term in (l1, giou):
        torch.testing.assert_close(term.grad, torch.ones_like(term), rtol=0, atol=1e-6)
    near = self_paced(terms=("l1", "giou"), mode=mode)({"l1": l1, "giou": giou}).per_sample
    assert (near - found).abs().max() > 0.1


@pytest.mark.parametrize("mode", MODES)
def test_a_right_answer_costs_minus_lambda_a_term(mode: str) -> None:
    module = self_paced(terms=("l1", "giou"), mode=mode)
    found = module({"l1": torch.zeros(3), "giou": torch.zeros(3)})
    assert found.per_sample.tolist() == [-1.5] * 3
    assert float(found.figures["d_max_l1"]) == float(found.figures["d_mean_giou"]) == 1.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sigma", [1.1, 2.5])
def test_hard_samples_raise_sigma_and_easy_ones_lower_it(mode: str, sigma: float) -> None:
    for loss in (0.05, 0.4, 0.74, 0.76, 1.2):
        values = torch.tensor([loss], dtype=torch.float64)
        slope = float(slope_of_sigma(self_paced(mode=mode, sigma=sigma), values))
        assert (slope < 0) == (loss > LAMBDA), loss
        expected = -2 * loss**2 / sigma**3 * math.exp((loss / sigma) ** 2) * (loss - LAMBDA)
        assert slope == pytest.approx(expected, rel=1e-5)
    assert slope_of_sigma(self_paced(mode=mode), torch.zeros(4, dtype=torch.float64)) == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_differences(mode: str) -> None:
    module = self_paced(mode=mode, terms=("l1", "giou"))
    seen = {"l1": losses(5, 2), "giou": losses(5, 3)}

    def total(l1: Tensor, giou: Tensor, rho_l1: Tensor, rho_giou: Tensor) -> Tensor:
        named = {"rho.l1": rho_l1, "rho.giou": rho_giou}
        terms = {"l1": l1, "giou": giou}
        loss: Tensor = torch.func.functional_call(module, named, (terms,)).per_sample
        if mode == "literal":
            return loss
        # What `detached` is the derivative of: difficulties of losses that stay as they were.
        frozen = torch.zeros_like(loss)
        for name, rho in (("l1", rho_l1), ("giou", rho_giou)):
            sigma = 1 + torch.nn.functional.softplus(rho)
            frozen = frozen + (seen[name] / sigma).square().exp() * (terms[name] - LAMBDA)
        return frozen

    rho = [module.rho[name].detach().clone().requires_grad_() for name in ("l1", "giou")]
    inputs = [seen["l1"].clone().requires_grad_(), seen["giou"].clone().requires_grad_(), *rho]
    assert torch.autograd.gradcheck(total, inputs)
    if mode == "literal":
        return
    named = {"rho.l1": rho[0], "rho.giou": rho[1]}
    terms = {"l1": inputs[0], "giou": inputs[1]}
    ours = torch.func.functional_call(module, named, (terms,)).per_sample.sum()
    found = torch.autograd.grad(ours, inputs)
    expected = torch.autograd.grad(total(*inputs).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def slopes(module: SelfPaced, loss: Tensor) -> Tensor:
    """Derivative by each loss."""
    loss = loss.clone().requires_grad_()
    (found,) = torch.autograd.grad(module({"l1": loss}).per_sample.sum(), loss)
    return found


def test_the_literal_loss_is_monotone_only_above_a_sigma() -> None:
    grid = torch.linspace(0, 4, 801, dtype=torch.float64)
    settings: dict[str, Any] = {"sigma_min": 0.53034, "max_exponent": 80.0}
    for sigma in (0.5304, 1.0, 2.5):
        literal = self_paced(mode="literal", sigma=sigma, **settings)
        assert (slopes(literal, grid) > 0).all(), sigma
        expected = grid.clone().requires_grad_()
        printed(expected, literal.sigma("l1").detach()).sum().backward()
        torch.testing.assert_close(slopes(literal, grid), expected.grad)
    # Which configurations refuse: the formula pushes losses between 0.25 and 0.5 up.
    loss = grid.clone().requires_grad_()
    printed(loss, 0.5).sum().backward()
    assert loss.grad is not None
    wrong = grid[loss.grad < 0]
    assert (wrong.min().item(), wrong.max().item()) == pytest.approx((0.255, 0.495))
    detached = self_paced(sigma=0.5, sigma_min=0.1, max_exponent=80.0)
    assert (slopes(detached, grid) > 0).all()


def test_the_detached_gradient_is_the_plain_one_times_the_difficulty() -> None:
    module = self_paced(terms=("l1", "giou"))
    generator = torch.Generator().manual_seed(0)
    predicted = torch.rand(9, 4, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.rand(9, 4, generator=generator, dtype=torch.float64)
    sums = (predicted - target).abs().sum(1), (predicted - target).square().sum(1)
    terms = dict(zip(("l1", "giou"), sums, strict=True))
    (found,) = torch.autograd.grad(module(terms).per_sample.sum(), predicted, retain_graph=True)
    expected = torch.zeros_like(found)
    for name, term in terms.items():
        difficulty = (term / module.sigma(name)).square().exp().detach()
        (plain,) = torch.autograd.grad(term.sum(), predicted, retain_graph=True)
        expected += difficulty[:, None] * plain
        assert difficulty.max() > 1.1
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_literal_mode_is_refused_where_it_is_not_monotone() -> None:
    with pytest.raises(ConfigError, match=r"sigma_min is 0.5303, .* 0.5304 or more"):
        SelfPacedConfig(mode="literal", sigma_min=0.5303)
    SelfPacedConfig(mode="literal", sigma_min=0.5304)
    SelfPacedConfig(mode="literal", sigma_min=0.1, threshold=0.1)
    SelfPacedConfig(mode="detached", sigma_min=0.1)


# --- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_does_not_overflow(mode: str) -> None:
    module = SelfPaced(SelfPacedConfig(terms=("l1", "giou"), mode=mode))
    with torch.no_grad():
        module.rho["l1"].fill_(-200.0)
    assert module.sigma("l1").item() == 1.0
    term = torch.full((4,), 4.0, dtype=torch.float16, requires_grad=True)
    assert term.detach().square().exp().isinf().all(), "there is something to overflow"
    with torch.autocast("cpu", torch.float16):
        terms = {"l1": term, "giou": term[:4].detach() / 4}
        found = module(terms)
    assert found.per_sample.dtype == torch.float32
    expected = math.exp(3) * 3.25 + math.exp(0.16) * 0.25
    assert found.per_sample.tolist() == pytest.approx([expected] * 4, rel=1e-6)
    assert found.figures["clamped_share_l1"] == 1.0
    assert found.figures["clamped_share_giou"] == 0.0
    found.per_sample.sum().backward()
    assert term.grad is not None
    assert term.grad.tolist() == pytest.approx([math.exp(3)] * 4, rel=1e-3)
    assert module.rho["l1"].grad == 0.0, "sigma does not feel what is at the ceiling"


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_has_a_lower_bound(mode: str) -> None:
    """60,000 steps of 5e-5 by the sign, which AdamW's are, on losses that are all easy."""
    module = self_paced(mode=mode, terms=("l1", "giou"))
    easy = torch.linspace(0, LAMBDA, 50, dtype=torch.float64)[:-1]
    lowest = -2 * LAMBDA * math.exp(3)
    for _ in range(600):
        found = module({"l1": easy, "giou": easy}).per_sample
        assert found.detach().min() >= lowest
        found.mean().backward()
        with torch.no_grad():
            for rho in module.rho.values():
                rho -= 100 * 5e-5 * rho.grad.sign()
                rho.grad = None
    sigma = module.sigma("l1").item()
    assert 1.0 <= sigma < 1.3
    # Sixteen times as far the floor holds as well; the printed formula falls without end.
    with torch.no_grad():
        module.rho["l1"].sub_(48.0)
    assert module.sigma("l1").item() >= 1.0
    assert module({"l1": easy, "giou": easy}).per_sample.detach().min() >= lowest
    assert printed(easy, 0.12).min() < 100 * lowest


def test_without_a_floor_sigma_collapses() -> None:
    """The same descent as above on the printed formula: what the floor is there for."""
    easy = torch.linspace(0, LAMBDA, 50, dtype=torch.float64)[:-1]
    sigma = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    for _ in range(476):
        (slope,) = torch.autograd.grad(printed(easy, sigma).mean(), sigma)
        with torch.no_grad():
            sigma -= 100 * 5e-5 * slope.sign()
    assert sigma.item() < 0.13
    assert printed(easy, sigma).mean() < -1e6


# --- where sigma settles --------------------------------------------------------------------------


def mixture(hard: float, count: int = 10_000) -> Tensor:
    """|N(.15, .12)|, and a share of U(.7, 1.6)."""
    generator = torch.Generator().manual_seed(5)
    easy = (0.15 + 0.12 * torch.randn(count, generator=generator, dtype=torch.float64)).abs()
    few = round(hard * count)
    easy[:few] = 0.7 + 0.9 * torch.rand(few, generator=generator, dtype=torch.float64)
    return easy


def balance(loss: Tensor, sigma: float) -> float:
    """Of which sigma's derivative is a negative multiple; 0 at its equilibrium."""
    return float((loss.square() * (loss / sigma).square().exp() * (loss - LAMBDA)).mean())


def settled(loss: Tensor, steps: int = 400) -> float:
    """Sigma after a descent on a sample that stays as it is."""
    module = self_paced(max_exponent=20.0)
    adam = torch.optim.Adam(module.parameters(), lr=0.03)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 0.03 * 0.5 ** (step // 100)
        adam.zero_grad()
        module({"l1": loss}).per_sample.mean().backward()
        adam.step()
    return module.sigma("l1").item()


@pytest.mark.parametrize("hard", [0.01, 0.02])
def test_sigma_settles_at_the_equilibrium(hard: float) -> None:
    loss = mixture(hard)
    assert (loss > LAMBDA).any()
    assert loss.pow(3).mean() / loss.square().mean() < LAMBDA
    low, high = 1.0, 100.0
    assert balance(loss, low) > 0 > balance(loss, high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if balance(loss, middle) > 0 else (low, middle)
    assert settled(loss) == pytest.approx(low, rel=0.01)
    assert abs(low - 2.5) > 0.3, "sigma does not start there"


def test_without_an_equilibrium_sigma_grows_or_falls_to_its_floor() -> None:
    many = mixture(0.3)
    assert many.pow(3).mean() / many.square().mean() > LAMBDA
    assert settled(many, 100) > 3.5
    assert settled(many, 200) > settled(many, 100)
    none = mixture(0.0).clamp(max=0.7)
    assert 1.0 <= settled(none) < 1.5


# --- as a part of training ------------------------------------------------------------------------


def test_nothing_is_paced_in_evaluation() -> None:
    module = self_paced(terms=("l1", "giou")).eval()
    terms = {"l1": losses(6, 0, 4.0), "giou": losses(6, 1)}
    found = module(terms)
    assert torch.equal(found.per_sample, terms["l1"] + terms["giou"])
    assert found.figures == {}
    assert not torch.equal(module.train()(terms).per_sample, found.per_sample)


def test_scales_share_a_sigma_and_are_summed() -> None:
    module = self_paced()
    by_scale = losses(12).view(4, 3)
    found = module({"l1": by_scale})
    each = [module({"l1": column}).per_sample for column in by_scale.unbind(1)]
    torch.testing.assert_close(found.per_sample, torch.stack(each).sum(0))
    assert found.per_sample.shape == (4,)
    assert set(dict(module.named_parameters())) == {"rho.l1"}


def test_weights_and_terms_that_are_not_paced() -> None:
    module = self_paced(terms=("l1",))
    terms = {"l1": losses(5, 0), "giou": losses(5, 1), "vote": losses(10, 2).view(5, 2)}
    paced = module({"l1": terms["l1"]}).per_sample
    plain = module(terms).per_sample
    torch.testing.assert_close(plain, paced + terms["giou"] + terms["vote"].sum(1))
    weighed = module(terms, {"l1": 5.0, "giou": 2.0, "vote": 0.5}).per_sample
    torch.testing.assert_close(weighed, 5 * paced + 2 * terms["giou"] + 0.5 * terms["vote"].sum(1))
    with pytest.raises(ConfigError, match=r"names 'l1', which the loss does not have; .* giou"):
        module({"giou": terms["giou"]})


def test_samples_are_weighed_before_the_mean() -> None:
    module = self_paced()
    loss = torch.tensor([0.1, 1.9], dtype=torch.float64)
    found = module({"l1": loss}).per_sample
    torch.testing.assert_close(found, printed(loss, 2.5))
    assert abs(found.mean() - printed(loss.mean(), 2.5)) > 0.1


def test_figures_say_how_samples_were_weighed() -> None:
    module = self_paced(terms=("l1", "giou"))
    terms = {"l1": losses(8, 0, 6.0), "giou": losses(8, 1)}
    figures = module(terms).figures
    names = ("sigma", "d_mean", "d_max", "clamped_share")
    assert set(figures) == {f"{name}_{term}" for name in names for term in terms}
    for name, term in terms.items():
        exponent = (term / 2.5).square()
        difficulty = exponent.clamp(max=3).exp()
        assert float(figures[f"sigma_{name}"]) == pytest.approx(2.5)
        assert float(figures[f"d_mean_{name}"]) == pytest.approx(float(difficulty.mean()))
        assert float(figures[f"d_max_{name}"]) == pytest.approx(float(difficulty.max()))
        share = float((exponent > 3).double().mean())
        assert float(figures[f"clamped_share_{name}"]) == pytest.approx(share)
    assert 0 < figures["clamped_share_l1"] < 1
    assert all(each.shape == () and not each.requires_grad for each in figures.values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_finite_is_passed_on(mode: str, value: float) -> None:
    loss = losses(4)
    loss[2] = value
    found = self_paced(mode=mode)({"l1": loss}).per_sample
    assert torch.isfinite(found).tolist() == [True, True, False, True]
    checked = self_paced(mode=mode, check=True)
    with pytest.raises(WholegrainError, match=rf"'l1' is {value} for sample 2 of 4 \(1 values"):
        checked({"l1": loss})
    assert torch.isfinite(checked({"l1": losses(4)}).per_sample).all()


def test_nothing_waits_for_the_device() -> None:
    """Tensors without values: whatever asks for one on the host raises."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        module = SelfPaced(SelfPacedConfig())
        term = torch.rand(5, requires_grad=True)
        found = module(
            {"l1": term, "giou": term.square(), "vote": term},
            dict.fromkeys(("l1", "giou", "vote"), 0.5),
        )
        found.per_sample.mean().backward()
        assert module.rho["l1"].grad is not None
        assert len(found.figures) == 8


def test_its_parameters_are_scalars_in_full_precision() -> None:
    module = SelfPaced(SelfPacedConfig())
    assert {name: (p.shape, p.dtype) for name, p in module.named_parameters()} == {
        "rho.l1": (torch.Size([]), torch.float32),
        "rho.giou": (torch.Size([]), torch.float32),
    }
    again = SelfPaced(SelfPacedConfig(sigma=2.0))
    again.load_state_dict(copy.deepcopy(module.state_dict()))
    assert again.sigma("giou").item() == pytest.approx(2.5, rel=1e-6)


def test_configurations_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="name each term once"):
        SelfPacedConfig(terms=("l1", "l1"))
    with pytest.raises(ConfigError, match="at least one"):
        SelfPacedConfig(terms=())
    with pytest.raises(ConfigError, match="start sigma above its floor"):
        SelfPacedConfig(sigma=1.0)
    with pytest.raises(ConfigError, match="'max_exponent'"):
        from_dict(SelfPacedConfig, {"max_exponent": 100.0})
    config = SelfPacedConfig(mode="literal", clip=0.5)
    assert from_dict(SelfPacedConfig, to_dict(config)) == config


# --- the box losses -------------------------------------------------------------------------------


def boxes(count: int, seed: int) -> Tensor:
    """Boxes (count, 4) cxcywh within the unit square, some of them tiny."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
    low, high = corners.unbind(1)
    return torch.cat([(low + high) / 2, high - low], dim=1)


def test_giou_lies_between_0_and_2_and_is_symmetric() -> None:
    one, other = boxes(500, 0), boxes(500, 1)
    losses = box_losses(one, other)
    assert losses.giou.min() >= 0.0
    assert losses.giou.max() <= 2.0
    assert (losses.giou > 1).any()
    assert (losses.giou < 1).any()
    torch.testing.assert_close(box_losses(other, one).giou, losses.giou, rtol=0, atol=1e-6)
    assert box_losses(one, one).giou.abs().max() < 1e-6


def test_disjoint_boxes_cost_by_their_distance() -> None:
    corner = torch.tensor([[0.1, 0.1, 0.2, 0.2]])
    opposite = torch.tensor([[0.9, 0.9, 0.2, 0.2]])
    # Union 0.08 of an enclosing 1: 1 - 0 + 0.92.
    assert box_losses(corner, opposite).giou.tolist() == pytest.approx([1.92], abs=1e-5)
    nearer = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    assert 1 < float(box_losses(corner, nearer).giou) < 1.92


def test_l1_is_the_sum_of_four_differences() -> None:
    found = box_losses(torch.tensor([[0.5, 0.4, 0.3, 0.2]]), torch.tensor([[0.1, 0.6, 0.2, 0.9]]))
    assert found.l1.tolist() == pytest.approx([0.4 + 0.2 + 0.1 + 0.7])
    extremes = box_losses(torch.zeros(1, 4), torch.ones(1, 4))
    assert extremes.l1.tolist() == [4.0]
