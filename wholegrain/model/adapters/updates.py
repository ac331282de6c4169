"""What MMCA adds: conditional updates of a projection and of a convolutional block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wholegrain.model.adapters.condition import Coefficients
from wholegrain.model.config import MmcaConfig


class LinearUpdate(nn.Module):
    """``B diag(w) A x`` for tokens x (T, N, C); B is zero at the start."""

    def __init__(self, width: int, out: int, text_width: int, config: MmcaConfig) -> None:
        super().__init__()
        self.coefficients = Coefficients(width, text_width, config)
        self.down = nn.Linear(width, config.rank, bias=False)
        self.up = nn.Linear(config.rank, out, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor, text: Tensor, share: Tensor | None) -> Tensor:
        """The update (T, N, out).

        Args:
            tokens: (T, N, C), what the host's projection reads.
            text: (T, D) mean text states.
            share: (T, N) what each token counts for; None counts all alike.
        """
        weights = self.coefficients(tokens, text, share)
        update: Tensor = self.up(self.down(tokens) * weights[:, None])
        return update


class ConvUpdate(nn.Module):
    """``Conv_A(w * Conv_B(x))`` for maps x (T, C, H, W); Conv_A is zero at the start.

    Conv_B makes the rank's channels, the coefficients weigh them, Conv_A spreads them. In the
    paper's order Conv_B is 1 x 1 and Conv_A 3 x 3; in that of the authors' release it is the
    other way round.
    """

    def __init__(self, channels: int, text_width: int, config: MmcaConfig) -> None:
        super().__init__()
        inner, outer = (1, 3) if config.convolution == "paper" else (3, 1)
        self.coefficients = Coefficients(channels, text_width, config)
        self.down = nn.Conv2d(channels, config.rank, kernel_size=inner, padding=inner // 2)
        self.up = nn.Conv2d(config.rank, channels, kernel_size=outer, padding=outer // 2)
        nn.init.zeros_(self.up.weight)
        torch.nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]

    def forward(self, states: Tensor, text: Tensor, share: Tensor | None) -> Tensor:
        """The update (T, C, H, W); arguments as of `LinearUpdate`, with N = H * W."""
        weights = self.coefficients(states.flatten(2).transpose(1, 2), text, share)
        update: Tensor = self.up(self.down(states) * weights[:, :, None, None])
        return update
