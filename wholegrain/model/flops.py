"""What a training step costs, counted from the sizes: matrix products alone, multiply-adds x 2.

Two counts: of the padded reference, which computes every place of every pass in every layer, and of
the useful work: real tokens, an image's keys and values once, the last cross layer only where a
head reads. Achieved FLOP/s are quoted against the useful count, so that waste does not look like
speed.

Every sample counts in every branch: what stochastic depth leaves out of some (on average a
twentieth of Swin-B's blocks, which a CPU does skip) is not taken off.

`torch.utils.flop_counter` counts alike, and tests compare: a product of (n, k) and (k, m) is
2 n k m; its backward is two products of that size, or one where an operand needs no gradient (the
pixels of the first convolution, the weights of a region's mean).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from wholegrain.model.config import ClsBoxHead, ModelConfig, SwinVision, TextConfig, VitVision
from wholegrain.model.vision import build_vision


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOP of a forward and of its backward pass."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)

    @property
    def total(self) -> int:
        """Both passes."""
        return self.forward + self.backward


@dataclass(frozen=True, slots=True)
class StepFlops:
    """FLOP of a step by part of the model."""

    vision: Flops
    """Images, and regions where they run layers of their own."""
    text: Flops
    """Whole and masked texts."""
    cross: Flops
    """All passes of the cross encoder."""
    heads: Flops
    """Projections, similarities, matching, words and boxes."""

    @property
    def forward(self) -> int:
        """FLOP of the forward pass."""
        return self._sum().forward

    @property
    def backward(self) -> int:
        """FLOP of the backward pass."""
        return self._sum().backward

    @property
    def total(self) -> int:
        """Both passes."""
        return self._sum().total

    def _sum(self) -> Flops:
        return self.vision + self.text + self.cross + self.heads


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a batch asks of the model: I images, C concepts."""

    images: int
    """I."""
    lengths: Sequence[int]
    """Tokens of each text (C), [CLS] counted."""
    hidden: Sequence[int]
    """Hidden words of each text (C)."""
    regions: Sequence[int] = ()
    """Which concepts are regions, by number: they are asked for their boxes."""
    visible: Sequence[int] = ()
    """Patches in each concept's box (C); empty: all of them."""
    foreign: Sequence[int] = ()
    """Tokens of the text drawn for each concept (C). Empty takes `lengths`, which is what a draw
    costs on the average where no text is likelier than another."""
    whole: frozenset[int] = field(default=frozenset())
    """Concepts that are whole images; they need no rows of their own in local layers."""

    def __post_init__(self) -> None:
        count = len(self.lengths)
        for name, optional in (("hidden", False), ("visible", True), ("foreign", True)):
            given = getattr(self, name)
            if len(given) != count and not (optional and not given):
                raise ValueError(f"{name} has {len(given)} numbers for {count} texts; give {count}")


def product(*sizes: int, operands: int = 2) -> Flops:
    """A matrix product; `operands` of its two factors need a gradient."""
    forward = 2
    for size in sizes:
        forward *= size
    return Flops(forward, operands * forward)


def step_flops(config: ModelConfig, shape: StepShape) -> StepFlops:
    """The useful work of a step of all objectives, forward and backward.

    Counts each real token once a pass, keys and values once an image, the patches that a concept
    sees, the first cross layer's self-attention once a text, and of the last cross layer only what
    a head reads: [CLS] of matching and box passes, the hidden words of the language pass. A token
    outside them costs a key and a value there.
    """
    text, count = config.text, len(shape.lengths)
    patches, width = _grid(config)
    own = list(shape.lengths)
    visible = list(shape.visible) or [patches] * count
    foreign = list(shape.foreign) or own
    keys = [1 + seen for seen in visible]
    boxed = list(shape.regions)
    passes = [
        (own, keys, [1] * count),
        # The keys of a foreign image are those of some concept; the own ones stand for it.
        (own, keys, [1] * count),
        (foreign, keys, [1] * count),
        (own, keys, list(shape.hidden)),
        ([own[row] for row in boxed], [1 + patches] * len(boxed), [1] * len(boxed)),
    ]
    first, last = text.fusion_layer, text.layers - 1
    # The first self-attention has seen no concept yet: once a whole and once a masked text.
    cross = _self_attention(text, 2 * own, 2 * own) if first < last else Flops()
    for lengths, seen, read in passes:
        for layer in range(first, text.layers):
            asked = read if layer == last else lengths
            if layer > first or first == last:
                cross += _self_attention(text, lengths, asked)
            cross += _queries(text, asked, seen) + _feed_forward(text, asked)
    # Patches of images, and the vectors of concepts and of whole images; a region that ran layers
    # of its own brings patches of its own.
    vectors = shape.images * (patches + 1) + count
    if _local_layers(config):
        vectors += sum(seen for row, seen in enumerate(visible) if row not in shape.whole)
    cross += _times(text.layers - text.fusion_layer, _keys_and_values(text, width, vectors))
    return StepFlops(
        vision=vision_flops(config, shape.images) + _regions(config, shape, visible, gathered=True),
        text=_times(2 * text.fusion_layer, _layer(text, own, own)),
        cross=cross,
        heads=_heads(config, shape, words=sum(shape.hidden), drawing=0),
    )


