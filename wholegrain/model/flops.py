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
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from wholegrain.errors import ConfigError
from wholegrain.model.config import (
    ClsBoxHead,
    ModelConfig,
    PatchBoxHead,
    SwinVision,
    TextConfig,
    VitVision,
)
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
    grid = _grid(config)
    return _of_sums(config, grid, StepSums.of(shape, grid[0]))


class StepSums(NamedTuple):
    """What the useful work of a batch depends on, and it is linear in every one of them.

    Of C texts with L_c tokens, H_c hidden words, and concepts of which the cross encoder sees K_c
    keys (a vector and the visible patches); B of the concepts are asked for their boxes. The cross
    encoder reads rows of texts with concepts: the pairs, a foreign image for each text, a foreign
    text for each image, the pairs with words hidden, and B texts with whole images.
    """

    images: int
    """I."""
    searched: int
    """I where the box head runs, be it on no concept at all; 0 where it is left out."""
    texts: int
    """C."""
    similarities: int
    """C squared."""
    tokens: int
    """sum L."""
    squares: int
    """sum L squared."""
    words: int
    """sum H."""
    boxed: int
    """B."""
    visible: int
    """sum (K - 1), the patches that concepts see."""
    local: int
    """Keys of the concepts that run layers of their own."""
    local_patches: int
    """Patches of those."""
    local_squares: int
    """Their squared keys."""
    row_tokens: int
    """sum L over the rows."""
    row_squares: int
    """sum L squared over the rows."""
    row_keys: int
    """sum L K over the rows."""
    reads: int
    """Places that are read of the rows."""
    read_tokens: int
    """sum L over those places."""
    read_keys: int
    """sum K over those places."""

    @classmethod
    def of(cls, shape: StepShape, patches: int) -> StepSums:
        """The sums of a batch, whose images have so many patches."""
        own, words, count = list(shape.lengths), list(shape.hidden), len(shape.lengths)
        keys = [1 + seen for seen in shape.visible] or [1 + patches] * count
        foreign = list(shape.foreign) or own
        local = [each for row, each in enumerate(keys) if row not in shape.whole]
        boxed = [own[row] for row in shape.regions]
        rows = [
            # The keys of a foreign image are those of some concept; the own ones stand for it.
            *2 * list(zip(own, keys, [1] * count, strict=True)),
            *zip(foreign, keys, [1] * count, strict=True),
            *zip(own, keys, words, strict=True),
            *((length, 1 + patches, 1) for length in boxed),
        ]
        return cls(
            images=shape.images,
            searched=shape.images,
            texts=count,
            similarities=count * count,
            tokens=sum(own),
            squares=sum(length * length for length in own),
            words=sum(words),
            boxed=len(boxed),
            visible=sum(keys) - count,
            local=sum(local),
            local_patches=sum(local) - len(local),
            local_squares=sum(each * each for each in local),
            row_tokens=sum(length for length, _, _ in rows),
            row_squares=sum(length * length for length, _, _ in rows),
            row_keys=sum(length * seen for length, seen, _ in rows),
            reads=sum(read for _, _, read in rows),
            read_tokens=sum(read * length for length, _, read in rows),
            read_keys=sum(read * seen for _, seen, read in rows),
        )


class StepCost:
    """The useful work of a step (`step_flops`), counted in microseconds.

    Args:
        config: of the model. Its image encoder is counted here, once.
    """

    def __init__(self, config: ModelConfig) -> None:
        grid = _grid(config)
        self.patches = grid[0]
        """Of an image."""
        sizes = len(StepSums._fields)
        self._each = [
            _of_sums(config, grid, StepSums(*(int(place == one) for place in range(sizes)))).total
            for one in range(sizes)
        ]

    def __call__(self, sums: StepSums) -> int:
        """FLOP of forward and backward."""
        return sum(cost * size for cost, size in zip(self._each, sums, strict=True))


