"""Texts in one row of tokens: where each lies, what gaps may do, and what the host must know."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wholegrain.model import kernels
from wholegrain.model.packing import Packing

MASK = torch.arange(5) < torch.tensor([5, 1, 3])[:, None]


def test_packed_states_are_the_tokens() -> None:
    states = torch.arange(15.0).view(3, 5, 1)
    texts, places = Packing.of_mask(MASK)
    assert places.tolist() == [0, 1, 2, 3, 4, 5, 10, 11, 12]
    packed = texts.pack(states)
    assert packed.flatten().tolist() == [0, 1, 2, 3, 4, 5, 10, 11, 12]
    assert torch.equal(texts.unpack(packed)[MASK], states[MASK])
    assert texts.unpack(packed).shape == states.shape
    assert torch.equal(texts.mask, MASK)


def test_a_text_of_no_tokens_is_taken_to_hold_one() -> None:
    texts, places = Packing.of_mask(torch.zeros(2, 4, dtype=torch.bool))
    assert texts.lengths.tolist() == [1, 1]
    assert places.tolist() == [0, 4]


def test_repeated() -> None:
    texts, _ = Packing.of_mask(MASK)
    twice = texts.repeated(2)
    assert twice.starts.tolist() == [0, 5, 6, 9, 14, 15]
    assert (twice.total, twice.longest, len(twice)) == (18, 5, 6)


def test_bounds_cover_every_token_once() -> None:
    gaps = Packing(torch.tensor([0, 5, 10]), torch.tensor([5, 1, 3]), 15, 5)
    assert gaps.bounds.tolist() == [0, 5, 5, 6, 10, 13, 15]
    assert gaps.bounds.dtype == torch.int32


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.lists(st.integers(0, 100), min_size=1, max_size=9),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_choosing_texts(lengths: list[int], picks: list[int], wide: bool) -> None:
    """Every token of a chosen text stands where the new packing says, with and without gaps."""
    sizes = torch.tensor(lengths)
    texts = Packing.of_lengths(sizes, sum(lengths), 6)
    rows = torch.tensor([pick % len(lengths) for pick in picks])
    slots = torch.full_like(rows, 6) if wide else None
    tokens, chosen = texts.choose(rows, slots, 6 * len(rows) if wide else None)
    assert chosen.total == len(tokens)
    for place, row in enumerate(rows.tolist()):
        start, length = int(chosen.starts[place]), int(chosen.lengths[place])
        assert length == lengths[row]
        first = int(texts.starts[row])
        assert tokens[start : start + length].tolist() == list(range(first, first + length))
    states = torch.arange(float(texts.total))[:, None][tokens]
    again = chosen.pack(chosen.unpack(states))
    real = torch.cat(
        [torch.arange(s, s + n) for s, n in zip(chosen.starts, chosen.lengths, strict=True)]
    )
    assert torch.equal(again[real], states[real])
    assert torch.isfinite(again).all()


def test_choosing_all_slots_in_another_order_is_a_permutation() -> None:
    texts = Packing(torch.tensor([0, 4, 8]), torch.tensor([4, 1, 2]), 10, 4)
    order = torch.tensor([2, 0, 1])
    tokens, _ = texts.choose(order, texts.slots[order], texts.total)
    assert sorted(tokens.tolist()) == list(range(10))


def test_texts_that_read_nothing() -> None:
    reads = Packing.of_lengths(torch.tensor([1, 0, 2, 0]), 3, 2)
    assert reads.row.tolist() == [0, 2, 2]
    assert reads.pack(reads.unpack(torch.arange(3.0)[:, None])).flatten().tolist() == [0, 1, 2]
    none = Packing.of_lengths(torch.tensor([0, 0]), 0, 1)
    assert none.places.shape == (0,)


def test_segments_equal_the_rectangle() -> None:
    torch.manual_seed(0)
    states = torch.randn(3, 9, 2, 4).double()
    texts, _ = Packing.of_mask(MASK)
    found = kernels.segments(*states, texts.bounds, texts.bounds, (5, 5))
    rows = [texts.unpack(each).transpose(1, 2) for each in states]
    expected = kernels.rectangle(*rows, MASK[:, None, None], 0.0).transpose(1, 2)
    torch.testing.assert_close(found, texts.pack(expected), rtol=0, atol=1e-12)


def test_queries_without_keys_give_zeros() -> None:
    query, key = torch.randn(3, 1, 4), torch.randn(2, 1, 4)
    found = kernels.segments(
        query, key, key, torch.tensor([0, 2, 3]).int(), torch.tensor([0, 2, 2]).int(), (2, 2)
    )
    assert torch.equal(found[2], torch.zeros(1, 4))


def test_a_kernel_is_tried_before_it_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that raises, or that answers otherwise on the device, is not used."""
    trial = kernels._segments_work.__wrapped__
    device = torch.device("cpu")
    assert trial(device, torch.bfloat16, 8)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert trial(device, torch.bfloat16, 8)

    right = kernels.segments

    def wrong(query: torch.Tensor, *rest: object) -> torch.Tensor:
        found = right(query, *rest)  # type: ignore[arg-type]
        return found + 0.5 if query.dtype == torch.bfloat16 else found

    def wrong_gradient(query: torch.Tensor, *rest: object) -> torch.Tensor:
        found = right(query, *rest)  # type: ignore[arg-type]
        twice = 2 * found - found.detach()
        return twice if query.dtype == torch.bfloat16 else found

    def absent(*arguments: object) -> torch.Tensor:
        raise NotImplementedError("no such kernel")

    for kernel in (wrong, wrong_gradient, absent):
        monkeypatch.setattr(kernels, "segments", kernel)
        assert not trial(device, torch.bfloat16, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernel_of_the_device_agrees() -> None:
    states = torch.zeros(1, 128, device="cuda", dtype=torch.bfloat16)
    assert kernels.segments_suit(states, 64, 0.0)
    assert not kernels.segments_suit(states, 64, 0.1)
    assert not kernels.segments_suit(states.float(), 64, 0.0)
