"""The masked-language loss."""

import pytest
import torch
from torch.nn import functional as F

from wholegrain.objectives.masked_lm import masked_language_loss, masked_language_sum


def test_mean_over_masked_tokens() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 11), torch.randint(0, 11, (7,))
    torch.testing.assert_close(
        masked_language_loss(logits, labels), F.cross_entropy(logits, labels)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_terms_cost_value_and_gradient_not_a_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(700, 110).to(dtype), torch.randint(0, 110, (700,))
    one, other = (logits.clone().requires_grad_() for _ in range(2))
    total, number, terms, counted = masked_language_sum(one, labels)
    precise = torch.promote_types(dtype, torch.float32)
    expected = F.cross_entropy(other.to(precise), labels, reduction="sum")
    assert torch.equal(total, expected)
    assert (number, counted, terms.requires_grad) == (700, None, False)
    each = F.cross_entropy(logits.to(precise), labels, reduction="none")
    torch.testing.assert_close(terms, each)
    total.backward()
    expected.backward()
    assert torch.equal(one.grad, other.grad)


def test_nothing_masked_costs_nothing_and_still_reaches_the_head() -> None:
    """On several ranks every parameter must take part in the exchange of gradients."""
    weight = torch.randn(11, 4, requires_grad=True)
    loss = masked_language_loss(torch.zeros(0, 4) @ weight.T, torch.zeros(0, dtype=torch.long))
    assert loss.item() == 0
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() == 0


def test_half_precision_is_raised() -> None:
    loss = masked_language_loss(torch.randn(3, 5).bfloat16(), torch.tensor([0, 1, 2]))
    assert loss.dtype == torch.float32
