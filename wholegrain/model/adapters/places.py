"""Which part of the image each of a layer's states belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Places:
    """How the N states of a layer lie over the image: a grid, row by row, unless said otherwise."""

    grid: tuple[int, int]
    """(rows, columns) of patches."""
    class_token: bool = False
    """Whether a token of the whole image precedes the patches."""
    window: tuple[int, int] | None = None
    """(rows, columns) of Swin's windows: states then go window by window."""
    shift: tuple[int, int] = (0, 0)
    """By how much the grid is rolled up and to the left before it is cut into windows."""

    @property
    def all_real(self) -> bool:
        """Whether every state is a patch or the class token, rather than a window's filling."""
        if self.window is None:
            return True
        return all(side % part == 0 for side, part in zip(self.grid, self.window, strict=True))

    def order(self, shares: Tensor) -> Tensor:
        """A value a patch (I, rows, columns) as a value a state (I, N).

        The class token has the value 1, what fills up a window 0.
        """
        if self.window is None:
            flat = shares.flatten(1)
            return torch.cat([torch.ones_like(flat[:, :1]), flat], 1) if self.class_token else flat
        height, width = self.window
        rolled = shares.roll((-self.shift[0], -self.shift[1]), dims=(1, 2))
        below, right = -shares.shape[1] % height, -shares.shape[2] % width
        filled = nn.functional.pad(rolled, (0, right, 0, below))
        windows = filled.unflatten(2, (-1, width)).unflatten(1, (-1, height))
        return windows.transpose(2, 3).flatten(1)


def swin_windows(block: Any) -> Places:
    """The places inside the attention of one of timm's Swin blocks."""
    return Places(
        grid=tuple(block.input_resolution),
        window=tuple(block.window_size),
        shift=tuple(block.shift_size),
    )


def swin_grid(block: Any) -> Places:
    """The places inside the MLP of one of timm's Swin blocks."""
    return Places(grid=tuple(block.input_resolution))
