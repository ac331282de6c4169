"""The tokens of one scale of ScanFormer: all patches, or the selected ones and a count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wholegrain.model.indexing import take


def patchify(pixels: Tensor, patch: int) -> Tensor:
    """Pixels (I, C, R, R) as patches (I, n, C patch^2), row by row, each as (C, patch, patch)."""
    grid = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


@dataclass(frozen=True)
class Chosen:
    """The selected patches of T texts, gathered to the front and padded to the longest row."""

    index: Tensor
    """(T, K) place of each on the grid; anything where `valid` is False."""
    valid: Tensor
    """bool (T, K), False at padding."""
    left_out: Tensor
    """(T,) N, how many patches of photo are not selected."""
    constant: bool
    """Whether any text leaves something out, so that there is a constant token."""

    @classmethod
    def of(cls, selected: Tensor, real: Tensor) -> Chosen:
        """Of masks bool (T, n): patches that are selected, and patches that show photo.

        The host waits for the counts, which give the shapes.
        """
        counts = selected.sum(dim=1)
        left_out = (real & ~selected).sum(dim=1)
        if len(selected):
            longest, most = torch.stack([counts.max(), left_out.max()]).tolist()
        else:
            longest = most = 0
        index = (~selected).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
        valid = torch.arange(longest, device=selected.device) < counts[:, None]
        return cls(index, valid, left_out, most > 0)


@dataclass(frozen=True)
class ScaleTokens:
    """What runs through the blocks at one scale: [REG], then patches, then what stands for many."""

    states: Tensor
    """(T, 1 + M, D)."""
    counts: Tensor
    """(T, 1 + M) how many tokens each stands for; 0 at padding."""
    chosen: Chosen | None
    """The patches among them, where those that are left out are merged; None where M is the
    grid."""


def all_tokens(
    reg: Tensor, patches: Tensor, constant: Tensor, gates: Tensor | None, real: Tensor
) -> ScaleTokens:
    """The whole grid, the constant token in the place of each patch that is left out.

    ``z e + (1 - z) c``, after all position terms.

    Args:
        reg: (D,) the scale's [REG] token.
        patches: (T, n, D) embedded.
        constant: (D,).
        gates: (T, n); None selects all.
        real: bool (T, n), False at patches without photo, which nothing attends to.
    """
    if gates is not None:
        open_ = gates.to(patches.dtype)[..., None]
        patches = open_ * patches + (1 - open_) * constant
    states = torch.cat([reg.expand(len(patches), 1, -1), patches], dim=1)
    counts = real.to(torch.promote_types(states.dtype, torch.float32))
    return ScaleTokens(states, torch.cat([torch.ones_like(counts[:, :1]), counts], dim=1), None)


def merged_tokens(
    reg: Tensor,
    embed: Callable[[Tensor, Tensor], Tensor],
    pixels: Tensor,
    image: Tensor,
    constant: Tensor,
    selected: Tensor,
    real: Tensor,
) -> ScaleTokens:
    """The selected patches, which alone are embedded, and one constant token for all others.

    Args:
        reg: (D,).
        embed: from patches of pixels (T, K, F) and their places (T, K) to (T, K, D).
        pixels: (I, n, F) patches of the images.
        image: (T,) the image of each text.
        constant: (D,).
        selected: bool (T, n).
        real: bool (T, n).
    """
    chosen = Chosen.of(selected, real)
    texts, patches = len(image), pixels.shape[1]
    source = image[:, None] * patches + chosen.index
    states = [reg.expand(texts, 1, -1), embed(take(pixels.flatten(0, 1), source), chosen.index)]
    kind = torch.promote_types(states[1].dtype, torch.float32)
    counts = [torch.ones_like(chosen.left_out[:, None]), chosen.valid]
    if chosen.constant:
        states.append(constant.expand(texts, 1, -1))
        counts.append(chosen.left_out[:, None])
    every = torch.cat([part.to(kind) for part in counts], dim=1)
    return ScaleTokens(torch.cat(states, dim=1), every, chosen)


def spread_logits(logits: Tensor, chosen: Chosen, patches: int) -> Tensor:
    """Logits of the merged tokens (T, M, 4), [REG] apart, as logits of the grid (T, patches, 4).

    All patches that are left out share those of the constant token.
    """
    own = logits[:, : chosen.index.shape[1]]
    others = logits[:, -1:] if chosen.constant else logits.new_full((len(logits), 1, 4), -torch.inf)
    own = torch.where(chosen.valid[..., None], own, others)
    index = chosen.index[..., None].expand(-1, -1, 4)
    return others.expand(-1, patches, -1).scatter(1, index, own)
