"""The contrastive loss against a naive double loop, and against itself on several ranks."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from wholegrain.objectives.contrastive import contrastive_loss, gather_rows, world

PROGRAM = Path(__file__).with_name("contrastive_ranks.py")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("contrastive_ranks", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


program = _load()


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


def test_one_process_gathers_nothing() -> None:
    rows = unit(3, 0)
    assert world() == (0, 1)
    assert gather_rows(rows, 8) is rows


# --- several ranks ------------------------------------------------------------------------------


CASES = [[8], [4, 4], [2, 2, 2, 2], [5, 2]]
Found = dict[str, Tensor]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Found]:
    """Mean loss and mean gradients over the ranks of each case; a rank's concepts are its number.

    The capacity is one above the largest number, so that padding is always there.
    """
    folder = tmp_path_factory.mktemp("ranks")
    program = [sys.executable, str(PROGRAM), json.dumps(CASES), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        program, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    means = {}
    for case, counts in enumerate(CASES):
        found = [torch.load(folder / str(case) / f"{rank}.pt") for rank in range(len(counts))]
        means[case] = {name: torch.stack([e[name] for e in found]).mean(0) for name in found[0]}
    return means


def gradients(loss: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    loss.backward()
    found = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    return {"loss": loss.detach(), **found}


@pytest.mark.ranks
@pytest.mark.parametrize("case", [0, 1, 2], ids=["1", "2", "4"])
def test_ranks_equal_one_process(ranks: dict[int, Found], case: int) -> None:
    """Loss and averaged gradients are those of the whole batch."""
    weights = program.parameters()
    whole = gradients(program.loss_of(weights, slice(None), 8, None), weights)
    assert ranks[case].keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(ranks[case][name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.ranks
def test_ranks_with_different_numbers_of_concepts(ranks: dict[int, Found]) -> None:
    """The mean over ranks weighs a row by one over its rank's concepts.

    Each row still meets the whole batch; only its weight differs: the result is that of one
    process which takes the mean of each rank's rows first.
    """
    found = ranks[CASES.index([5, 2])]
    weights = program.parameters()
    image, text, image_key, text_key = program.batch(7)
    vectors = [
        F.normalize(each @ weights[name], dim=1)
        for each, name in ((image, "image"), (text, "text"))
    ]
    blocked = (image_key[:, None] == image_key) | (text_key[:, None] == text_key)
    blocked &= ~torch.eye(7, dtype=torch.bool)
    logits = vectors[0] @ vectors[1].T / weights["temperature"]
    logits = logits.masked_fill(blocked, -math.inf)
    own = torch.arange(7)
    rows = F.cross_entropy(logits, own, reduction="none")
    rows = (rows + F.cross_entropy(logits.T, own, reduction="none")) / 2
    expected = gradients((rows[:5].mean() + rows[5:].mean()) / 2, weights)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)
    assert found["loss"].item() != pytest.approx(rows.mean().item(), rel=1e-3)


def test_more_concepts_than_the_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wholegrain.objectives.contrastive.world", lambda: (0, 2))
    with pytest.raises(ValueError, match="4 concepts exceed the capacity of 3"):
        gather_rows(unit(4, 0), 3)
