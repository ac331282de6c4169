"""FLOP by formula against FLOP counted by torch while the same work is done."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config import ObjectiveConfig
from pretrain.inputs import mark_hidden
from pretrain.reference import ReferenceModule
from wholegrain.boxes import box_mask
from wholegrain.data.batch import IMAGE, REGION, Concept, ConceptBatch, Sample, collate
from wholegrain.model import reference, reference_vision
from wholegrain.model.config import (
    BoxHeadConfig,
    ClsBoxHead,
    ModelConfig,
    PatchBoxHead,
    SwinVision,
    TextConfig,
    TimmVision,
    VisionConfig,
    VitVision,
)
from wholegrain.model.flops import (
    Flops,
    StepCost,
    StepShape,
    StepSums,
    reference_flops,
    step_flops,
    vision_flops,
)
from wholegrain.model.multigrain import MultiGrainModel

SIDE = 64
VISIONS: dict[str, VisionConfig] = {
    "swin": SwinVision(image_size=SIDE, embed_dim=8, depths=(2, 2, 1), heads=(1, 2, 4), window=4),
    "swin, uneven": SwinVision(image_size=SIDE, embed_dim=8, depths=(2, 2), heads=(1, 2), window=5),
    "vit": VitVision(image_size=SIDE, patch_size=16, width=24, depth=3, heads=3),
    "local": VitVision(image_size=SIDE, patch_size=16, width=24, depth=3, heads=3, local_layers=2),
    "timm": TimmVision(
        name="resnet18d",
        image_size=SIDE,
        stages=(1, 2, 3),
        options={"channels": [8, 12, 16, 16], "stem_width": 4},
    ),
}
TEXT = TextConfig(
    vocab_size=50,
    hidden_size=24,
    layers=5,
    fusion_layer=2,
    heads=3,
    intermediate_size=40,
    max_positions=40,
)
LENGTHS = (9, 4, 2, 12, 6)
HIDDEN = (2, 1, 0, 3, 1)
WHOLE = (0.5, 0.5, 1.0, 1.0)
BOXES = (WHOLE, (0.3, 0.3, 0.4, 0.5), (0.8, 0.6, 0.3, 0.5), WHOLE, (0.6, 0.2, 0.2, 0.3))
REGIONS = (1, 2, 4)


def config_of(vision: str, head: BoxHeadConfig | None = None) -> ModelConfig:
    return ModelConfig(
        vision=VISIONS[vision], text=TEXT, embed_dim=8, box_head=head or ClsBoxHead()
    )


def counted(work: Callable[[], Tensor]) -> Flops:
    """FLOP of `work` and of the backward pass from the sum of what it returns."""
    # The fused attention of the CPU is unknown to the counter; the plain one is two products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        result = work()
        forward = counter.get_total_flops()
        result.sum().backward()
    return Flops(forward, counter.get_total_flops() - forward)


def make_batch() -> ConceptBatch:
    """Two photos with three and two concepts."""
    concepts = []
    for row, (length, hidden) in enumerate(zip(LENGTHS, HIDDEN, strict=True)):
        ids = [2, *range(5, 4 + length)]
        labels = [ids[place] if 0 < place <= hidden else -100 for place in range(length)]
        grain = REGION if row in REGIONS else IMAGE
        concepts.append(Concept(grain, BOXES[row], f"text {row}", ids, ids, labels))
    pixels = torch.randint(0, 256, (2, 3, SIDE, SIDE)).to(torch.uint8)
    return mark_hidden(
        collate([Sample("a", pixels[0], concepts[:3]), Sample("b", pixels[1], concepts[3:])])
    )


SHAPE = StepShape(
    images=2,
    lengths=LENGTHS,
    hidden=HIDDEN,
    regions=REGIONS,
    whole=frozenset({0, 3}),
)


@pytest.mark.parametrize("vision", VISIONS)
def test_image_encoders(vision: str) -> None:
    config = config_of(vision)
    # Evaluation: in training some samples go without some branches.
    model = MultiGrainModel(config).eval()
    pixels = torch.randn(3, 3, SIDE, SIDE)
    found = counted(lambda: model.encode_images(pixels).patches)
    assert vision_flops(config, 3) == found


@pytest.mark.parametrize("vision", ["swin", "swin, uneven", "vit", "local"])
def test_the_reference_encoders_cost_the_same(vision: str) -> None:
    config = config_of(vision)
    model = MultiGrainModel(config)
    work = reference_vision.encode_images
    pixels = torch.randn(3, 3, SIDE, SIDE)
    found = counted(lambda: work(model.vision, config.vision, pixels).patches)
    assert vision_flops(config, 3) == found


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("head", [ClsBoxHead(), PatchBoxHead(width=8)])
def test_a_step_of_the_reference(vision: str, head: BoxHeadConfig) -> None:
    """Every product of the padded step, forward and backward, to the last one."""
    config = config_of(vision, head)
    model = MultiGrainModel(config)
    module = ReferenceModule(model, ObjectiveConfig(), length=15, slots=4)
    batch = make_batch()
    expected = reference_flops(config, SHAPE, length=15, slots=4)
    found = counted(lambda: module(batch)["loss"])
    assert expected.forward == found.forward
    assert expected.backward == found.backward
    assert expected.total == found.forward + found.backward


def test_parts_of_a_step() -> None:
    """Text and cross encoder each by itself."""
    config = config_of("swin")
    model = MultiGrainModel(config)
    ids, mask = torch.ones(5, 15, dtype=torch.long), torch.ones(5, 15, dtype=torch.bool)
    once = counted(lambda: reference.encode_text(model.text, TEXT, ids, mask))
    flops = reference_flops(config, SHAPE, length=15)
    assert flops.text == Flops(2 * once.forward, 2 * once.backward), "whole and masked texts"
    states = torch.randn(5, 15, 24, requires_grad=True)
    images = torch.randn(5, 17, 32, requires_grad=True)
    visible = torch.ones(5, 17, dtype=torch.bool)
    images.requires_grad_()
    row = counted(
        lambda: reference.fuse(model.cross, TEXT, states[:1], mask[:1], images[:1], visible[:1])
    )
    rows = 4 * 5 + len(REGIONS)
    assert flops.cross == Flops(rows * row.forward, rows * row.backward)


def _heads(states: Tensor) -> Tensor:
    return states.unflatten(-1, (TEXT.heads, -1)).transpose(0, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = _heads(query) @ _heads(key).transpose(1, 2)
    return (scores.softmax(dim=-1) @ _heads(value)).transpose(0, 1).flatten(1)


def useful_cross(
    model: MultiGrainModel,
    vectors: Tensor,
    sizes: Sequence[int],
    rows: Sequence[tuple[int, int, int]],
) -> Tensor:
    """The cross encoder text by text, nothing computed twice.

    Keys and values of `vectors` once, the first self-attention once a text, the last layer in part.

    Args:
        sizes: tokens of each text.
        rows: the text, keys that are seen and places that are read, of each row.
    """
    texts = [torch.randn(tokens, TEXT.hidden_size, requires_grad=True) for tokens in sizes]
    layers: Any = model.cross.layers

    def attend(layer: Any, text: Tensor, asked: Tensor) -> Tensor:
        own = layer.attention
        update = _attend(own.query(asked), own.key(text), own.value(text))
        return layer.attention_residual.norm(asked + own.output(update))

    texts = [attend(layers[0], text, text) for text in texts]
    states = [texts[text] for text, _, _ in rows]
    for number, layer in enumerate(layers):
        cross = layer.cross_attention
        key, value = cross.key(vectors), cross.value(vectors)
        for index, (_, seen, read) in enumerate(rows):
            text = states[index]
            asked = text[:read] if number == len(layers) - 1 else text
            asked = attend(layer, text, asked) if number else asked
            update = _attend(cross.query(asked), key[:seen], value[:seen])
            asked = layer.cross_residual.norm(asked + cross.output(update))
            update = layer.feed_forward.down(layer.feed_forward.up(asked).relu())
            states[index] = layer.feed_forward_residual.norm(asked + update)
    return torch.cat(states).sum()


@pytest.mark.parametrize("vision", ["swin", "local"])
def test_useful_work_is_that_of_texts_run_one_by_one(vision: str) -> None:
    """Nothing padded, nothing projected twice: a program without waste costs what is counted."""
    config = config_of(vision)
    model = MultiGrainModel(config)
    visible = box_mask(torch.tensor(BOXES), model.vision.grid).sum(dim=1).tolist()
    drawn = (4, 2, 3, 0, 2)
    shape = replace(SHAPE, visible=visible, foreign=[LENGTHS[text] for text in drawn])
    flops = step_flops(config, shape)

    def texts() -> Tensor:
        parts = []
        for length in (*LENGTHS, *LENGTHS):
            ids = torch.ones(1, length, dtype=torch.long)
            parts.append(reference.encode_text(model.text, TEXT, ids, ids > 0).sum())
        return torch.stack(parts)

    assert flops.text == counted(texts)

    patches = model.vision.grid[0] * model.vision.grid[1]
    keys = [1 + seen for seen in visible]
    rows = [
        *zip(range(5), keys, [1] * 5, strict=True),
        *zip(range(5), keys, [1] * 5, strict=True),
        *zip(drawn, keys, [1] * 5, strict=True),
        *((row, 1 + patches, 1) for row in REGIONS),
    ]
    rows += zip(range(5, 10), keys, HIDDEN, strict=True)
    count = 2 * patches + 2 + 5
    if vision == "local":
        count += sum(visible[row] for row in REGIONS)
    vectors = torch.randn(count, model.vision.width, requires_grad=True)
    assert flops.cross == counted(lambda: useful_cross(model, vectors, [*LENGTHS, *LENGTHS], rows))


def test_useful_work_is_less_than_the_reference() -> None:
    config = ModelConfig.base()
    shape = StepShape(images=8, lengths=[14] * 8, hidden=[4] * 8)
    useful, padded = step_flops(config, shape), reference_flops(config, shape)
    assert useful.vision.forward == pytest.approx(8 * 30.9e9, rel=0.01), "Swin-B at 224 px"
    assert padded.total / 8 == pytest.approx(3 * 58e9, rel=0.05)
    assert 0.5 < useful.total / padded.total < 0.75
    assert useful.backward == pytest.approx(2 * useful.forward, rel=0.01)


@pytest.mark.parametrize(
    ("vision", "layers"), [("swin", 3), ("swin", 5), ("local", 5), ("timm", 5)]
)
@pytest.mark.parametrize("head", [ClsBoxHead(), PatchBoxHead(width=8)])
def test_the_cost_is_linear_in_the_sums(vision: str, head: BoxHeadConfig, layers: int) -> None:
    """One fusion layer, which is first and last at once, or several."""
    config = config_of(vision, head)
    config = replace(config, text=replace(TEXT, layers=layers))
    cost = StepCost(config)
    seen = [min(cost.patches, 3 * place + 1) for place in range(5)]
    for shape in (
        SHAPE,
        replace(SHAPE, visible=seen, foreign=(4, 2, 12, 9, 2)),
        replace(SHAPE, images=7, regions=(), whole=frozenset(range(5))),
        StepShape(1, [], []),
    ):
        assert cost(StepSums.of(shape, cost.patches)) == step_flops(config, shape).total


def test_images_are_paid_once() -> None:
    config = ModelConfig.base()
    few, many = (
        step_flops(config, StepShape(2, [6] * 2 * n, [2] * 2 * n, regions=range(2 * n)))
        for n in (1, 32)
    )
    assert many.vision.total < 1.01 * few.vision.total


def test_numbers_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="visible has 1 numbers for 2 texts"):
        StepShape(1, [3, 4], [1, 1], visible=[5])
