"""Keys with counts: one token for many equal ones, and keys from a cache."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from wholegrain.model.config import VitVision
from wholegrain.model.grounding.scan_attention import (
    KeyValues,
    attend,
    log_counts,
    run_block,
    with_dimensions,
)
from wholegrain.model.vision import VitEncoder

TEXTS, OTHERS, COPIES = 2, 6, 57


def encoder(depth: int, dtype: torch.dtype = torch.float64) -> VitEncoder:
    """A ViT whose norms and biases do something."""
    torch.manual_seed(0)
    made = VitEncoder(VitVision(image_size=32, patch_size=8, width=32, depth=depth, heads=4))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return made.to(dtype).eval()


def two_scales(
    vision: VitEncoder, merged: bool, log_n: bool = True, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """(T, OTHERS + 1, D) states of both passes after each block: of the others, and of one copy.

    Every pass has OTHERS tokens of its own and COPIES of one, as copies or as one with a count; the
    second pass sees the first one's keys.
    """
    generator = torch.Generator().manual_seed(1)
    found = []
    seen: list[KeyValues | None] = [None] * len(vision.blocks())
    bias = torch.zeros(TEXTS, 0, dtype=dtype)
    for _ in range(2):
        own = torch.randn(TEXTS, OTHERS, 32, generator=generator).to(dtype)
        copy = torch.randn(TEXTS, 1, 32, generator=generator).to(dtype)
        copies = 1 if merged else COPIES
        states = torch.cat([own, copy.expand(-1, copies, -1)], dim=1)
        counts = torch.ones(TEXTS, OTHERS + copies, dtype=dtype)
        if merged and log_n:
            counts[:, -1] = COPIES
        bias = torch.cat([bias, log_counts(counts)], dim=1)
        for place, block in enumerate(vision.blocks()):
            states, seen[place] = run_block(block, states, seen[place], bias)
            found.append(states[:, : OTHERS + 1])
    return found


def test_one_token_stands_for_many_in_every_layer() -> None:
    vision = encoder(depth=12)
    merged, copied = (two_scales(vision, merged) for merged in (True, False))
    assert len(merged) == 24
    for ours, theirs in zip(merged, copied, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_one_token_stands_for_many_in_single_precision() -> None:
    vision = encoder(depth=12, dtype=torch.float32)
    merged, copied = (two_scales(vision, merged, dtype=torch.float32) for merged in (True, False))
    for ours, theirs in zip(merged, copied, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_without_its_count_it_does_not() -> None:
    """The power of the two tests above."""
    vision = encoder(depth=12)
    copied = two_scales(vision, merged=False)
    for place in (0, 11, 23):
        wrong = two_scales(vision, merged=True, log_n=False)[place]
        assert (wrong - copied[place]).abs().max() > 1e-2


def test_a_block_is_the_encoders_own() -> None:
    """One pass without counts is timm's block; two with a cache are one with a mask."""
    vision, generator = encoder(depth=1), torch.Generator().manual_seed(2)
    (block,) = vision.blocks()
    states = torch.randn(TEXTS, 9, 32, generator=generator).double()
    zeros = torch.zeros(TEXTS, 9).double()
    ours, seen = run_block(block, states, None, zeros)
    torch.testing.assert_close(ours, block(states), rtol=0, atol=1e-12)
    assert seen.key.shape == seen.value.shape == (TEXTS, 4, 9, 8)
    first, cached = run_block(block, states[:, :5], None, zeros[:, :5])
    second, _ = run_block(block, states[:, 5:], cached, zeros)
    mask = torch.ones(9, 9).bool()
    mask[:5, 5:] = False
    together = block(states, attn_mask=mask)
    torch.testing.assert_close(torch.cat([first, second], dim=1), together, rtol=0, atol=1e-12)


def test_padding_is_not_seen() -> None:
    vision = encoder(depth=1)
    (block,) = vision.blocks()
    states = torch.randn(TEXTS, 9, 32).double()
    counts = torch.ones(TEXTS, 9).double()
    counts[:, 6:] = 0
    ours, _ = run_block(block, states, None, log_counts(counts))
    torch.testing.assert_close(ours[:, :6], block(states[:, :6]), rtol=0, atol=1e-12)


def _rows(dtype: torch.dtype, width: int = 64) -> tuple[Tensor, KeyValues, Tensor]:
    generator = torch.Generator().manual_seed(3)
    query, key, value = torch.randn(3, 2, 3, 20, width, generator=generator).to(dtype)
    counts = torch.ones(2, 20)
    counts[0, 4], counts[1, 5], counts[1, 7:] = 100, 400, 0
    return query, KeyValues(key, value), log_counts(counts)


@pytest.mark.parametrize("width", [8, 12, 64])
def test_dimensions_are_the_bias_in_single_precision(width: int) -> None:
    query, seen, bias = _rows(torch.float32, width)
    torch.testing.assert_close(
        attend(query, seen, bias, "dimensions"), attend(query, seen, bias), rtol=0, atol=1e-6
    )


def test_dimensions_fit_fused_kernels() -> None:
    query, seen, bias = _rows(torch.bfloat16)
    longer, keys = with_dimensions(query, seen, bias)
    assert {part.shape[-1] for part in (longer, *keys)} == {72}
    assert attend(query, seen, bias, "dimensions").shape == query.shape
    assert longer.isfinite().all() and keys.key.isfinite().all()


def _distortion(**options: int) -> float:
    """Most that the weight of a key of any count up to 400 is off, of all that rounding does."""
    bias = torch.arange(1, 401).double().log()[None]
    query = torch.zeros(1, 1, 1, 64).bfloat16()
    key = torch.zeros(1, 1, 400, 64).bfloat16()
    longer, keys = with_dimensions(query, KeyValues(key, key), bias, **options)
    scores = (longer.double() @ keys.key.double().transpose(2, 3))[0, 0, 0] / math.sqrt(64)
    return float((scores - bias[0]).expm1().abs().max())


def test_half_precision_needs_three_dimensions() -> None:
    assert _distortion() < 1e-6
    assert _distortion(parts=2) > 1e-5
    assert _distortion(parts=1) > 8e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_takes_no_bias_beside_the_cpu(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = []

    def attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        masks.append(options["attn_mask"])
        return torch.empty_like(query)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    query, seen, bias = _rows(dtype)
    attend(query, seen, bias)
    absent = torch.device("meta")
    elsewhere = KeyValues(seen.key.to(absent), seen.value.to(absent))
    found = attend(query.to(absent), elsewhere, bias.to(absent))
    assert found.shape == query.shape
    assert [mask is None for mask in masks] == [False, dtype != torch.float32]


def test_dimensions_are_within_the_noise_of_half_precision() -> None:
    query, seen, bias = _rows(torch.float64)
    exact = attend(query, seen, bias.double())
    query, seen, bias = _rows(torch.bfloat16)
    by_bias, by_dimensions = (
        (attend(query, seen, bias, form).double() - exact).abs().max()
        for form in ("bias", "dimensions")
    )
    assert by_dimensions < 1.5 * by_bias


def test_autocast_does_not_round_counts() -> None:
    """100 ordinary keys against one for 100; half precision would make of log 100 the log of 99."""
    query = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16)
    key = torch.zeros(1, 1, 101, 8, dtype=torch.bfloat16)
    value = torch.zeros_like(key)
    value[:, :, -1] = 64.0
    counts = torch.ones(1, 101)
    counts[:, -1] = 100
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(query, KeyValues(key, value), log_counts(counts))
    assert (found == 32).all()