def reference_flops(
    config: ModelConfig, shape: StepShape, length: int = 40, slots: int = 8
) -> StepFlops:
    """What the padded reference computes for the same batch (`pretrain.reference`).

    Args:
        config: of the model.
        shape: of the batch.
        length: tokens that every text is padded to.
        slots: hidden places a text that the language head is computed at.
    """
    text, count = config.text, len(shape.lengths)
    patches, width = _grid(config)
    rows = 4 * count + len(shape.regions)  # positives, two kinds of negatives, words, boxes
    lengths = [length] * rows
    layer = _layer(text, lengths, lengths) + _queries(text, lengths, [1 + patches] * rows)
    layer += _keys_and_values(text, width, rows * (1 + patches))
    padded = [length] * 2 * count
    # Each region reads a copy of its image's patches.
    # A batch with any region in it runs the local layers for every concept.
    run = shape if len(shape.whole) == count else replace(shape, whole=frozenset())
    regions = _regions(config, run, [patches] * count, gathered=False)
    return StepFlops(
        vision=vision_flops(config, shape.images) + regions,
        text=_times(text.fusion_layer, _layer(text, padded, padded)),
        cross=_times(text.layers - text.fusion_layer, layer),
        heads=_heads(config, shape, words=count * slots, drawing=1),
    )


# --- texts --------------------------------------------------------------------------------------


def _times(count: int, flops: Flops) -> Flops:
    return Flops(count * flops.forward, count * flops.backward)


def _layer(text: TextConfig, lengths: Sequence[int], asked: Sequence[int]) -> Flops:
    """Self-attention and feed-forward: keys and values of all tokens, the rest where asked."""
    return _self_attention(text, lengths, asked) + _feed_forward(text, asked)


def _self_attention(text: TextConfig, lengths: Sequence[int], asked: Sequence[int]) -> Flops:
    width = text.hidden_size
    flops = product(2 * sum(lengths), width, width) + product(2 * sum(asked), width, width)
    return flops + product(2, sum(a * b for a, b in zip(asked, lengths, strict=True)), width)


def _feed_forward(text: TextConfig, asked: Sequence[int]) -> Flops:
    return product(2, sum(asked), text.hidden_size, text.intermediate_size)


def _queries(text: TextConfig, asked: Sequence[int], keys: Sequence[int]) -> Flops:
    """Cross-attention without its keys and values: query, output, and the attention itself."""
    width = text.hidden_size
    flops = product(2 * sum(asked), width, width)
    return flops + product(2, sum(a * b for a, b in zip(asked, keys, strict=True)), width)


def _keys_and_values(text: TextConfig, width: int, vectors: int) -> Flops:
    return product(2 * vectors, width, text.hidden_size)


def _heads(config: ModelConfig, shape: StepShape, words: int, drawing: int) -> Flops:
    text, count = config.text, len(shape.lengths)
    patches, width = _grid(config)
    hidden = text.hidden_size
    flops = product(count, width, config.embed_dim) + product(count, hidden, config.embed_dim)
    flops += product(count, count, config.embed_dim)
    flops += _times(drawing, product(count, count, config.embed_dim, operands=0))
    flops += product(3 * count, hidden, 2 * hidden) + product(3 * count, 2 * hidden, 2)
    flops += product(words, hidden, hidden) + product(words, hidden, text.vocab_size)
    boxes, head = len(shape.regions), config.box_head
    if isinstance(head, ClsBoxHead):
        return flops + product(boxes, hidden, 2 * hidden) + product(boxes, 2 * hidden, 4)
    flops += product(boxes, hidden, 2 * head.width)
    flops += product(shape.images * patches, width, 2 * head.width)
    flops += product(boxes * patches, head.width, head.width)
    return flops + product(boxes * patches, head.width, 5)


