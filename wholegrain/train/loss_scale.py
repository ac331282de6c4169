"""The loss scale of fp16, which lives on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wholegrain.errors import CheckpointError

_FIRST, _LEAST, _MOST = 2.0**16, 1.0, 2.0**24
_GROWTH, _BACKOFF, _PATIENCE = 2.0, 0.5, 2000


class LossScale:
    """Keeps fp16's gradients within its range (Micikevicius et al. 2018).

    The loss is multiplied by the scale before its backward pass and the gradients are divided by it
    in the update. A gradient that is not finite halves the scale; 2,000 good updates in a row
    double it. It stays within 1 .. 2^24, and no decision about it waits for the device.
    """

    def __init__(self) -> None:
        self._scale = torch.tensor(_FIRST)
        self._good = torch.tensor(0.0)

    def on(self, device: torch.device) -> Tensor:
        """The scale, () fp32, on a device."""
        if self._scale.device != device:
            self._scale, self._good = self._scale.to(device), self._good.to(device)
        return self._scale

    def update(self, skipped: Tensor) -> Tensor:
        """Takes note of an update.

        Args:
            skipped: () 1 where its gradient was not finite, else 0.

        Returns:
            () 1 where the gradient was not finite although the scale could fall no further: then it
            is not the scale that the update was lost to.
        """
        scale = self.on(skipped.device)
        lost = skipped * (scale <= _LEAST)
        good = (self._good + 1) * (1 - skipped)
        grows = good >= _PATIENCE
        raised = torch.where(grows, scale * _GROWTH, scale)
        self._scale = torch.where(skipped > 0, scale * _BACKOFF, raised).clamp(_LEAST, _MOST)
        self._good = torch.where(grows, 0.0, good)
        return lost

    def state(self) -> dict[str, Any]:
        """Ready for JSON; the host waits here."""
        return {"scale": float(self._scale), "good": int(self._good)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from `state`.

        Raises:
            CheckpointError: it is no state of a loss scale.
        """
        try:
            scale, good = float(state["scale"]), int(state["good"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint's loss scale cannot be read ({error!r}); resume from another "
                "checkpoint"
            ) from error
        if not (math.isfinite(scale) and _LEAST <= scale <= _MOST and 0 <= good < _PATIENCE):
            raise CheckpointError(
                f"the checkpoint's loss scale is {scale} after {good} good updates, which no run "
                "writes; resume from another checkpoint"
            )
        self._scale, self._good = torch.tensor(scale), torch.tensor(float(good))
