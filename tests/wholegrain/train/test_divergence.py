"""A checksum that no small accident leaves alone, and ranks that compare theirs."""

import json
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wholegrain.train import divergence
from wholegrain.train.divergence import compare_ranks, weights_checksum

PROGRAM = Path(__file__).with_name("divergence_program.py")
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.float8_e4m3fn,
]
SEEDS = st.integers(0, 2**32 - 1)


def checksum(*tensors: Tensor) -> int:
    return int(weights_checksum(tensors))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that tensors of a few elements have several.
    monkeypatch.setattr(divergence, "_PIECE", 16)


def bits(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """Any bits at all, NaNs among them, as integers of the type's size."""
    generator = torch.Generator().manual_seed(seed)
    size = dtype.itemsize
    raw = torch.randint(0, 256, (*shape, size), dtype=torch.uint8, generator=generator)
    return raw.view(INTEGERS[size]).squeeze(-1)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(DTYPES), SEEDS, st.integers(0, 1), st.integers(0, 34), st.data())
def test_one_flipped_bit_changes_it(
    dtype: torch.dtype, seed: int, which: int, place: int, data: st.DataObject
) -> None:
    raw = [bits(dtype, 7, 5, seed=seed), bits(dtype, 35, seed=seed + 1)]
    before = checksum(*(tensor.view(dtype) for tensor in raw))
    flat = raw[which].view(-1).view(torch.uint8)
    size = dtype.itemsize
    flat[place * size + data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert checksum(*(tensor.view(dtype) for tensor in raw)) != before


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(DTYPES),
    SEEDS,
    st.integers(0, 69),
    st.integers(0, 69),
    st.sampled_from(["any", "signs"]),
)
def test_two_exchanged_elements_change_it(
    dtype: torch.dtype, seed: int, a: int, b: int, kind: str
) -> None:
    raw = bits(dtype, 70, seed=seed)
    if kind == "signs":  # elements that differ in their highest bit alone
        raw[b] = raw[a] ^ (128 if dtype.itemsize == 1 else torch.iinfo(raw.dtype).min)
    before = checksum(raw[:35].view(dtype), raw[35:].view(dtype))
    same = bool(raw[a] == raw[b])
    raw[[a, b]] = raw[[b, a]]
    assert (checksum(raw[:35].view(dtype), raw[35:].view(dtype)) == before) is same


@pytest.mark.parametrize("dtype", DTYPES)
def test_exchanged_tensors_change_it(dtype: torch.dtype) -> None:
    a, b = (bits(dtype, 40, seed=seed).view(dtype) for seed in (1, 2))
    empty = torch.zeros(0, dtype=dtype)
    found = [checksum(a, b), checksum(b, a), checksum(a, empty, b), checksum(empty, a, b)]
    assert len(set(found)) == 4
    assert checksum(a.clone(), b.clone()) == found[0]


def test_it_is_what_its_definition_says() -> None:
    values = bits(torch.float32, 37)
    total = 0
    for piece in range(3):
        for place, value in enumerate(values[16 * piece : 16 * (piece + 1)].tolist()):
            factor = place * 0x9E3779B1 % 2**30 * 2 + 1
            total += value * factor * divergence._odd(piece)
    assert (checksum(values.view(torch.float32)) - total) % 2**64 == 0


def test_any_layout_and_no_tensor_at_all() -> None:
    image = torch.randn(2, 3, 4, 4)
    expected = checksum(image)
    assert checksum(image.to(memory_format=torch.channels_last)) == expected
    assert checksum(torch.nn.Parameter(image)) == expected
    assert checksum() == 0
    assert checksum(torch.tensor(1.0)) != checksum(torch.tensor(2.0))


def test_one_rank_agrees_with_itself() -> None:
    compare_ranks(weights_checksum([torch.zeros(3)]), 1)


@pytest.mark.ranks
def test_all_ranks_name_the_one_with_a_flipped_bit(
    launch: Callable[..., str], tmp_path: Path
) -> None:
    launch(PROGRAM, tmp_path)
    node = platform.node()
    two = (
        "71 the weights of rank 0 and rank 1 differ at step 1000, and no majority says whose are "
        "right (a fault of somebody's memory, or a bug); nothing was saved; start again from the "
        f"last checkpoint, and look at {node}"
    )
    three = (
        "71 the weights of rank 1 differ from those of the other 2 ranks at step 1000 (a fault of "
        "its memory, or a bug); nothing was saved; start again from the last checkpoint, and look "
        f"at {node}"
    )
    for world, said in ((2, two), (3, three)):
        for rank in range(world):
            assert json.loads((tmp_path / f"{world}-{rank}.json").read_text()) == ["equal", said]


@pytest.mark.parametrize(
    ("values", "hosts", "parts"),
    [
        ([5, 5, 5, 6, 7, 5], "aaabcc", ["of ranks 3, 4 differ", "other 4 ranks", "look at b, c"]),
        ([5, 5, 6, 6], "aabb", ["of ranks 0, 1 and ranks 2, 3 differ", "look at a, b"]),
        (
            list(range(20)),
            "abcdefghijklmnopqrst",
            ["rank 0 and rank 1 and", "rank 7 and 12 more differ", "g, h and 12 more"],
        ),
    ],
)
def test_what_is_said_of_many_ranks(values: list[int], hosts: str, parts: list[str]) -> None:
    said = divergence._described(values, list(hosts), 9)
    for part in parts:
        assert part in said