# --- images -------------------------------------------------------------------------------------


def vision_flops(config: ModelConfig, images: int) -> Flops:
    """The image encoder over I images; nothing is asked of the pixels' gradient."""
    vision = config.vision
    if isinstance(vision, SwinVision):
        return _swin(vision, images)
    if isinstance(vision, VitVision):
        return _vit(vision, images)
    return _measured(config, images)


def _swin(vision: SwinVision, images: int) -> Flops:
    side, width = vision.image_size // vision.patch_size, vision.embed_dim
    flops = product(images * side * side, 3 * vision.patch_size**2, width, operands=1)
    for stage, depth in enumerate(vision.depths):
        if stage:  # four neighbours become one
            side, width = side // 2, 2 * width
            flops += product(images * side * side, 2 * width, width)
        window = min(vision.window, side)
        # Windows are filled up at the map's end; the feed-forward sees the map alone.
        count = (-(-side // window)) ** 2
        tokens = images * count * window**2
        block = product(4 * tokens, width, width) + product(2, tokens, window**2, width)
        block += product(2 * images * side * side, width, 4 * width)
        flops += _times(depth, block)
    return flops


def _vit_block(vision: VitVision, rows: Sequence[int]) -> Flops:
    """One block over rows of so many tokens."""
    width = vision.width
    flops = product(4 * sum(rows), width, width)
    flops += product(2, sum(tokens * tokens for tokens in rows), width)
    return flops + product(2 * sum(rows), width, int(vision.mlp_ratio * width))


def _vit(vision: VitVision, images: int) -> Flops:
    patches = (vision.image_size // vision.patch_size) ** 2
    embed = product(images * patches, 3 * vision.patch_size**2, vision.width, operands=1)
    return embed + _times(vision.depth, _vit_block(vision, [1 + patches] * images))


def _regions(
    config: ModelConfig, shape: StepShape, visible: Sequence[int], gathered: bool
) -> Flops:
    """From images to concepts: a mean of patches, or local layers of a plain transformer.

    Args:
        config, shape: as above.
        visible: patches of each concept.
        gathered: the mean is over a concept's own patches; otherwise over all, masked.
    """
    patches, width = _grid(config)
    if not _local_layers(config):
        summed = sum(visible) if gathered else len(shape.lengths) * patches
        return product(summed, width, operands=1)
    assert isinstance(config.vision, VitVision)
    rows = [1 + seen for row, seen in enumerate(visible) if row not in shape.whole]
    return _times(config.vision.local_layers, _vit_block(config.vision, rows))


def _local_layers(config: ModelConfig) -> int:
    vision = config.vision
    return vision.local_layers if isinstance(vision, VitVision) else 0


def _grid(config: ModelConfig) -> tuple[int, int]:
    """Patches of the final grid, and their width."""
    vision = config.vision
    if isinstance(vision, SwinVision):
        side = vision.image_size // vision.final_patch
        return side * side, vision.embed_dim * 2 ** (len(vision.depths) - 1)
    if isinstance(vision, VitVision):
        return (vision.image_size // vision.patch_size) ** 2, vision.width
    with torch.device("meta"):
        encoder = build_vision(vision)
    return encoder.grid[0] * encoder.grid[1], encoder.width


def _measured(config: ModelConfig, images: int) -> Flops:
    """Counted by torch on tensors without values, for encoders that have no formula here."""
    with torch.device("meta"):
        encoder = build_vision(config.vision)
        pixels = torch.zeros(images, 3, config.vision.image_size, config.vision.image_size)
    counter = FlopCounterMode(display=False)
    with counter:
        features = encoder(pixels)
        forward = counter.get_total_flops()
        features.patches.sum().backward()
    return Flops(forward, counter.get_total_flops() - forward)
