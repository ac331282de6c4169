"""The kernel over segments is tried where it is first asked for, whatever happens around it."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from wholegrain.model import kernels
from wholegrain.model.checkpointing import checkpoint_blocks
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.packing import Packing

Build = Callable[..., MultiGrainModel]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """The CPU as a card whose kernel must be tried first; what each look at it found."""
    found: list[bool] = []

    def suit(states: Tensor, width: int, dropout: float) -> bool:
        found.append(kernels._segments_work(states.device, torch.bfloat16, width))
        return found[-1]

    monkeypatch.setattr(kernels, "segments_suit", suit)
    kernels._segments_work.cache_clear()
    yield found
    kernels._segments_work.cache_clear()


def gradients(model: MultiGrainModel) -> list[Tensor]:
    """Of the text encoder."""
    model.zero_grad()
    lengths = torch.tensor([5, 2, 4])
    states = model.encode_packed(torch.arange(11) + 1, Packing.of_lengths(lengths, 11, 5))
    states.square().sum().backward()
    return [p.grad.clone() for p in model.text.parameters() if p.grad is not None]


def test_the_trial_is_no_part_of_a_recomputed_block(build: Build, tried: list[bool]) -> None:
    model = build("vit").train()
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    checkpoint_blocks(model)
    first = gradients(model)
    assert tried[0], "it was tried within the first block, and works"
    assert kernels._segments_work.cache_info().misses == 1
    for one, other in zip(first, gradients(model), strict=True):
        assert torch.equal(one, other)


def test_the_trial_hands_nothing_to_those_who_watch_what_is_saved() -> None:
    seen: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        seen.append(tensor)
        return tensor

    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(keep, keep):
        work = kernels._segments_work.__wrapped__(torch.device("cpu"), torch.bfloat16, 8)
    assert work
    assert not seen


def test_a_trial_that_gives_other_values_refuses_the_kernel(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = kernels.segments

    def wrong(query: Tensor, *rest: object) -> Tensor:
        found = right(query, *rest)  # type: ignore[arg-type]
        return found if query.dtype == torch.float32 else found + 1

    monkeypatch.setattr(kernels, "segments", wrong)
    assert not kernels._segments_work.__wrapped__(torch.device("cpu"), torch.bfloat16, 8)
    assert "gives other values here" in caplog.text
