"""Tokens of a scale: pixels to patches, all of them or the selected ones."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.model.grounding.scan_tokens import (
    Chosen,
    all_tokens,
    merged_tokens,
    patchify,
    spread_logits,
)

SELECTED = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()
REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()


def test_patches_are_those_of_a_convolution() -> None:
    convolution = nn.Conv2d(3, 7, kernel_size=4, stride=4).double()
    pixels = torch.randn(2, 3, 12, 12).double()
    patches = patchify(pixels, 4)
    assert patches.shape == (2, 9, 48)
    ours = F.linear(patches, convolution.weight.flatten(1), convolution.bias)
    expected = convolution(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_the_selected_come_first_in_order() -> None:
    chosen = Chosen.of(SELECTED, REAL)
    assert chosen.valid.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert [row[mask].tolist() for row, mask in zip(chosen.index, chosen.valid, strict=True)] == [
        [1, 3, 4],
        [4],
        [0, 1, 2, 3, 4],
    ]
    assert chosen.left_out.tolist() == [2, 2, 0]
    assert chosen.constant


def test_nothing_selected_and_nothing_left_out() -> None:
    none = Chosen.of(torch.zeros(2, 5).bool(), torch.ones(2, 5).bool())
    assert none.index.shape == (2, 0) and none.left_out.tolist() == [5, 5]
    every = Chosen.of(REAL, REAL)
    assert not every.constant
    assert not len(Chosen.of(SELECTED[:0], REAL[:0]).index)


def _embed(pixels: Tensor, places: Tensor) -> Tensor:
    return torch.cat([pixels, places[..., None]], dim=-1)


def test_merged_tokens_are_all_tokens_counted() -> None:
    """The same bag of tokens, but that equal ones stand once."""
    pixels, reg, constant = torch.randn(2, 5, 2), torch.full((3,), -1.0), torch.full((3,), -2.0)
    image = torch.tensor([1, 0, 1])
    merged = merged_tokens(reg, _embed, pixels, image, constant, SELECTED, REAL)
    places = torch.arange(5).expand(3, 5)
    every = all_tokens(reg, _embed(pixels[image], places), constant, SELECTED, REAL)
    assert every.chosen is None and every.states.shape == (3, 6, 3)
    assert merged.states.shape == (3, 7, 3)

    def bag(states: Tensor, counts: Tensor) -> dict[tuple[float, ...], float]:
        found: dict[tuple[float, ...], float] = {}
        for state, count in zip(states.tolist(), counts.tolist(), strict=True):
            if count:
                found[tuple(state)] = found.get(tuple(state), 0) + count
        return found

    for row in range(3):
        ours = bag(merged.states[row], merged.counts[row])
        assert ours == bag(every.states[row], every.counts[row])
        assert sum(ours.values()) == 1 + REAL[row].sum()


def test_logits_go_back_to_the_grid() -> None:
    chosen = Chosen.of(SELECTED, REAL)
    logits = torch.arange(3 * 6 * 4).float().view(3, 6, 4)
    grid = spread_logits(logits, chosen, 5)
    assert grid.shape == (3, 5, 4)
    for row in range(3):
        own = iter(logits[row])
        for place in range(5):
            expected = next(own) if SELECTED[row, place] else logits[row, -1]
            assert torch.equal(grid[row, place], expected)
