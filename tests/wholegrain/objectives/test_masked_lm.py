"""The masked-language loss."""

import torch
from torch.nn import functional as F

from wholegrain.objectives.masked_lm import masked_language_loss


def test_mean_over_masked_tokens() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 11), torch.randint(0, 11, (7,))
    torch.testing.assert_close(
        masked_language_loss(logits, labels), F.cross_entropy(logits, labels)
    )


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
