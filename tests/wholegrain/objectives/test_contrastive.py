"""The contrastive loss against a naive double loop; on several ranks: `test_ranks`."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from wholegrain.objectives.contrastive import Form, contrastive_loss


def unit(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 6, generator=generator), dim=1).double()


def naive(
    image: Tensor, text: Tensor, temperature: float, image_key: list[int], text_key: list[int]
) -> float:
    """The definition, number by number."""
    count, total = len(image), 0.0
    for rows, columns in ((image, text), (text, image)):
        for i in range(count):
            own = math.exp(float(rows[i] @ columns[i]) / temperature)
            others = sum(
                math.exp(float(rows[i] @ columns[j]) / temperature)
                for j in range(count)
                if j != i and image_key[i] != image_key[j] and text_key[i] != text_key[j]
            )
            total -= math.log(own / (own + others)) / count / 2
    return total


@pytest.mark.parametrize(
    ("image_key", "text_key"),
    [
        (None, None),
        ([1, 1, 2, 3, 3, 3, 4], None),
        (None, [1, 2, 3, 1, 4, 5, 1]),
        ([1, 1, 2, 3, 3, 3, 4], [1, 2, 3, 1, 4, 5, 6]),
        ([1] * 7, None),
    ],
)
def test_equals_the_naive_loop(image_key: list[int] | None, text_key: list[int] | None) -> None:
    image, text = unit(7, 0), unit(7, 1)
    loss = contrastive_loss(
        image,
        text,
        torch.tensor(0.2, dtype=torch.float64),
        image_key=None if image_key is None else torch.tensor(image_key),
        text_key=None if text_key is None else torch.tensor(text_key),
    )
    each = list(range(7))
    assert loss.item() == pytest.approx(
        naive(image, text, 0.2, image_key or each, text_key or each), rel=1e-9
    )


@pytest.mark.parametrize("keyed", [False, True])
def test_sigmoid_equals_the_naive_loop(keyed: bool) -> None:
    image, text, keys = unit(7, 0), unit(7, 1), ([1, 1, 2, 3, 3, 3, 4], [1, 2, 3, 1, 4, 5, 6])
    given = [torch.tensor(key) for key in keys] if keyed else [None, None]
    loss = contrastive_loss(
        image,
        text,
        torch.tensor(0.2),
        image_key=given[0],
        text_key=given[1],
        form="sigmoid",
        bias=torch.tensor(-1.5),
    )
    total = 0.0
    for i in range(7):
        for j in range(7):
            if i != j and keyed and any(key[i] == key[j] for key in keys):
                continue
            sign = 1 if i == j else -1
            total += math.log1p(math.exp(-sign * (float(image[i] @ text[j]) / 0.2 - 1.5)))
    assert loss.item() == pytest.approx(total / 7, rel=1e-6)


def naive_row(image: Tensor, text: Tensor, row: int, form: str, keys: list[int]) -> float:
    """What one row costs, at temperature 0.2 and, in the sigmoid form, a bias of -1.5."""
    others = [other for other in range(len(keys)) if keys[other] != keys[row]]
    if form == "sigmoid":
        scores = [float(image[row] @ text[other]) / 0.2 - 1.5 for other in [row, *others]]
        return sum(
            math.log1p(math.exp(score if number else -score)) for number, score in enumerate(scores)
        )
    total = 0.0
    for rows, columns in ((image, text), (text, image)):
        own, *rest = (
            math.exp(float(rows[row] @ columns[column]) / 0.2) for column in [row, *others]
        )
        total -= math.log(own / (own + sum(rest))) / 2
    return total


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_rows_are_what_each_costs(form: Form, chunk: int | None) -> None:
    """They cost the loss and its gradient not a bit."""
    keys, found = [1, 1, 2, 3, 3, 3, 4], []
    rows = torch.full((7,), torch.nan, dtype=torch.float64)
    for given in (rows, None):
        leaves = [unit(7, 0).requires_grad_(), unit(7, 1).requires_grad_()]
        loss = contrastive_loss(
            *leaves,
            torch.tensor(0.2, dtype=torch.float64),
            image_key=torch.tensor(keys),
            form=form,
            bias=torch.tensor(-1.5) if form == "sigmoid" else None,
            chunk=chunk,
            rows=given,
        )
        loss.backward()
        found.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    expected = [naive_row(unit(7, 0), unit(7, 1), row, form, keys) for row in range(7)]
    assert rows.tolist() == pytest.approx(expected, rel=1e-9)
    assert not rows.requires_grad
    torch.testing.assert_close(rows.mean(), found[0][0])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_softmax_form_is_cross_entropy_to_the_last_bit() -> None:
    """Value and gradient of every pair of one rank at once."""
    image, text = (unit(60, seed).float() for seed in (0, 1))
    found = []
    for plain in (False, True):
        leaves = [image.clone().requires_grad_(), text.clone().requires_grad_()]
        if plain:
            scaled, partner = [leaf / torch.tensor(0.1) for leaf in leaves], torch.arange(60)
            sides = zip(scaled, reversed(leaves), strict=True)
            to_text, to_image = (
                F.cross_entropy(rows @ columns.T, partner, reduction="sum")
                for rows, columns in sides
            )
            loss = (to_text + to_image) * (1 / torch.tensor(60.0)) / 2
        else:
            loss = contrastive_loss(*leaves, torch.tensor(0.1), rows=torch.empty(60))
        loss.backward()
        found.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


FORMS = [
    ("softmax", None),
    ("sigmoid", torch.tensor(-2.0, dtype=torch.float64)),
]


def gradients(
    form: Form, bias: Tensor | None, chunk: int | None, dtype: torch.dtype, autocast: bool = False
) -> tuple[Tensor, ...]:
    """The loss of nine keyed pairs, and the gradients of all that it reads."""
    leaves = [unit(9, 0).to(dtype), unit(9, 1).to(dtype), torch.tensor(0.1, dtype=dtype)]
    leaves += [] if bias is None else [bias.to(dtype)]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    # Backward as well: a training step may hold it under autocast.
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = contrastive_loss(
            *leaves[:3],
            image_key=torch.arange(9) // 2,
            text_key=torch.arange(9) % 6,
            form=form,
            bias=None if bias is None else leaves[3],
            chunk=chunk,
        )
        return loss.detach(), *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize(("form", "bias"), FORMS, ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("chunk", [1, 2, 4, 9, 100])
def test_chunks_change_nothing(form: Form, bias: Tensor | None, chunk: int) -> None:
    whole = gradients(form, bias, None, torch.float64)
    for found, expected in zip(gradients(form, bias, chunk, torch.float64), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.untyped_storage().size())
        return result


@pytest.mark.parametrize(("form", "bias"), FORMS, ids=["softmax", "sigmoid"])
def test_no_more_similarities_than_rows_of_a_chunk(form: Form, bias: Tensor | None) -> None:
    image, text = (unit(400, seed).requires_grad_() for seed in (0, 1))
    for chunk, bound in ((None, 400), (16, 16)):
        with Largest() as largest:
            contrastive_loss(
                image, text, torch.tensor(0.1), form=form, bias=bias, chunk=chunk
            ).backward()
        assert largest.elements == bound * 400 * 8, chunk


@pytest.mark.parametrize(("form", "bias"), FORMS, ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_full_precision_under_autocast_and_of_half_vectors(
    form: Form, bias: Tensor | None, chunk: int | None
) -> None:
    expected = gradients(form, bias, chunk, torch.float32)
    found = gradients(form, bias, chunk, torch.float32, autocast=True)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
    half = [unit(9, seed).bfloat16() for seed in (0, 1)]
    options: dict[str, Any] = {"form": form, "bias": bias, "chunk": chunk}
    loss = contrastive_loss(*half, torch.tensor(0.1), **options)
    assert loss.dtype == torch.float32
    assert torch.equal(
        loss, contrastive_loss(*(v.float() for v in half), torch.tensor(0.1), **options)
    )


@pytest.mark.parametrize(("form", "bias"), FORMS, ids=["softmax", "sigmoid"])
def test_what_is_not_finite_shows(form: Form, bias: Tensor | None) -> None:
    for bad in (math.nan, math.inf):
        image = unit(3, 0)
        image[1, 2] = bad
        loss = contrastive_loss(image, unit(3, 1), torch.tensor(0.1), form=form, bias=bias)
        assert not loss.isfinite()


@pytest.mark.parametrize(("form", "bias"), FORMS, ids=["softmax", "sigmoid"])
def test_a_batch_of_one_pair(form: Form, bias: Tensor | None) -> None:
    """Softmax has nothing to tell apart; a sigmoid still judges the pair."""
    image, text = unit(1, 0).requires_grad_(), unit(1, 1)
    loss = contrastive_loss(image, text, torch.tensor(0.5), form=form, bias=bias, chunk=1)
    logit = float(image[0].detach() @ text[0]) / 0.5 - 2
    expected = 0 if form == "softmax" else math.log1p(math.exp(-logit))
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_extreme_similarities_stay_finite() -> None:
    """At a temperature of 1e-4 a sigmoid's terms reach 10,000."""
    for form, bias in FORMS:
        loss = contrastive_loss(
            unit(5, 0).float(), unit(5, 1).float(), torch.tensor(1e-4), form=form, bias=bias
        )
        assert loss.isfinite()


