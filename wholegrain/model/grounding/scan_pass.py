"""One scanning of ScanFormer: a text's and its image's way through the blocks, scale by scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from wholegrain.errors import DataError
from wholegrain.model.adapters.condition import Condition
from wholegrain.model.concepts import ImageFeatures
from wholegrain.model.grounding.records import TextStates
from wholegrain.model.grounding.scan_attention import KeyValues, log_counts
from wholegrain.model.grounding.scan_body import patch_side, photo_patches
from wholegrain.model.grounding.scan_select import of_children, of_parents, training_gates
from wholegrain.model.grounding.scan_tokens import (
    ScaleTokens,
    all_tokens,
    merged_tokens,
    patchify,
    spread_logits,
)
from wholegrain.model.indexing import take
from wholegrain.model.vision import VisionEncoder

if TYPE_CHECKING:
    from wholegrain.model.grounding.scan import ScanFormer

Choose = Callable[[int, Tensor], Tensor]
"""From a scale and its selection logits (T, n) to the patches that are read, bool (T, n); nobody
asks whether their parents are."""


class ScaleState(NamedTuple):
    """What one scale has to say of T texts."""

    scale: int
    """0 is the coarsest."""
    vector: Tensor
    """(T, D) the scale's [REG] state, after the encoder's last norm."""
    selected: Tensor
    """bool (T, n) patches of the grid that were read, row by row."""
    kept: Tensor
    """(T,) share of the scale's patches of photo that were read."""
    probability: Tensor | None
    """(T,) mean probability that a patch of the scale is read, of which the selection learns; None
    at the coarsest scale and outside training."""


