"""Visual concepts: an image, a region or an object as one vector and a set of visible patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wholegrain.model.indexing import take
from wholegrain.model.memory import Memory


@dataclass
class ImageFeatures:
    """What an image encoder gives for I images, once."""

    cls: Tensor
    """(I, D) image vectors."""
    patches: Tensor
    """(I, P, D) patch tokens, row-major over `grid`."""
    grid: tuple[int, int]
    """(rows, columns) of the patch grid."""
    pyramid: tuple[Tensor, ...] = ()
    """Feature maps (I, C_s, H_s, W_s) of the stages, finest first, where the encoder has them."""
    before_local: Tensor | None = None
    """(I, 1 + P, D) tokens that enter the local-attention blocks, where regions have some."""
    pixel_mask: Tensor | None = None
    """bool (I, H, W) of pixels that are photo rather than padding; None where all are."""
    memory: Memory | None = None
    """Keys and values of the whole images for the cross encoder, once somebody asked for them."""


@dataclass
class VisualConcepts:
    """M concepts over N sets of patches."""

    cls: Tensor
    """(M, D) concept vectors."""
    patches: Tensor
    """(N, P, D) patch tokens."""
    patch_row: Tensor
    """(M,) row of `patches` that each concept reads."""
    mask: Tensor
    """bool (M, P), True at patches of the concept."""
    visible: int | None = None
    """How many entries of `mask` are True, where the host knows."""
    base: Tensor | None = None
    """The (I, P, D) patches that `patches` begins with, where it has more rows."""

    def __len__(self) -> int:
        return len(self.cls)

    def sequence(self) -> Tensor:
        """(M, 1 + P, D): the concept's vector and all patches of its image."""
        return torch.cat([self.cls[:, None], self.patches[self.patch_row]], dim=1)


@dataclass(frozen=True)
class Shown:
    """What the host knows of the masks (C, P) of a batch, so that the device need not be asked."""

    visible: int
    """How many patches all masks show together."""
    regional: Tensor
    """(Q,) the concepts that do not show every patch."""
    regional_visible: int
    """How many patches those show together."""

    @classmethod
    def of(cls, mask: Tensor) -> Shown:
        """Counts masks (C, P); makes the host wait where they lie on another device."""
        regional = (~mask.all(dim=1)).nonzero().squeeze(1)
        return cls(int(mask.sum()), regional, int(mask[regional].sum()))


def pooled_concepts(
    features: ImageFeatures, image: Tensor, mask: Tensor, visible: int | None = None
) -> VisualConcepts:
    """Concepts whose vector is the mean of the final patches that their box touches.

    ``cls_c = sum_p m_cp X_p / sum_p m_cp`` (X-VLM with Swin); free of extra encoder work.

    Args:
        features: of the images.
        image: (C,) image of each concept.
        mask: bool (C, P), at least one True a row.
        visible: how many are True in all, where the host knows.
    """
    weight = mask.to(features.patches.dtype)
    weight = weight / weight.sum(dim=1, keepdim=True)
    cls = torch.einsum("cp,cpd->cd", weight, take(features.patches, image))
    return VisualConcepts(cls, features.patches, image, mask, visible)


def whole_images(features: ImageFeatures) -> VisualConcepts:
    """Each image as the concept whose box is everything."""
    count, patches, _ = features.patches.shape
    rows = torch.arange(count, device=features.cls.device)
    mask = torch.ones(count, patches, dtype=torch.bool, device=rows.device)
    return VisualConcepts(features.cls, features.patches, rows, mask, count * patches)


def join(first: VisualConcepts, second: VisualConcepts) -> VisualConcepts:
    """Concepts of `first`, then of `second`; patches that both read stand in the result once."""
    if second.patches is first.patches or second.patches is first.base:
        patches, offset = first.patches, 0
    else:
        patches = torch.cat([first.patches, second.patches])
        offset = len(first.patches)
    known = first.visible is not None and second.visible is not None
    return VisualConcepts(
        cls=torch.cat([first.cls, second.cls]),
        patches=patches,
        patch_row=torch.cat([first.patch_row, second.patch_row + offset]),
        mask=torch.cat([first.mask, second.mask]),
        visible=(first.visible or 0) + (second.visible or 0) if known else None,
        base=first.base,
    )
