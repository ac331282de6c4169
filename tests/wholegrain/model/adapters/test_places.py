"""Which part of the image a state belongs to: grids, class tokens, Swin's windows."""

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor

from wholegrain.model.adapters.places import Places, swin_grid, swin_windows

VALUES = torch.rand(2, 4, 6)


def test_a_grid_goes_row_by_row() -> None:
    assert torch.equal(Places((4, 6)).order(VALUES), VALUES.flatten(1))


def test_a_class_token_comes_first_and_always_counts() -> None:
    ordered = Places((4, 6), class_token=True).order(VALUES)
    assert ordered.shape == (2, 25)
    assert ordered[:, 0].tolist() == [1, 1]
    assert torch.equal(ordered[:, 1:], VALUES.flatten(1))


def test_windows_by_hand() -> None:
    values = torch.arange(16).view(1, 4, 4)
    assert Places((4, 4), window=(2, 2)).order(values)[0].tolist() == [
        *(0, 1, 4, 5),
        *(2, 3, 6, 7),
        *(8, 9, 12, 13),
        *(10, 11, 14, 15),
    ]
    shifted = Places((4, 4), window=(2, 2), shift=(1, 1)).order(values)[0].tolist()
    assert shifted[:4] == [5, 6, 9, 10]
    assert shifted[-4:] == [15, 12, 3, 0]


@pytest.mark.parametrize("side", [8, 10, 7])
@pytest.mark.parametrize("shift", [0, 2])
def test_windows_are_those_that_timm_attends_in(side: int, shift: int) -> None:
    """A channel that holds its own place, carried through timm's block."""
    block = SwinTransformerBlock(
        dim=4, input_resolution=(side, side), num_heads=1, window_size=4, shift_size=shift
    )
    seen: list[Tensor] = []
    block.norm1 = torch.nn.Identity()
    block.attn.qkv.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    marks = torch.rand(2, side, side)
    block(marks[..., None].expand(-1, -1, -1, 4))
    windows = seen[0][..., 0].reshape(2, -1)
    places = swin_windows(block)
    assert torch.equal(places.order(marks), windows), "filling is zero in both"
    assert places.all_real == (side % 4 == 0)


def test_mlp_of_a_swin_block_goes_row_by_row() -> None:
    block = SwinTransformerBlock(dim=4, input_resolution=(8, 8), num_heads=1, window_size=4)
    seen: list[Tensor] = []
    block.norm1 = block.norm2 = torch.nn.Identity()
    block.attn = torch.nn.Module()
    block.attn.forward = lambda windows, mask=None: torch.zeros_like(windows)  # type: ignore[method-assign]
    block.mlp.fc1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    marks = torch.rand(2, 8, 8)
    block(marks[..., None].expand(-1, -1, -1, 4))
    assert torch.equal(swin_grid(block).order(marks), seen[0][..., 0].reshape(2, -1))
