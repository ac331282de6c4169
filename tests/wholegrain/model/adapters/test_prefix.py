"""Modules that are computed once, and are themselves again afterwards."""

import pytest
import torch
from torch import nn

from wholegrain.model.adapters.prefix import computed_once


def test_the_first_answer_is_every_answer() -> None:
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    first, second = torch.randn(2, 3), torch.randn(2, 3)
    with computed_once([one]):
        answer = one(first)
        assert one(second) is answer
        assert not torch.equal(two(first), two(second))
    assert torch.equal(one(second), nn.functional.linear(second, one.weight, one.bias))


def test_a_forward_of_its_own_comes_back() -> None:
    module = nn.Linear(3, 3)
    module.forward = lambda states: states + 1  # type: ignore[method-assign]
    states = torch.randn(2, 3)
    with pytest.raises(ZeroDivisionError), computed_once([module]):
        assert torch.equal(module(states), states + 1)
        raise ZeroDivisionError
    assert torch.equal(module(states * 2), states * 2 + 1)
