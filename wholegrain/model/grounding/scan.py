"""ScanFormer: reads an image coarse to fine, and of the finer scales only what the text calls for.

One plain vision transformer is the body of text and image (Su et al., CVPR 2024). The text runs
first; then the scales of an image pyramid, the coarsest whole. Tokens of a scale see one another,
the text and all earlier scales, whose keys and values are kept, and never a later one. After the
first half of the blocks each patch says which of its four children at the next scale are read. The
[REG] token of each scale, after all blocks, is the fused vector that a box is read from.

Patches that are left out are one constant token, after all position terms. In training it stands
in their places, so that the selection learns; at prediction there is one for all of them, whose
count enters as log N, and only the selected patches are embedded and run. Both are the same
function (see `scan_attention`), the latter at the cost of what is read.

Not known from the paper, and so choices of this design: the sizes of the scales, four children a
patch, that children of what is left out stay out, and the straight-through gates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.model.adapters.condition import Condition
from wholegrain.model.concepts import ImageFeatures
from wholegrain.model.config import ScanFusion
from wholegrain.model.grounding.fusion import Fused, Fusion
from wholegrain.model.grounding.records import TextStates
from wholegrain.model.grounding.scan_attention import KeyValues, run_block
from wholegrain.model.grounding.scan_body import (
    check_body,
    class_state,
    embed_patches,
    scale_positions,
)
from wholegrain.model.grounding.scan_pass import Choose, Scanning
from wholegrain.model.grounding.scan_select import Selector
from wholegrain.model.vision import VisionEncoder


class ScanFormer(Fusion):
    """Runs the image encoder's blocks over a text and, scale by scale, over an image.

    Of the encoder it uses the patch embedding, positions, class token, blocks and norms; its own
    are a projection of text states, type and scale vectors, a [REG] offset a scale, the constant
    token and the selector.

    Args:
        config: of the fusion.
        vision: the model's image encoder, a plain ViT; only looked at.
        text_width: channels of text states.

    Raises:
        ConfigError: the encoder is none in whose blocks equal patches stay equal, or the image size
            cannot be halved often enough.
    """

    image_per_text = True

    def __init__(self, config: ScanFusion, vision: VisionEncoder, text_width: int) -> None:
        super().__init__()
        check_body(vision, config.scales)
        self.config = config
        self.scales = config.scales
        self.width = width = vision.width
        self.text_projection = nn.Linear(text_width, width)
        self.text_type = nn.Parameter(torch.empty(width))
        # These two start at zero: the patches then enter the blocks as the encoder knows them.
        self.image_type = nn.Parameter(torch.zeros(width))
        self.scale_type = nn.Parameter(torch.zeros(config.scales, width))
        self.reg = nn.Parameter(torch.empty(config.scales, width))
        self.constant = nn.Parameter(torch.empty(width))
        self.selector = Selector(width, config.selector_width, config.gate_bias)
        for weight in (self.text_projection.weight, self.text_type, self.reg, self.constant):
            nn.init.normal_(weight, std=0.02)
        nn.init.zeros_(self.text_projection.bias)

    def encode(self, vision: VisionEncoder, images: Tensor) -> ImageFeatures:
        """The pyramid of pixels, finest first; no text is needed for more, and no patch is run."""
        pyramid = [images]
        for _ in range(self.scales - 1):
            pyramid.append(F.avg_pool2d(pyramid[-1], 2))
        cls = images.new_zeros(len(images), 0)
        patches = images.new_zeros(len(images), 0, self.width)
        return ImageFeatures(cls, patches, vision.grid, tuple(pyramid))

    def scan(
        self,
        vision: VisionEncoder,
        texts: TextStates,
        features: ImageFeatures,
        image: Tensor,
        condition: Condition,
        choose: Choose | None = None,
    ) -> Scanning:
        """The scales one by one, coarse to fine, so that a caller may stop or narrow the texts.

        Args:
            vision, texts, features, image, condition: as of `forward`.
            choose: selects in the place of the model's own selection, for measurements.
        """
        return Scanning(self, vision, texts, features, image, condition, choose)

    def forward(
        self,
        vision: VisionEncoder,
        texts: TextStates,
        features: ImageFeatures,
        image: Tensor,
        condition: Condition,
    ) -> Fused:
        """Fused vectors (T, S, D) of all scales; see `Fusion.forward`.

        The gates' mean probabilities are those of training; at prediction there are none.
        """
        states = list(self.scan(vision, texts, features, image, condition))
        gates = [state.probability for state in states[1:] if state.probability is not None]
        return Fused(
            torch.stack([state.vector for state in states], dim=1),
            torch.stack([state.kept for state in states], dim=1),
            torch.stack(gates, dim=1) if gates else None,
        )

    @property
    def stops_early(self) -> bool:
        return self.config.exit_quality is not None

    def read_until(
        self,
        vision: VisionEncoder,
        texts: TextStates,
        features: ImageFeatures,
        image: Tensor,
        condition: Condition,
        quality: Callable[[int, Tensor], Tensor],
    ) -> tuple[Fused, Tensor]:
        """Reads finer scales only for texts whose box is not yet expected to be good enough.

        The host waits once a scale to learn which texts go on.

        Args:
            vision, texts, features, image, condition: as of `forward`.
            quality: from a scale and vectors (R, D) of it to predicted IoU (R,), compared with
                ``exit_quality``.

        Returns:
            The fused texts, and the scale (T,) that answers each. Vectors of scales that a text did
            not read repeat the one that answers; of those scales it has kept nothing.
        """
        enough = self.config.exit_quality
        rows = torch.arange(len(texts), device=image.device)
        answers = torch.zeros_like(rows)
        vectors: Tensor | None = None
        kept: Tensor | None = None
        scanning = self.scan(vision, texts, features, image, condition)
        for state in scanning:
            if vectors is None or kept is None:
                vectors = state.vector[:, None].repeat(1, self.scales, 1)
                kept = state.kept.new_zeros(len(rows), self.scales)
            vectors[rows, state.scale :] = state.vector[:, None]
            kept[rows, state.scale] = state.kept
            answers[rows] = state.scale
            if enough is None or state.scale + 1 == self.scales:
                continue
            on = (quality(state.scale, state.vector) < enough).nonzero().squeeze(1)
            if not len(on):
                break
            rows = rows[on]
            scanning.narrow(on)
        assert vectors is not None  # there is a first scale
        return Fused(vectors, kept), answers

    # --- what a scanning asks for ---------------------------------------------------------------

    def enter_text(self, vision: VisionEncoder, texts: TextStates) -> Tensor:
        """(T, L, D) of the texts, as they enter the blocks."""
        states: Tensor = vision.backbone.norm_pre(
            self.text_projection(texts.states) + self.text_type
        )
        return states

    def enter_patches(
        self, vision: VisionEncoder, patches: Tensor, scale: int, places: Tensor | None = None
    ) -> Tensor:
        """Patches of pixels (..., K, 3 p^2) of a scale, as they enter the blocks (..., K, D).

        Args:
            vision: the image encoder.
            patches: all n of a grid in order, or K of them.
            scale: 0 is the coarsest.
            places: (..., K) which of the grid they are; None for all in order.
        """
        positions = scale_positions(vision, self.scales - 1 - scale)
        positions = positions + self.image_type + self.scale_type[scale]
        own = positions if places is None else positions[places]
        states: Tensor = vision.backbone.norm_pre(embed_patches(vision, patches) + own)
        return states

    def enter_reg(self, vision: VisionEncoder, scale: int) -> Tensor:
        """(D,) the [REG] token of a scale: the encoder's class token and an offset of its own.

        The class token is what the blocks have learnt to gather an image in.
        """
        state: Tensor = vision.backbone.norm_pre(class_state(vision) + self.reg[scale])
        return state

    def run_block(
        self, number: int, block: Any, states: Tensor, before: KeyValues | None, bias: Tensor
    ) -> tuple[Tensor, KeyValues]:
        """One block of the body; see `scan_attention.run_block`. Blocks count from 1."""
        after, seen = run_block(block, states, before, bias, self.config.counts_as)
        # The block is not called as a module, so that hooks on it stay silent.
        for adapter in self.beside:
            site = f"vision.block.{number}"
            if site in adapter.sites():
                after = adapter.add_at(site, states, after)
        return after, seen