def test_without_gradient() -> None:
    image, text = (unit(4, seed).requires_grad_() for seed in (0, 1))
    loss = contrastive_loss(image, text, torch.tensor(0.1))
    with torch.no_grad():
        quiet = contrastive_loss(image, text, torch.tensor(0.1))
    assert loss.requires_grad
    assert not quiet.requires_grad
    assert torch.equal(loss, quiet)


def test_softmax_takes_no_bias() -> None:
    with pytest.raises(ValueError, match="softmax form has no bias"):
        contrastive_loss(unit(2, 0), unit(2, 1), torch.tensor(0.1), bias=torch.tensor(1.0))


def test_a_batch_of_one_image_costs_nothing_and_is_finite() -> None:
    image = unit(4, 0).requires_grad_()
    loss = contrastive_loss(image, unit(4, 1), torch.tensor(0.1), image_key=torch.ones(4).long())
    assert loss.item() == 0
    loss.backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()


def test_right_pairs_cost_less() -> None:
    image, temperature = unit(5, 0), torch.tensor(0.1)
    right = contrastive_loss(image, image, temperature)
    assert right < contrastive_loss(image, image.roll(1, 0), temperature)


def test_excluded_pairs_have_no_gradient() -> None:
    """Concepts 0 and 1 share an image: the gradient of one's image does not know the other's text.

    That of another concept's image does.
    """
    found = []
    for seed in (1, 2):
        image, text = unit(3, 0).requires_grad_(), unit(3, 1)
        text[1] = unit(3, seed)[1 if seed == 1 else 2]
        key = torch.tensor([1, 1, 2])
        contrastive_loss(image, text, torch.tensor(0.2), image_key=key).backward()
        assert image.grad is not None
        found.append(image.grad)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-15)
    assert not torch.allclose(found[0][2], found[1][2])
