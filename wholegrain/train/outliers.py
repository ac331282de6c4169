"""Updates whose gradient is far from those before it, found without a look at the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wholegrain.errors import CheckpointError
from wholegrain.train.config import OutlierConfig

# Of the mean. Norms that do not vary at all would make an outlier of each rounding, and would
# never admit another level.
_LEAST_DEVIATION = 0.01


class OutlierWatch:
    """Compares each gradient norm with the mean and deviation of those before it.

    Norms, their number and every decision stay on the device, so that the host never waits. The
    window holds the last `config.window` norms that were finite. One beyond

        mean + config.deviations * max(deviation, mean / 100)

    is an outlier, once half of the window is there. It enters the window cut down to that bound:
    a single spike leaves the mean almost as it was, while a lasting change raises mean and
    deviation with each update (the deviation by a factor of about sqrt(1 + deviations^2 / window))
    until it is what is normal.

    All ranks see the same norm and decide the same.
    """

    def __init__(self, config: OutlierConfig) -> None:
        self._deviations, self._window = config.deviations, config.window
        self._norms = torch.zeros(config.window, dtype=torch.float64)
        self._count = torch.zeros((), dtype=torch.int64)

    def see(self, norm: Tensor, skipped: Tensor) -> Tensor:
        """Takes note of an update's gradient norm.

        Args:
            norm: () before clipping.
            skipped: () nonzero where the update is left out because it is not finite; such a norm
                is no outlier and does not enter the window.

        Returns:
            () fp32, on the norm's device: 1 where the update is an outlier, else 0.
        """
        norm = norm.detach().double()
        self._norms, self._count = self._norms.to(norm.device), self._count.to(norm.device)
        places = torch.arange(self._window, device=norm.device)
        known = (places < self._count).double()
        number = known.sum()
        mean = (self._norms * known).sum() / number.clamp(min=1)
        variance = ((self._norms - mean).square() * known).sum() / (number - 1).clamp(min=1)
        deviation = torch.maximum(variance.sqrt(), mean * _LEAST_DEVIATION)
        bound = mean + self._deviations * deviation
        counts = torch.isfinite(norm) & (skipped == 0)
        # Norms of nothing but zero say nothing of what is large.
        judged = (2 * self._count >= self._window) & (mean > 0)
        outlier = counts & judged & (norm > bound)
        entering = torch.where(outlier, bound, norm)
        here = (places == self._count % self._window) & counts
        self._norms = torch.where(here, entering, self._norms)
        self._count = self._count + counts
        return outlier.float()

    def state(self) -> dict[str, Any]:
        """The window, exact to the bit and ready for JSON; the host waits here."""
        count = int(self._count)
        norms = self._norms[: min(count, self._window)].tolist()
        return {"count": count, "norms": [norm.hex() for norm in norms]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from `state`.

        Raises:
            CheckpointError: it is no state of a window of this size.
        """
        try:
            count = int(state["count"])
            norms = [float.fromhex(norm) for norm in state["norms"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint's outlier window cannot be read ({error!r}); resume from another "
                "checkpoint"
            ) from error
        if len(norms) != min(count, self._window) or not all(map(math.isfinite, norms)):
            raise CheckpointError(
                f"the checkpoint's outlier window holds {len(norms)} norms of {count} updates, "
                f"run.outliers.window is {self._window}; give it the value that the run began with"
            )
        self._norms = torch.zeros(self._window, dtype=torch.float64)
        self._norms[: len(norms)] = torch.tensor(norms, dtype=torch.float64)
        self._count = torch.tensor(count)


class OutlierSteps:
    """Remembers on the device which steps were outliers, until a line of metrics is written."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._seen: list[Tensor] = []

    def add(self, step: int, norm: Tensor, outlier: Tensor) -> None:
        """Takes note of an update; `norm` and `outlier` () stay where they are."""
        self._steps.append(step)
        self._seen.append(torch.stack([norm.detach().double(), outlier.double()]))

    def take(self) -> list[tuple[int, float]]:
        """(step, gradient norm) of each outlier since the last look. The host waits here."""
        found = []
        if self._seen:
            rows = torch.stack(self._seen).tolist()
            found = [(s, norm) for s, (norm, is_) in zip(self._steps, rows, strict=True) if is_]
        self._steps, self._seen = [], []
        return found
