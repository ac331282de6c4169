"""How text and image become one vector a text: what every way of fusing them has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from wholegrain.model.adapters.condition import Condition
from wholegrain.model.concepts import ImageFeatures
from wholegrain.model.grounding.records import TextStates
from wholegrain.model.vision import VisionEncoder


class Fused(NamedTuple):
    """T texts, each fused with its image."""

    vectors: Tensor
    """(T, S, W): one vector a scale, coarse to fine; the last one answers. S is 1 for all but
    ScanFormer."""
    kept: Tensor | None = None
    """(T, S) share of each scale's patches that were read, where some are left out."""
    gates: Tensor | None = None
    """(T, S - 1) mean probability that a patch of the scales after the first is read; a budget
    pulls on it."""
    answers: Tensor | None = None
    """(T,) scale whose vector answers, where it is not the last for all."""


def share_of_patches(shares: Tensor) -> Tensor:
    """The share (T,) of the patches of several scales together, from that of each (T, S).

    Each scale has four times the patches of the one before.
    """
    weights = 4.0 ** torch.arange(shares.shape[1], device=shares.device, dtype=shares.dtype)
    return shares @ (weights / weights.sum())


class BlockAdapter(Protocol):
    """An adapter that adds to the outputs of whole blocks."""

    def sites(self) -> tuple[str, ...]:
        """Names of the sites that it adds to."""

    def add_at(self, site: str, states: Tensor, output: Tensor) -> Tensor:
        """A block's output (..., D) with the addition, given the block's input `states`."""


class Fusion(nn.Module, ABC):
    """A way of fusing texts and images that brings weights of its own.

    X-VLM's cross encoder, which pretraining learns too, belongs to the model itself.

    Attributes:
        width: W, channels of a fused vector.
        scales: S, vectors a text.
        image_per_text: whether its own pass over the image reads the text, so that nothing of an
            image can be shared by several texts.
        max_text: tokens of the longest text that it reads; None for any number.
        beside: the model's adapters of whole blocks, for a fusion that runs blocks itself.
    """

    width: int
    scales: int = 1
    image_per_text: bool = False
    max_text: int | None = None
    beside: Sequence[BlockAdapter] = ()

    def encode(self, vision: VisionEncoder, images: Tensor) -> ImageFeatures:
        """What is read of normalised images (I, 3, R, R), text unseen."""
        features: ImageFeatures = vision(images)
        return features

    @abstractmethod
    def forward(
        self,
        vision: VisionEncoder,
        texts: TextStates,
        features: ImageFeatures,
        image: Tensor,
        condition: Condition,
    ) -> Fused:
        """Fuses T texts with their images.

        Args:
            vision: the model's image encoder, for fusions that run its blocks themselves.
            texts: the T texts.
            features: of `encode`.
            image: (T,) row of `features` that each text reads.
            condition: what adapters of the image encoder's blocks are conditioned on, already set
                to these texts; a fusion that runs the blocks says with `Condition.counting` what
                the states it runs stand for, and with `Condition.off` that they are no image.
        """

    @property
    def stops_early(self) -> bool:
        """Whether prediction reads finer scales only where the coarser ones do not do."""
        return False

    def read_until(
        self,
        vision: VisionEncoder,
        texts: TextStates,
        features: ImageFeatures,
        image: Tensor,
        condition: Condition,
        quality: Callable[[int, Tensor], Tensor],
    ) -> tuple[Fused, Tensor]:
        """As `forward`, scale by scale until the answer is expected to be good enough.

        Args:
            vision, texts, features, image, condition: as of `forward`.
            quality: from a scale and vectors (R, W) of it to the expected IoU (R,).

        Returns:
            The fused texts, and the scale (T,) that answers each.
        """
        raise NotImplementedError(f"{type(self).__name__} does not stop early")
