"""Hard negatives and the matching loss."""

import pytest
import torch
from torch.nn import functional as F

from wholegrain.objectives.matching import draw_negatives, matching_loss, negative_weights

TEMPERATURE = torch.tensor(0.3)


def unit(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 5, generator=generator), dim=1)


def test_weights_by_hand() -> None:
    similarity = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 5.0], [1.0, 1.0, 1.0]])
    blocked = torch.eye(3, dtype=torch.bool)
    weights = negative_weights(similarity, blocked)
    for row in range(3):
        for column in range(3):
            share = similarity[row, column].exp() / similarity[row].exp().sum() + 1e-5
            expected = 0.0 if row == column else share.item()
            assert weights[row, column].item() == pytest.approx(expected, rel=1e-5)


def test_a_draw_is_possible_where_the_softmax_underflows() -> None:
    similarity = torch.diag(torch.full((4,), 1000.0))
    weights = negative_weights(similarity, torch.eye(4, dtype=torch.bool))
    assert (weights.sum(1) > 0).all()


@pytest.mark.parametrize("keyed", [False, True])
def test_never_a_blocked_pair(keyed: bool) -> None:
    torch.manual_seed(0)
    image_key = torch.tensor([1, 1, 2, 3, 3, 3, 4])
    text_key = torch.tensor([1, 2, 3, 1, 4, 5, 6])
    keys = (image_key, text_key) if keyed else (None, None)
    for _ in range(200):
        drawn = draw_negatives(unit(7, 0), unit(7, 1), TEMPERATURE, *keys)
        assert drawn.valid.all()
        for row in range(7):
            for other in (drawn.image[row].item(), drawn.text[row].item()):
                assert other != row
                if keyed:
                    assert image_key[other] != image_key[row]
                    assert text_key[other] != text_key[row]


def test_draws_follow_the_weights() -> None:
    torch.manual_seed(0)
    image, text = unit(4, 0), unit(4, 1)
    rounds = 4000
    counts = torch.zeros(2, 4, 4)
    for _ in range(rounds):
        drawn = draw_negatives(image, text, TEMPERATURE)
        counts[0, range(4), drawn.image] += 1
        counts[1, range(4), drawn.text] += 1
    blocked = torch.eye(4, dtype=torch.bool)
    similarity = image @ text.T / TEMPERATURE
    for which, matrix in enumerate((similarity.T, similarity)):
        weights = negative_weights(matrix, blocked)
        expected = weights / weights.sum(1, keepdim=True)
        # Five standard deviations of a binomial share.
        bound = 5 * (expected * (1 - expected) / rounds).sqrt() + 1e-9
        assert ((counts[which] / rounds - expected).abs() <= bound).all()


@pytest.mark.parametrize("count", [1, 3])
def test_rows_without_negatives_are_marked(count: int) -> None:
    one = torch.ones(count, dtype=torch.long)
    drawn = draw_negatives(unit(count, 0), unit(count, 1), TEMPERATURE, one)
    assert not drawn.valid.any()
    assert drawn.image.tolist() == drawn.text.tolist() == list(range(count))


def test_one_row_without_negatives_among_others() -> None:
    """Concept 0 shares its image with 1 and its text with 2."""
    drawn = draw_negatives(
        unit(3, 0),
        unit(3, 1),
        TEMPERATURE,
        torch.tensor([1, 1, 2]),
        torch.tensor([5, 6, 5]),
    )
    assert drawn.valid.tolist() == [False, True, True]
    assert drawn.image.tolist() == [0, 2, 1]


def test_drawing_leaves_no_gradient() -> None:
    image = unit(3, 0).requires_grad_()
    assert not draw_negatives(image, unit(3, 1), TEMPERATURE).image.requires_grad


def test_loss_is_the_mean_of_three_kinds_of_pairs() -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, 2)
    labels = torch.tensor([1] * 3 + [0] * 6)
    torch.testing.assert_close(matching_loss(logits), F.cross_entropy(logits, labels))
    valid = torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(matching_loss(logits, valid), matching_loss(logits))


def test_rows_without_negatives_are_not_counted() -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, 2).requires_grad_()
    loss = matching_loss(logits, torch.tensor([True, False, True]))
    kept = torch.tensor([0, 1, 2, 3, 5, 6, 8])
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0])
    torch.testing.assert_close(loss, F.cross_entropy(logits[kept], labels))
    loss.backward()
    assert logits.grad[[4, 7]].abs().sum() == 0
    none = matching_loss(logits, torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(none, F.cross_entropy(logits[:3], labels[:3]))
