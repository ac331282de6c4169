"""What a step of learning to ground costs: counted by torch once, on tensors without values.

A formula would have to know which parts are frozen, where adapters sit and from which block on an
image runs once a text. Instead a twin of the model without values runs a few small steps; what a
step costs is linear in the images, the texts, their tokens and their squared lengths, so that these
few say it of every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wholegrain.model.grounding.records import TextStates
from wholegrain.model.grounding_reach import blank_images, blank_text, valueless_twin
from wholegrain.model.multigrain import MultiGrainModel


class GroundingCost:
    """The useful work of a step that finds texts in images; see `wholegrain.model.flops`.

    Each real token counts once, images as often as they are encoded, and of the backward pass what
    the parameters that learn ask for.

    Args:
        model: whose parameters learn or do not, as they will in training; it is only looked at.
    """

    def __init__(self, model: MultiGrainModel) -> None:
        twin = valueless_twin(model)
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
    first = torch.zeros(1, dtype=torch.long, device="meta")
    # No product depends on how many tokens an adapter takes the mean of.
    texts = _detached(blank_text(model, 1))

    def work() -> tuple[Tensor, ...]:
        features, _ = model.encode_for_texts(blank_images(model, images), texts, first)
        return features.cls, features.patches, *features.pyramid

    return _counted(work)


def _reading(model: MultiGrainModel, images: int, tokens: int) -> int:
    """Of one text and encoded images, the first of which it is about."""
    first = torch.zeros(1, dtype=torch.long, device="meta")
    pixels = blank_images(model, 1 if model.image_depends_on_text else images)
    seen, _ = model.encode_for_texts(pixels, blank_text(model, 1), first)
    seen.cls, seen.patches = _leaf(seen.cls), _leaf(seen.patches)
    seen.pyramid = tuple(_leaf(part) for part in seen.pyramid)

    def work() -> tuple[Tensor | None, ...]:
        texts = blank_text(model, tokens)
        fused = model.fuse_texts(replace(seen), texts, first)
        found = model.answer(fused, seen, first)
        others = (scale.boxes for scale in found.by_scale[:-1])
        return found.boxes, found.votes, found.proposals, found.quality, fused.gates, *others

    return _counted(work)


def _detached(texts: TextStates) -> TextStates:
    layers = tuple(_leaf(states) for states in texts.layers)
    return TextStates(layers[-1], texts.mask, layers)


def _leaf(states: Tensor) -> Tensor:
    """The same, as if given: it asks for a gradient where what it came from learns."""
    return states.detach().requires_grad_(states.requires_grad)


def _counted(work: Callable[[], Sequence[Tensor | None]]) -> int:
    """Of what gives some tensors, and of their backward pass."""
    # The fused kernels compute some products again in backward; that is no useful work.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        asked = [part.sum() for part in work() if part is not None and part.requires_grad]
        if asked:
            torch.stack(asked).sum().backward()
    return counter.get_total_flops()
