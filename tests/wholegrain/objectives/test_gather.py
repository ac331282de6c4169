"""Rows and means over ranks, as far as one process can tell; the rest is in `test_ranks`."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from wholegrain.objectives import gather
from wholegrain.objectives.contrastive import contrastive_loss
from wholegrain.objectives.gather import (
    GatheredConcepts,
    fetch_rows,
    gather_concepts,
    gather_rows,
    gathered_index,
    mean_over_ranks,
    world,
)
from wholegrain.objectives.matching import draw_negatives, matching_loss


def test_one_process_gathers_nothing() -> None:
    rows = torch.randn(3, 2)
    assert world() == (0, 1)
    assert gather_rows(rows, 8) is rows
    index = torch.tensor([2, 0, 0, 1])
    assert gathered_index(index, 8) is not None
    assert torch.equal(gathered_index(index, 8), index)
    found = fetch_rows([rows, rows > 0], index, 8)
    assert torch.equal(found[0], rows[index])
    assert torch.equal(found[1], rows[index] > 0)


def test_half_precision_concepts_are_raised() -> None:
    concepts = gather_concepts(torch.randn(3, 2).bfloat16(), torch.randn(3, 2).bfloat16())
    assert concepts.image.dtype == concepts.text.dtype == torch.float32
    assert concepts.total() == 3


def test_more_rows_than_the_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "world", lambda: (0, 2))
    for call in (
        lambda: gather_rows(torch.zeros(4, 2), 3),
        lambda: fetch_rows([torch.zeros(4, 2)], torch.zeros(1).long(), 3),
    ):
        with pytest.raises(ValueError, match="4 rows exceed the capacity of 3"):
            call()


def test_who_is_blocked() -> None:
    """Two ranks of two rows each, the last of which is padding."""
    vectors = torch.zeros(4, 1)
    concepts = GatheredConcepts(
        vectors,
        vectors,
        valid=torch.tensor([True, True, True, False]),
        image_key=torch.tensor([5, 6, 5, 0]),
        text_key=torch.tensor([7, 8, 9, 0]),
        first=2,
        ranks=2,
    )
    own = torch.tensor([2])
    assert concepts.blocked(own, partner=False).tolist() == [[True, False, False, True]]
    assert concepts.blocked(own, partner=True).tolist() == [[True, False, True, True]]
    bare = concepts._replace(image_key=None, text_key=None)
    assert bare.blocked(own, partner=False).tolist() == [[False, False, False, True]]
    assert bare.blocked(own, partner=True).tolist() == [[False, False, True, True]]
    assert concepts.total() == 3


def test_means_of_one_process() -> None:
    sums = [torch.tensor(6.0, requires_grad=True), torch.tensor(1.5), torch.tensor(0.0)]
    means = mean_over_ranks(sums, [4, torch.tensor(0.5), 0])
    assert [mean.item() for mean in means] == [1.5, 3.0, 0.0]
    (gradient,) = torch.autograd.grad(means[0], sums[0])
    assert gradient == 0.25


def test_what_is_not_finite_shows_in_a_mean() -> None:
    (mean,) = mean_over_ranks([torch.tensor(torch.nan)], [0])
    assert mean.isnan()


# --- no host sync -------------------------------------------------------------------------------


@pytest.fixture
def four_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of four ranks, whose collectives are not carried out."""

    def nothing(*tensors: Tensor, **_: Any) -> None:
        assert all(isinstance(each, Tensor) for each in tensors)

    monkeypatch.setattr(gather, "world", lambda: (2, 4))
    monkeypatch.setattr(gather, "_scatters", lambda device: True)
    for name in ("all_gather_single", "reduce_scatter_single", "all_reduce"):
        monkeypatch.setattr(torch.distributed, name, nothing)


def test_fake_tensors_catch_a_look_at_the_host() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones(3).sum().item()


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_nothing_waits_for_the_device(four_ranks: None, form: Any) -> None:
    """Tensors without values: whatever asks for one on the host raises."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        image, text = (torch.randn(5, 8, requires_grad=True) for _ in range(2))
        keys = [torch.arange(5), torch.arange(5)]
        temperature = torch.full((), 0.1, requires_grad=True)
        everyone = gather_concepts(image, text, *keys, 7)
        loss = contrastive_loss(
            image, text, temperature, everyone=everyone, form=form, chunk=2, gradient="xvlm"
        )
        drawn = draw_negatives(image, text, temperature, scope="global", everyone=everyone)
        (states,) = fetch_rows([torch.stack([image, text], 1)], drawn.image, 7)
        logits = states.flatten(1).repeat(3, 1)[:, :2]
        (mean,) = mean_over_ranks([matching_loss(logits, drawn.valid)], [3])
        (loss + mean).backward()
        assert image.grad is not None
        assert everyone.image.shape == (28, 8)
        assert states.shape == (5, 2, 8)