class Scanning(Iterator[ScaleState]):
    """The scales of T texts, coarse to fine.

    In training all tokens are kept and the host waits for nothing. Otherwise the selected patches
    are gathered, unless the configuration says no.

    Args:
        fusion: whose weights and settings are used.
        vision: the image encoder, whose blocks are run.
        texts: T texts.
        features: of the fusion's `encode`.
        image: (T,) row of `features` that each text reads.
        condition: of adapters in the blocks.
        choose: selects in the place of the fusion's selector; None leaves it to that.

    Raises:
        DataError: the images are not of the encoder's size.
    """

    def __init__(
        self,
        fusion: ScanFormer,
        vision: VisionEncoder,
        texts: TextStates,
        features: ImageFeatures,
        image: Tensor,
        condition: Condition,
        choose: Choose | None = None,
    ) -> None:
        size = tuple(features.pyramid[0].shape[-2:])
        if size != (vision.image_size, vision.image_size):
            raise DataError(
                f"the images are {size[0]} x {size[1]}, but the encoder's positions are of "
                f"vision.image_size {vision.image_size}; resize them"
            )
        self._fusion, self._vision, self._choose = fusion, vision, choose
        self._texts, self._features, self._image = texts, features, image
        self._condition, self._image_mask = condition, condition.image_mask
        self._conditioned = condition.text is not None
        self._scale = 0
        self._gates: Tensor | None = None  # (T, n) of the scale to come; bool outside training
        self._probability: Tensor | None = None  # (T, n)
        self._blocks = vision.blocks()
        self._seen: list[KeyValues | None] = [None] * len(self._blocks)
        states = fusion.enter_text(vision, texts)
        kind = torch.promote_types(states.dtype, torch.float32)
        self._bias = log_counts(texts.mask.to(kind))
        with condition.off():
            self._run(states, 0, len(self._blocks))

    @property
    def merges(self) -> bool:
        """Whether one token stands for all patches that are left out.

        Tensors without values have no counts to give.
        """
        fusion = self._fusion
        return fusion.config.merge and not fusion.training and not self._image.is_meta

    def narrow(self, rows: Tensor) -> None:
        """Goes on with the texts `rows` (R,) of those that there are."""
        self._texts, self._image = self._texts.take(rows), self._image[rows]
        self._seen = [each if each is None else each.take(rows) for each in self._seen]
        self._bias = self._bias[rows]
        self._gates = None if self._gates is None else self._gates[rows]
        self._probability = None if self._probability is None else self._probability[rows]

    def __next__(self) -> ScaleState:
        fusion, scale = self._fusion, self._scale
        if scale == fusion.scales:
            raise StopIteration
        real = self._photo(scale)
        selected = real if self._gates is None else real & (self._gates.detach() >= 0.5)
        shown = real.sum(dim=1)
        kept = selected.sum(dim=1) / shown
        probability = None
        if self._probability is not None:
            probability = torch.sum(self._probability * real, dim=1) / shown
        tokens = self._tokens(scale, selected, real)
        self._bias = torch.cat([self._bias, log_counts(tokens.counts)], dim=1)
        half = len(self._blocks) // 2
        with self._counting(tokens.counts):
            states = self._run(tokens.states, 0, half)
            if scale + 1 < fusion.scales:
                self._select(states[:, 1:], tokens, scale)
            states = self._run(states, half, len(self._blocks))
        self._scale += 1
        vector: Tensor = self._vision.backbone.norm(states[:, 0])
        return ScaleState(scale, vector, selected, kept, probability)

    def _halvings(self, scale: int) -> int:
        return self._fusion.scales - 1 - scale

    def _photo(self, scale: int) -> Tensor:
        """Bool (T, n): the patches that show photo rather than padding."""
        mask, halvings = self._features.pixel_mask, self._halvings(scale)
        if mask is None:
            side = self._vision.grid[0] >> halvings
            return self._texts.mask.new_ones(len(self._image), side * side)
        return photo_patches(self._vision, mask, halvings)[self._image]

    def _tokens(self, scale: int, selected: Tensor, real: Tensor) -> ScaleTokens:
        fusion, vision = self._fusion, self._vision
        pixels = self._features.pyramid[self._halvings(scale)]
        patches = patchify(pixels, patch_side(vision))
        reg = fusion.enter_reg(vision, scale)
        if self.merges:

            def embed(some: Tensor, places: Tensor) -> Tensor:
                return fusion.enter_patches(vision, some, scale, places)

            return merged_tokens(reg, embed, patches, self._image, fusion.constant, selected, real)
        own = take(fusion.enter_patches(vision, patches, scale), self._image)
        return all_tokens(reg, own, fusion.constant, self._gates, real)

    def _run(self, states: Tensor, first: int, end: int) -> Tensor:
        for place in range(first, end):
            states, self._seen[place] = self._fusion.run_block(
                place + 1, self._blocks[place], states, self._seen[place], self._bias
            )
        return states

    def _select(self, states: Tensor, tokens: ScaleTokens, scale: int) -> None:
        """Sets the next scale's gates from this one's tokens (T, M, D) after half of the blocks."""
        settings, side = self._fusion.config, self._vision.grid[0] >> self._halvings(scale)
        logits = self._fusion.selector(states)
        if tokens.chosen is not None:
            logits = spread_logits(logits, tokens.chosen, side * side)
        logits = of_children(logits, side)
        if self._fusion.training:
            # A parent's gate is a factor: it learns from what its children give as well.
            self._probability = self._under(self._probability, logits.sigmoid(), side)
            gates = training_gates(logits, settings.temperature, settings.noise, settings.mix)
        else:
            gates = logits >= 0
        if self._choose is None:
            self._gates = self._under(self._gates, gates, side)
        else:
            self._gates = self._choose(scale + 1, logits)

    def _under(self, parents: Tensor | None, own: Tensor, side: int) -> Tensor:
        """Values (T, 4 side^2) of patches, whose parents (T, side^2) have a say."""
        if parents is None or not self._fusion.config.hierarchical:
            return own
        return own * of_parents(parents, side)

    @contextmanager
    def _counting(self, counts: Tensor) -> Iterator[None]:
        """Within the block, adapters know the texts at hand and what each token counts for."""
        if not self._conditioned:
            yield
            return
        condition = self._condition
        with (
            condition.on(self._texts, self._image, self._image_mask),
            condition.counting(counts),
        ):
            yield
