"""Selection: which child is which, and gates that learn while they are shut."""

import pytest
import torch
from torch import Tensor

from wholegrain.model.grounding.scan_select import (
    Selector,
    logistic_noise,
    of_children,
    of_parents,
    soft_gate,
    straight_through,
    training_gates,
)

SIDE = 3


def test_a_parent_lights_exactly_its_four_children() -> None:
    for row in range(SIDE):
        for column in range(SIDE):
            parents = torch.zeros(1, SIDE * SIDE)
            parents[0, SIDE * row + column] = 1
            grid = of_parents(parents, SIDE).view(2 * SIDE, 2 * SIDE)
            lit = {(2 * row + a, 2 * column + b) for a in (0, 1) for b in (0, 1)}
            assert {tuple(place) for place in grid.nonzero().tolist()} == lit


def test_a_childs_value_is_its_own() -> None:
    """Child (2i + a, 2j + b) reads logit 2a + b of parent (i, j)."""
    values = torch.arange(2 * SIDE * SIDE * 4).view(2, SIDE * SIDE, 4)
    grid = of_children(values, SIDE).view(2, 2 * SIDE, 2 * SIDE)
    for text in range(2):
        for y in range(2 * SIDE):
            for x in range(2 * SIDE):
                parent, child = SIDE * (y // 2) + x // 2, 2 * (y % 2) + x % 2
                assert grid[text, y, x] == values[text, parent, child]


@pytest.mark.parametrize("noisy", [False, True])
def test_gates_are_exact_and_learn_as_soft_ones(noisy: bool) -> None:
    """dLoss/dlogit = sigma'(logit) <g, e - c>, with g the gradient of what stands in the place."""
    torch.manual_seed(0)
    logits = torch.randn(2, 7, dtype=torch.float64).requires_grad_()
    noise = logistic_noise(logits.detach()) if noisy else None
    embedded, constant = torch.randn(2, 7, 5).double(), torch.randn(5).double()
    gates = straight_through(logits, 0.7, noise)
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    placed = gates[..., None] * embedded + (1 - gates[..., None]) * constant
    placed.retain_grad()
    (placed.sin() * torch.arange(5)).sum().backward()
    assert placed.grad is not None
    moved = (logits if noise is None else logits + noise).detach() / 0.7
    slope = moved.sigmoid() * (1 - moved.sigmoid()) / 0.7
    expected = slope * (placed.grad * (embedded - constant)).sum(-1)
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-12)


def test_the_gradient_is_that_of_the_soft_surrogate() -> None:
    """For a loss linear in the gates; the surrogate's own is checked by differences."""
    torch.manual_seed(1)
    logits = torch.randn(3, 4, dtype=torch.float64).requires_grad_()
    weight = torch.randn(3, 4).double()

    def surrogate(given: Tensor) -> Tensor:
        return (soft_gate(given, 1.3) * weight).sum()

    assert torch.autograd.gradcheck(surrogate, (logits,))
    (expected,) = torch.autograd.grad(surrogate(logits), logits)
    (found,) = torch.autograd.grad((straight_through(logits, 1.3) * weight).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_gates_stay_exact_in_single_precision() -> None:
    """A gate of 1 + s - s need not be 1."""
    logits = torch.linspace(-9, 9, 4001)
    assert set(straight_through(logits, 1.0).unique().tolist()) == {0.0, 1.0}


def test_drawn_gates_are_open_with_their_probability() -> None:
    torch.manual_seed(2)
    logits = torch.tensor([-1.0, 0.0, 3.0]).expand(40_000, 3)
    shares = training_gates(logits, temperature=0.5, noise=True, mix=False).mean(dim=0)
    torch.testing.assert_close(shares, logits[0].sigmoid(), rtol=0, atol=0.01)


def test_without_noise_a_threshold_decides() -> None:
    logits = torch.tensor([[-0.01, 0.0, 0.01]])
    gates = training_gates(logits, temperature=2.0, noise=False, mix=False)
    assert gates.tolist() == [[0.0, 1.0, 1.0]]


def test_half_of_a_mix_is_soft() -> None:
    torch.manual_seed(3)
    logits = torch.full((4000, 1), 1.0)
    gates = training_gates(logits, temperature=1.0, noise=False, mix=True)
    soft = gates != 1
    assert soft.float().mean().item() == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(gates[soft], logits[soft].sigmoid())


def test_the_selector_starts_with_almost_all_open() -> None:
    torch.manual_seed(4)
    selector = Selector(width=768, hidden=192, bias=3.0)
    assert sum(parameter.numel() for parameter in selector.parameters()) == 148_420
    logits = selector(50 * torch.randn(8, 10, 768))
    assert logits.shape == (8, 10, 4)
    assert logits.sigmoid().mean().item() == pytest.approx(0.95, abs=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert selector(torch.randn(1, 768)).dtype == torch.float32
