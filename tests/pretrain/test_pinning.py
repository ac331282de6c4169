"""Batches for a GPU lie in page-locked memory, whole, and the host does not wait for their copies.

The CPU stands in for it: what would be page-locked is noted.
"""

import copy
from collections.abc import Iterator
from dataclasses import fields
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.config import ObjectiveConfig, PretrainConfig
from pretrain.data import PretrainData, open_data
from pretrain.validate import validate
from tests.pretrain.test_bad_batches import batch_of, concept
from tests.pretrain.test_validation_losses import build
from wholegrain.config import from_dict
from wholegrain.data.batch import REGION, ConceptBatch


def opened(settings: dict[str, Any], workers: int) -> PretrainData:
    settings = copy.deepcopy(settings)
    settings["data"] |= {"workers": workers}
    return open_data(from_dict(PretrainConfig, settings))


def batches(data: PretrainData) -> Iterator[ConceptBatch]:
    """Of training and of validation."""
    return chain(data.stream(0, 2, 0, 1), data.validation_stream(0, 1))


def tensors(batch: ConceptBatch) -> dict[str, Tensor]:
    named = {f.name: getattr(batch, f.name) for f in fields(batch)} | batch.extras
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What has been page-locked."""
    found: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        found.append(tensor.clone())
        return found[-1]

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    return found


@pytest.mark.parametrize("workers", [0, 1])
def test_every_tensor_of_a_batch_is_page_locked_for_a_gpu(
    tiny_pretrain: dict[str, Any],
    pinned: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    data = opened(tiny_pretrain, workers)
    expected = [tensors(batch) for batch in batches(data)]
    assert not pinned, "there is no GPU yet"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    found = [tensors(batch) for batch in batches(data)]
    locked = {id(tensor) for tensor in pinned}
    assert len(found) == len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert {"images", "tokens", "boxed", "hidden_row", "text_key"} <= one.keys()
        assert [name for name, tensor in one.items() if id(tensor) not in locked] == []
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_validation_does_not_wait_for_its_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    move = ConceptBatch.to

    def to(batch: ConceptBatch, device: torch.device, non_blocking: bool = False) -> ConceptBatch:
        asked.append(non_blocking)
        return move(batch, device, non_blocking)

    monkeypatch.setattr(ConceptBatch, "to", to)
    batch = batch_of([concept(first=5)], [concept(grain=REGION, first=9)])
    batch.extras["step"] = 0
    with torch.no_grad():
        validate(build(), [batch], ObjectiveConfig(), torch.device("cpu"))
    assert asked == [True]
