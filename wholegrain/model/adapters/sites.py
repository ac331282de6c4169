"""Where MMCA enters: conditional updates beside a projection and beside a convolutional block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wholegrain.model.adapters.condition import Coefficients, Condition
from wholegrain.model.adapters.places import Places
from wholegrain.model.config import MmcaConfig

_THIRDS = {"query": 0, "key": 1, "value": 2}  # order inside a fused qkv projection


class LinearUpdate(nn.Module):
    """``B diag(w) A x`` for tokens x (T, N, C); B is zero at the start."""

    def __init__(self, width: int, out: int, text_width: int, config: MmcaConfig) -> None:
        super().__init__()
        self.coefficients = Coefficients(width, text_width, config)
        self.down = nn.Linear(width, config.rank, bias=False)
        self.up = nn.Linear(config.rank, out, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor, text: Tensor, share: Tensor | None) -> Tensor:
        """The update (T, N, out)."""
        weights = self.coefficients(tokens, text, share)
        update: Tensor = self.up(self.down(tokens) * weights[:, None])
        return update


class ConditionalLinear(nn.Module):
    """A linear layer of the host, ``W0 x``, with updates on all or on thirds of its output."""

    def __init__(
        self,
        host: nn.Linear,
        sites: tuple[str, ...],
        text_width: int,
        config: MmcaConfig,
        shared: Condition,
        places: Places,
    ) -> None:
        super().__init__()
        self.host, self.shared, self.places = host, shared, places
        third = host.out_features // 3
        out = {site: third if site in _THIRDS else host.out_features for site in sites}
        self.updates = nn.ModuleDict(
            {
                site: LinearUpdate(host.in_features, out[site], text_width, config)
                for site in sorted(sites, key=lambda site: _THIRDS.get(site, 0))
            }
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """States (T, N, C), or windows (T * windows, n, C), those of one text side by side."""
        output: Tensor = self.host(inputs)
        text = self.shared.text
        if text is None:
            return output
        tokens = inputs.reshape(len(text), -1, inputs.shape[-1])
        share = self.shared.weights(self.places)
        for site, module in self.updates.items():
            update = module(tokens, text, share).reshape(*inputs.shape[:-1], -1)
            if site in _THIRDS:
                width = update.shape[-1]
                before = _THIRDS[site] * width
                after = output.shape[-1] - before - width
                update = nn.functional.pad(update, (before, after))
            output = output + update
        return output


class SpreadingBlock(nn.Module):
    """The first adapted block: from here on there is one row a text instead of one an image."""

    def __init__(self, host: nn.Module, shared: Condition) -> None:
        super().__init__()
        self.host, self.shared = host, shared

    def forward(self, states: Tensor, *args: Any, **options: Any) -> Tensor:
        result: Tensor = self.host(self.shared.spread(states), *args, **options)
        return result


class ConditionalBlock(nn.Module):
    """A convolutional block with ``Conv_A(w * Conv_B(x))`` added to its output.

    Conv_B (1 x 1, C_in to rank) makes the rank's channels, the coefficients weigh them, Conv_A
    (3 x 3, rank to C_out) spreads them; Conv_A starts at zero. The block keeps its resolution.
    """

    def __init__(
        self,
        host: nn.Module,
        channels: int,
        text_width: int,
        config: MmcaConfig,
        shared: Condition,
        first: bool,
    ) -> None:
        super().__init__()
        self.host, self.shared, self.first = host, shared, first
        self.coefficients = Coefficients(channels, text_width, config)
        self.down = nn.Conv2d(channels, config.rank, kernel_size=1)
        self.up = nn.Conv2d(config.rank, channels, kernel_size=3, padding=1)
        nn.init.zeros_(self.up.weight)
        torch.nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]

    def forward(self, states: Tensor) -> Tensor:
        """States (I or T, C, H, W); from the first adapted block on, T."""
        if self.first:
            states = self.shared.spread(states)
        output: Tensor = self.host(states)
        text = self.shared.text
        if text is None:
            return output
        height, width = states.shape[2:]
        share = self.shared.weights(Places(grid=(height, width)))
        weights = self.coefficients(states.flatten(2).transpose(1, 2), text, share)
        return output + self.up(self.down(states) * weights[:, :, None, None])