def _of_sums(config: ModelConfig, grid: tuple[int, int], sums: StepSums) -> StepFlops:
    text, (patches, width) = config.text, grid
    own = _Asked(sums.tokens, sums.tokens, sums.squares, 0)
    rows = _Asked(sums.row_tokens, sums.row_tokens, sums.row_squares, sums.row_keys)
    last = _Asked(sums.row_tokens, sums.reads, sums.read_tokens, sums.read_keys)
    layers = text.layers - text.fusion_layer
    # The first self-attention has seen no concept yet: once a whole and once a masked text. The
    # last layer is asked in part.
    if layers > 1:
        cross = _times(2, _self_attention(text, own))
        cross += _times(layers - 2, _self_attention(text, rows))
        cross += _times(layers - 1, _queries(text, rows) + _feed_forward(text, rows))
    else:
        cross = Flops()
    cross += _layer(text, last) + _queries(text, last)
    # Patches of images, and the vectors of concepts and of whole images; a region that ran layers
    # of its own brings patches of its own.
    vectors = sums.images * (patches + 1) + sums.texts
    vectors += sums.local_patches if _local_layers(config) else 0
    cross += _times(layers, _keys_and_values(text, width, vectors))
    regions = _regions(config, width, sums.visible, sums.local, sums.local_squares)
    return StepFlops(
        vision=vision_flops(config, sums.images) + regions,
        text=_times(2 * text.fusion_layer, _layer(text, own)),
        cross=cross,
        heads=_heads(
            config, grid, sums.searched, sums.texts, sums.similarities, sums.words, sums.boxed
        ),
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
    text, count, grid = config.text, len(shape.lengths), _grid(config)
    patches, width = grid
    rows = 4 * count + len(shape.regions)  # positives, two kinds of negatives, words, boxes
    keys = 1 + patches
    run = _Asked(rows * length, rows * length, rows * length**2, rows * length * keys)
    layer = _layer(text, run) + _queries(text, run)
    layer += _keys_and_values(text, width, rows * keys)
    padded = _Asked(2 * count * length, 2 * count * length, 2 * count * length**2, 0)
    # Each region reads a copy of its image's patches, masked.
    # A batch with any region in it runs the local layers for every concept.
    local = 0 if len(shape.whole) == count else count
    regions = _regions(config, width, count * patches, local * keys, local * keys**2)
    heads = _heads(config, grid, shape.images, count, count**2, count * slots, len(shape.regions))
    return StepFlops(
        vision=vision_flops(config, shape.images) + regions,
        text=_times(text.fusion_layer, _layer(text, padded)),
        cross=_times(text.layers - text.fusion_layer, layer),
        heads=heads + product(count, count, config.embed_dim, operands=0),  # to draw by
    )


# --- texts --------------------------------------------------------------------------------------


def _times(count: int, flops: Flops) -> Flops:
    return Flops(count * flops.forward, count * flops.backward)


class _Asked(NamedTuple):
    """Some tokens, and those of them that a layer is asked for."""

    tokens: int
    """sum L over the rows."""
    asked: int
    """sum A, how many of them are asked for."""
    asked_tokens: int
    """sum A L."""
    asked_keys: int
    """sum A K, with K keys of a concept."""


def _layer(text: TextConfig, rows: _Asked) -> Flops:
    """Self-attention and feed-forward: keys and values of all tokens, the rest where asked."""
    return _self_attention(text, rows) + _feed_forward(text, rows)


def _self_attention(text: TextConfig, rows: _Asked) -> Flops:
    width = text.hidden_size
    flops = product(2 * rows.tokens, width, width) + product(2 * rows.asked, width, width)
    return flops + product(2, rows.asked_tokens, width)


def _feed_forward(text: TextConfig, rows: _Asked) -> Flops:
    return product(2, rows.asked, text.hidden_size, text.intermediate_size)


def _queries(text: TextConfig, rows: _Asked) -> Flops:
    """Cross-attention without its keys and values: query, output, and the attention itself."""
    width = text.hidden_size
    return product(2 * rows.asked, width, width) + product(2, rows.asked_keys, width)


def _keys_and_values(text: TextConfig, width: int, vectors: int) -> Flops:
    return product(2 * vectors, width, text.hidden_size)


def _heads(
    config: ModelConfig,
    grid: tuple[int, int],
    searched: int,
    count: int,
    similarities: int,
    words: int,
    boxes: int,
) -> Flops:
    text, (patches, width) = config.text, grid
    hidden = text.hidden_size
    flops = product(count, width, config.embed_dim) + product(count, hidden, config.embed_dim)
    flops += product(similarities, config.embed_dim)
    flops += product(3 * count, hidden, 2 * hidden) + product(3 * count, 2 * hidden, 2)
    flops += product(words, hidden, hidden) + product(words, hidden, text.vocab_size)
    head = config.box_head
    if isinstance(head, ClsBoxHead):
        return flops + product(boxes, hidden, 2 * hidden) + product(boxes, 2 * hidden, 4)
    if not isinstance(head, PatchBoxHead):
        raise ConfigError(f"model.box_head is {head.kind!r}, which pretraining does not have")
    flops += product(boxes, hidden, 2 * head.width)
    flops += product(searched * patches, width, 2 * head.width)
    flops += product(boxes * patches, head.width, head.width)
    return flops + product(boxes * patches, head.width, 5)


# --- images -------------------------------------------------------------------------------------


def vision_flops(config: ModelConfig, images: int) -> Flops:
    """The image encoder over I images; nothing is asked of the pixels' gradient."""
    vision = config.vision
    if not images:
        return Flops()
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


def _vit_block(vision: VitVision, tokens: int, squares: int) -> Flops:
    """One block over rows of so many tokens together, and so many pairs of tokens of one row."""
    width = vision.width
    flops = product(4 * tokens, width, width) + product(2, squares, width)
    return flops + product(2 * tokens, width, int(vision.mlp_ratio * width))


def _vit(vision: VitVision, images: int) -> Flops:
    patches = (vision.image_size // vision.patch_size) ** 2
    embed = product(images * patches, 3 * vision.patch_size**2, vision.width, operands=1)
    return embed + _times(
        vision.depth, _vit_block(vision, images * (1 + patches), images * (1 + patches) ** 2)
    )


def _regions(config: ModelConfig, width: int, summed: int, keys: int, squares: int) -> Flops:
    """From images to concepts: a mean of patches, or local layers of a plain transformer.

    Args:
        config: of the model.
        width: of a patch.
        summed: patches that the means are over.
        keys: rows of the local layers.
        squares: their pairs.
    """
    local = _local_layers(config)
    if not local:
        return product(summed, width, operands=1)
    assert isinstance(config.vision, VitVision)
    return _times(local, _vit_block(config.vision, keys, squares))


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
