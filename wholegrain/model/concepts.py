"""Visual concepts: an image, a region or an object as one vector and a set of visible patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wholegrain.model.indexing import take


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

    def __len__(self) -> int:
        return len(self.cls)

    def sequence(self) -> Tensor:
        """(M, 1 + P, D): the concept's vector and all patches of its image."""
        return torch.cat([self.cls[:, None], self.patches[self.patch_row]], dim=1)


def pooled_concepts(features: ImageFeatures, image: Tensor, mask: Tensor) -> VisualConcepts:
    """Concepts whose vector is the mean of the final patches that their box touches.

    ``cls_c = sum_p m_cp X_p / sum_p m_cp`` (X-VLM with Swin); free of extra encoder work.

    Args:
        features: of the images.
        image: (C,) image of each concept.
        mask: bool (C, P), at least one True a row.
    """
    weight = mask.to(features.patches.dtype)
    weight = weight / weight.sum(dim=1, keepdim=True)
    cls = torch.einsum("cp,cpd->cd", weight, take(features.patches, image))
    return VisualConcepts(cls, features.patches, image, mask)


def whole_images(features: ImageFeatures) -> VisualConcepts:
    """Each image as the concept whose box is everything."""
    count, patches, _ = features.patches.shape
    rows = torch.arange(count, device=features.cls.device)
    mask = torch.ones(count, patches, dtype=torch.bool, device=rows.device)
    return VisualConcepts(features.cls, features.patches, rows, mask)


def join(first: VisualConcepts, second: VisualConcepts) -> VisualConcepts:
    """Concepts of `first`, then of `second`; patch tensors that are one object stay one."""
    if first.patches is second.patches:
        patches, offset = first.patches, 0
    else:
        patches = torch.cat([first.patches, second.patches])
        offset = len(first.patches)
    return VisualConcepts(
        cls=torch.cat([first.cls, second.cls]),
        patches=patches,
        patch_row=torch.cat([first.patch_row, second.patch_row + offset]),
        mask=torch.cat([first.mask, second.mask]),
    )
