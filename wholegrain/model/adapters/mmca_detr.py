"""MMCA on DETR's layers, whose grid follows the image and whose positions stand apart.

With s a layer's input and p the positions, queries and keys are projected from ``x = s + p``.
Beside the projection an update makes ``y = W0 x + B diag(w) A x``. Composed, as the authors'
release has it, it makes ``y = W0 (x + B diag(w) A s)``, where positions reach neither A nor the
coefficients w.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from wholegrain.model.adapters.condition import Condition
from wholegrain.model.adapters.places import Places
from wholegrain.model.adapters.sites import Site
from wholegrain.model.adapters.updates import LinearUpdate
from wholegrain.model.config import MmcaConfig
from wholegrain.model.detr import DetrEncoder, DetrLayer

if TYPE_CHECKING:
    from wholegrain.model.adapters.mmca import Mmca


def hook_detr(
    adapter: Mmca, update: LinearUpdate, site: Site, vision: DetrEncoder, config: MmcaConfig
) -> None:
    """Hooks an update into a projection of one of DETR's layers.

    Args:
        adapter: says whether a pass is conditioned, and on what.
        update: as wide as the site.
        site: a ``vision.block.N.query``, ``key``, ``value`` or ``mlp``.
        vision: the encoder that the site is of.
        config: whose `form` is that of queries and keys; values and the MLP, which see no
            positions, have their update beside them in both.
    """
    stride = vision.image_size // vision.grid[0]
    if config.form == "composed" and site.name.endswith((".query", ".key")):
        composed = _Composed(adapter, update, stride)
        layer = vision.layers[int(site.name.split(".")[2]) - 1]
        assert isinstance(layer, DetrLayer)
        layer.register_forward_pre_hook(composed.see_positions)
        site.module.register_forward_pre_hook(composed)
    else:
        site.module.register_forward_hook(_Beside(adapter, update, stride))


class _Hook:
    """An update with what tells its coefficients."""

    def __init__(self, adapter: Mmca, update: LinearUpdate, stride: int) -> None:
        self.adapter, self.update, self.stride = adapter, update, stride

    def updated(self, states: Tensor) -> Tensor:
        """The update (T, P, out) of states (T, P, D)."""
        condition = self.adapter.condition
        share = condition.weights(_places(condition, states, self.stride))
        update: Tensor = self.update(states, self.adapter.text(), share)
        return update


class _Beside(_Hook):
    """Adds the update of a projection's input to its output."""

    def __call__(self, _: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Input (T, P, D), output (T, P, out)."""
        return output + self.updated(given[0]) if self.adapter.active else None


class _Composed(_Hook):
    """Adds the update of a layer's states to what its projection reads."""

    positions: Tensor

    def see_positions(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        """Remembers the positions (P, D) that the layer is about to add.

        The states themselves will not do: with activation checkpointing a layer is run again in
        the backward pass without its own hooks, on states of an earlier pass.
        """
        self.positions = given[1]

    def __call__(self, _: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Input (T, P, D) with positions."""
        if not self.adapter.active:
            return None
        placed = given[0]
        return (placed + self.updated(placed - self.positions),)


def _places(condition: Condition, states: Tensor, stride: int) -> Places:
    """How states (T, P, D) lie over the image; where nothing is padded the shape is all one."""
    if condition.image_mask is None:
        return Places((1, states.shape[1]))
    rows, columns = (-(-side // stride) for side in condition.image_mask.shape[1:])
    return Places((rows, columns))
