"""Hard negatives and the matching loss."""

import math

import pytest
import torch
from torch.nn import functional as F

from wholegrain.objectives.gather import GatheredConcepts
from wholegrain.objectives.matching import (
    draw_negatives,
    matching_loss,
    matching_sum,
    negative_weights,
)

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


@pytest.mark.parametrize("chunk", [None, 1])
def test_global_draws_follow_the_weights_of_all_ranks(chunk: int | None) -> None:
    """The second of two ranks has two concepts; the first three, and one row of padding."""
    torch.manual_seed(0)
    image, text = unit(8, 0), unit(8, 1)
    real = torch.tensor([0, 1, 2, 4, 5])
    everyone = GatheredConcepts(
        image.index_fill(0, torch.tensor([3, 6, 7]), 0),
        text.index_fill(0, torch.tensor([3, 6, 7]), 0),
        valid=torch.isin(torch.arange(8), real),
        image_key=torch.tensor([1, 2, 3, 0, 4, 1, 0, 0]),
        text_key=None,
        first=4,
        ranks=2,
    )
    rounds = 4000
    counts = torch.zeros(2, 2, 8)
    for _ in range(rounds):
        drawn = draw_negatives(
            image[4:6], text[4:6], TEMPERATURE, scope="global", everyone=everyone, chunk=chunk
        )
        assert drawn.valid.all()
        counts[0, range(2), drawn.image] += 1
        counts[1, range(2), drawn.text] += 1
    blocked = torch.tensor([[0, 0, 0, 1, 0], [1, 0, 0, 0, 1]]).bool()
    for which, (rows, columns) in enumerate(((text, image), (image, text))):
        weights = negative_weights(rows[4:6] @ columns[real].T / TEMPERATURE, blocked)
        expected = torch.zeros(2, 8)
        expected[:, real] = weights / weights.sum(1, keepdim=True)
        # Five standard deviations of a binomial share.
        bound = 5 * (expected * (1 - expected) / rounds).sqrt() + 1e-9
        assert ((counts[which] / rounds - expected).abs() <= bound).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_draw_evenly(bad: float) -> None:
    """A bad column leaves no row a softmax; a bad row only its own."""
    torch.manual_seed(0)
    similarity = torch.tensor([[9.0, 0.0, 0.0, 5.0], [bad] * 4, [0.0, 9.0, 0.0, 9.0]])
    weights = negative_weights(similarity, torch.eye(4, dtype=torch.bool)[:3])
    assert weights.isfinite().all()
    assert weights[1, [0, 2, 3]].unique().numel() == 1
    assert weights[1, 1] == 0
    image, text = unit(4, 0), unit(4, 1)
    image[2] = bad
    key = torch.tensor([1, 1, 2, 3])
    seen = set()
    for _ in range(200):
        drawn = draw_negatives(image, text, TEMPERATURE, key)
        assert drawn.valid.all()
        for row in range(4):
            assert key[drawn.image[row]] != key[row]
            assert key[drawn.text[row]] != key[row]
        seen.add(drawn.text[2].item())
    assert seen == {0, 1, 3}


def test_a_temperature_of_nothing_draws_evenly() -> None:
    torch.manual_seed(0)
    counts = torch.zeros(2, 3, 3)
    for _ in range(600):
        drawn = draw_negatives(unit(3, 0), unit(3, 1), torch.tensor(0.0))
        for which, each in enumerate((drawn.image, drawn.text)):
            counts[which, range(3), each] += 1
    others = counts[:, ~torch.eye(3, dtype=torch.bool)]
    assert others.sum() == counts.sum(), "a pair is its own negative"
    # Of 600 draws from two; five standard deviations are 61.
    assert others.min() >= 240
    assert others.max() <= 360


def test_draws_are_those_of_full_precision_under_autocast() -> None:
    image, text = unit(50, 0), unit(50, 1)
    torch.manual_seed(0)
    expected = draw_negatives(image, text, torch.tensor(0.01))
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        found = draw_negatives(image, text, torch.tensor(0.01))
    assert torch.equal(found.image, expected.image)
    assert torch.equal(found.text, expected.text)


def test_no_pairs_have_no_negatives() -> None:
    drawn = draw_negatives(unit(0, 0), unit(0, 1), TEMPERATURE)
    assert [len(each) for each in drawn] == [0, 0, 0]
    assert matching_loss(torch.zeros(0, 2), drawn.valid) == 0


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


def test_sum_and_count_of_what_counts() -> None:
    torch.manual_seed(0)
    logits, valid = torch.randn(9, 2).double(), torch.tensor([True, False, True])
    total, count, terms, counted = matching_sum(logits, valid)
    assert count == 7
    assert total.dtype == torch.float64
    torch.testing.assert_close(total / 7, matching_loss(logits, valid))
    labels = torch.tensor([1] * 3 + [0] * 6)
    torch.testing.assert_close(terms, F.cross_entropy(logits, labels, reduction="none"))
    assert counted.tolist() == [True] * 3 + [True, False, True] * 2
    torch.testing.assert_close(terms[counted].sum(), total)
    assert matching_sum(logits).number == 9
    assert matching_sum(logits).counted is None
    assert not matching_sum(logits.requires_grad_()).terms.requires_grad


def test_lost_logits_show() -> None:
    logits = torch.zeros(3, 2)
    logits[1] = torch.nan
    assert matching_loss(logits, torch.tensor([True])).isnan()
