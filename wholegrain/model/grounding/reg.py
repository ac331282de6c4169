"""The [REG] fusion of TransVG (Deng et al. 2021), on which MMCA was published.

``[REG]``, the text's tokens and the image's patches, each projected to one width, pass a post-norm
transformer together; every place of that sequence has a learnt position, which queries and keys
alone see. The last state at [REG] answers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.model.adapters.condition import Condition
from wholegrain.model.concepts import ImageFeatures
from wholegrain.model.config import TextConfig
from wholegrain.model.detr import DetrLayer
from wholegrain.model.fusion_config import RegFusion
from wholegrain.model.grounding.fusion import Fused, Fusion
from wholegrain.model.grounding.records import TextStates
from wholegrain.model.indexing import take
from wholegrain.model.vision import VisionEncoder


class RegEncoder(Fusion):
    """[REG], text and patches in one sequence.

    Patches may lie on any grid: the positions of another than the configured one are interpolated,
    row by column.

    Args:
        config: sizes.
        vision: the image encoder, whose patches are read.
        text: of the text encoder, whose last states are read.
    """

    max_text: int

    def __init__(self, config: RegFusion, vision: VisionEncoder, text: TextConfig) -> None:
        super().__init__()
        self.width, self.grid, self.max_text = config.width, vision.grid, config.max_text
        self.image_projection = nn.Linear(vision.width, config.width)
        self.text_projection = nn.Linear(text.hidden_size, config.width)
        self.register = nn.Parameter(torch.empty(1, config.width))
        rows, columns = vision.grid
        places = 1 + config.max_text + rows * columns
        self.positions = nn.Parameter(torch.empty(places, config.width))
        self.layers = nn.ModuleList(DetrLayer(config) for _ in range(config.layers))
        # As published: unit normal tables, Xavier matrices, torch's own for the projections.
        nn.init.normal_(self.register)
        nn.init.normal_(self.positions)
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        vision: VisionEncoder,
        texts: TextStates,
        features: ImageFeatures,
        image: Tensor,
        condition: Condition,
    ) -> Fused:
        """See `Fusion.forward`; vectors are (T, 1, W).

        Raises:
            ValueError: a text has more tokens than there are positions.
        """
        words = self.text_projection(texts.states)
        patches = take(self.image_projection(features.patches), image)
        register = self.register.to(words.dtype).expand(len(texts), 1, -1)
        states = torch.cat([register, words, patches], dim=1)
        positions = self._places(words.shape[1], features.grid).to(states.dtype)
        seen = _seen(texts.mask, features, image)
        for layer in self.layers[:-1]:
            states = layer(states, positions, seen)
        return Fused(self.layers[-1](states, positions, seen, first=1))

    def _places(self, length: int, grid: tuple[int, int]) -> Tensor:
        """Positions (1 + L + P, W) of [REG], L tokens and the patches of a grid."""
        if length > self.max_text:
            raise ValueError(
                f"a text of {length} tokens exceeds the {self.max_text} positions of the fusion "
                "(fusion.max_text); cut texts at data.max_tokens"
            )
        before = self.positions[: 1 + length]
        patches = self.positions[1 + self.max_text :]
        if grid != self.grid:
            table = patches.T.unflatten(1, self.grid)[None]
            table = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
            patches = table[0].flatten(1).T
        return torch.cat([before, patches])


def _seen(mask: Tensor, features: ImageFeatures, image: Tensor) -> Tensor:
    """Bool (T, 1 + L + P): [REG], the tokens of `mask` (T, L), patches with any pixel of photo."""
    register = torch.ones_like(mask[:, :1])
    if features.pixel_mask is None:
        rows, columns = features.grid
        photo = register.expand(-1, rows * columns)
    else:
        share = F.adaptive_avg_pool2d(features.pixel_mask[:, None].float(), features.grid)
        photo = (share.flatten(1) > 0)[image]
    return torch.cat([register, mask, photo], dim=1)
