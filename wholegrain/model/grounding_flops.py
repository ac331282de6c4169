"""What a step of learning to ground costs: counted by torch once, on tensors without values.

A formula would have to know which parts are frozen, where adapters sit and from which block on an
image runs once a text. Instead a twin of the model without values runs a few small steps; what a
step costs is linear in the images, the texts, their tokens and their squared lengths, so that these
few say it of every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wholegrain.model.concepts import ImageFeatures, whole_images
from wholegrain.model.multigrain import MultiGrainModel


class GroundingCost:
    """The useful work of a step that finds texts in images; see `wholegrain.model.flops`.

    Each real token counts once, images as often as they are encoded, and of the backward pass what
    the parameters that learn ask for.

    Args:
        model: whose parameters learn or do not, as they will in training; it is only looked at.
    """

    def __init__(self, model: MultiGrainModel) -> None:
        with torch.device("meta"):
            twin = MultiGrainModel(model.config).eval()
        learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        for name, parameter in twin.named_parameters():
            parameter.requires_grad_(learns[name])
        one, both = (_encoding(twin, images) for images in (1, 2))
        more = _reading(twin, images=2, tokens=2)
        two, three, four = (_reading(twin, images=1, tokens=tokens) for tokens in (2, 3, 4))
        self._image = both - one + more - two
        self._square = (four - 2 * three + two) // 2
        self._token = three - two - 5 * self._square
        self._text = one + two - self._image - 2 * self._token - 4 * self._square

    def __call__(self, images: int, lengths: Sequence[int]) -> int:
        """FLOP of forward and backward.

        Args:
            images: I.
            lengths: tokens of each text, [CLS] counted.
        """
        squares = sum(length * length for length in lengths)
        flops = self._image * images + self._text * len(lengths)
        return flops + self._token * sum(lengths) + self._square * squares


def _encoding(model: MultiGrainModel, images: int) -> int:
    """Of some images, the first of which one text is about."""
    side, learns = model.config.vision.image_size, _learns(model.text)
    pixels = torch.zeros(images, 3, side, side, device="meta")
    # No product depends on how many tokens an adapter takes the mean of.
    states = _zeros(learns, 1, 1, model.config.text.hidden_size)
    mask = torch.ones(1, 1, dtype=torch.bool, device="meta")
    first = torch.zeros(1, dtype=torch.long, device="meta")

    def work() -> tuple[Tensor, ...]:
        features, _ = model.encode_for_texts(pixels, states, mask, first)
        return features.cls, features.patches

    return _counted(work)


def _reading(model: MultiGrainModel, images: int, tokens: int) -> int:
    """Of one text and encoded images, the first of which it is about."""
    rows, learns = 1 if model.image_depends_on_text else images, _learns(model.vision)
    height, width = model.vision.grid
    features = ImageFeatures(
        cls=_zeros(learns, rows, model.vision.width),
        patches=_zeros(learns, rows, height * width, model.vision.width),
        grid=model.vision.grid,
    )
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    mask = torch.ones(1, tokens, dtype=torch.bool, device="meta")
    first = torch.zeros(1, dtype=torch.long, device="meta")

    def work() -> tuple[Tensor | None, ...]:
        states = model.encode_text(ids, mask)
        fused = model.fuse_cls(states, mask, model.memory(whole_images(features)), first)
        found = model.predict_boxes(fused, features, first)
        return found.boxes, found.votes, found.proposals

    return _counted(work)


def _learns(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _zeros(learns: bool, *shape: int) -> Tensor:
    return torch.zeros(shape, device="meta", requires_grad=learns)


def _counted(work: Callable[[], Sequence[Tensor | None]]) -> int:
    """Of what gives some tensors, and of their backward pass."""
    # The fused kernels compute some products again in backward; that is no useful work.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        asked = [part.sum() for part in work() if part is not None and part.requires_grad]
        if asked:
            torch.stack(asked).sum().backward()
    return counter.get_total_flops()
