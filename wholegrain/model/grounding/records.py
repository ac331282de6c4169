"""What the parts of grounding hand to one another."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TextStates:
    """T texts as the text encoder leaves them; texts are always encoded before images."""

    states: Tensor
    """(T, L, D) of the last text layer."""
    mask: Tensor
    """bool (T, L), True at tokens."""
    layers: tuple[Tensor, ...] = ()
    """(T, L, D) after each text layer, first to last; the last is `states`."""

    def __len__(self) -> int:
        return len(self.states)

    def take(self, rows: Tensor) -> TextStates:
        """The texts `rows` (R,), in that order and as often as they are named."""
        layers = tuple(states[rows] for states in self.layers)
        return TextStates(self.states[rows], self.mask[rows], layers)
