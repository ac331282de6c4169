"""A step never makes the host wait: no value of the device is looked at between batch and gradient.

Fake tensors have shapes and no values, so that whatever asks for a value, or for a shape that
depends on values, raises.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from pretrain import objective
from pretrain.config import ObjectiveConfig
from pretrain.foreign import Capacity
from pretrain.inputs import mark_hidden
from pretrain.objective import PretrainingModule
from pretrain.passes import plan_passes
from wholegrain.data.batch import IMAGE, REGION, Concept, ConceptBatch, Sample, collate
from wholegrain.model import cross, kernels
from wholegrain.model.config import (
    ClsBoxHead,
    ModelConfig,
    PatchBoxHead,
    SwinVision,
    TextConfig,
    VisionConfig,
    VitVision,
)
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.reading import ConceptReader, RowReader
from wholegrain.model.stochastic_depth import StochasticDepth
from wholegrain.train.config import OptimConfig
from wholegrain.train.optim import Optimizer

VISIONS = {
    "swin": SwinVision(image_size=64, embed_dim=8, depths=(2, 2), heads=(1, 2), window=4),
    "vit": VitVision(image_size=32, patch_size=8, width=24, depth=2, heads=2, local_layers=1),
}
TEXT = TextConfig(
    vocab_size=30,
    hidden_size=24,
    layers=3,
    fusion_layer=1,
    heads=2,
    intermediate_size=32,
    max_positions=12,
)


def batch_of(side: int, grid: tuple[int, int]) -> ConceptBatch:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number in range(3):
        concepts = []
        for grain, box in ((IMAGE, (0.5, 0.5, 1.0, 1.0)), (REGION, (0.3, 0.4, 0.3, 0.2))):
            ids = [2, *range(5, 8 + number + grain)]
            masked, labels = list(ids), [-100] * len(ids)
            masked[1], labels[1] = 4, ids[1]
            concepts.append(Concept(grain, box, f"text {number} {grain}", ids, masked, labels))
        pixels = torch.randint(0, 256, (3, side, side), generator=generator).to(torch.uint8)
        samples.append(Sample(f"a/{number}", pixels, concepts))
    return mark_hidden(collate(samples), grid)


@contextmanager
def as_on_a_device(segments: bool) -> Iterator[None]:
    """The choices that the code makes off the CPU, made on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "segments_suit", lambda states, width, dropout: segments)
        patch.setattr(StochasticDepth, "skips", False)
        patch.setattr(
            cross,
            "reader_of",
            lambda memory, rows, texts, attention: (
                ConceptReader(memory, rows, texts, memory.visible)
                if segments
                else RowReader(memory, rows, texts)
            ),
        )
        patch.setattr(
            objective,
            "plan_passes",
            lambda *arguments: plan_passes(*arguments, ask=False),
        )
        yield


def build(vision: VisionConfig) -> MultiGrainModel:
    """Swin with X-VLM's box head, ViT with the one whose patches vote."""
    torch.manual_seed(0)
    head = PatchBoxHead(width=8) if isinstance(vision, VitVision) else ClsBoxHead()
    return MultiGrainModel(ModelConfig(vision=vision, text=TEXT, embed_dim=8, box_head=head))


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("kind", VISIONS)
def test_a_step_never_waits(kind: str, segments: bool) -> None:
    model = build(VISIONS[kind])
    batch = batch_of(model.vision.image_size, model.vision.grid)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, as_on_a_device(segments):
        if segments:  # the kernel of the device knows its own shapes
            fake_segments = lambda query, key, value, *rest: query + key.sum() + value.sum()  # noqa: E731
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(kernels, "segments", fake_segments)
                step(without_values(model, fake), batch._map(fake.from_tensor))
        else:
            step(without_values(model, fake), batch._map(fake.from_tensor))


def without_values(model: MultiGrainModel, fake: FakeTensorMode) -> MultiGrainModel:
    """The model with fake weights, in place."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(fake.from_tensor(parameter.detach())))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, fake.from_tensor(buffer))
    return model


def step(model: MultiGrainModel, batch: ConceptBatch) -> None:
    module = PretrainingModule(model, ObjectiveConfig(), capacity=Capacity(6, 3, 9))
    optimizer = Optimizer(module, OptimConfig(), steps=10)
    optimizer.begin_step(0)
    module(batch)["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()


@pytest.mark.parametrize(
    "look",
    [
        lambda values: values.sum().item(),
        lambda values: values[values > 0],
        lambda values: (values > 0).nonzero(),
        lambda values: bool((values > 0).any()),
    ],
)
def test_the_check_notices_a_look(look: object) -> None:
    with (
        FakeTensorMode(),
        pytest.raises((DataDependentOutputException, DynamicOutputShapeException)),
    ):
        look(torch.randn(4))  # type: ignore[operator]


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("kind", VISIONS)
def test_what_runs_on_a_device_equals_what_runs_here(kind: str, segments: bool) -> None:
    """Values and gradients; the segment kernel is the slow one here."""
    model = build(VISIONS[kind]).eval()
    batch = batch_of(model.vision.image_size, model.vision.grid)
    found = []
    for on_device in (True, False):
        model.zero_grad()
        torch.manual_seed(1)
        module = PretrainingModule(model, ObjectiveConfig(), capacity=Capacity(6, 3, 9))
        if on_device:
            with as_on_a_device(segments):
                losses = module(batch)
        else:
            losses = module(batch)
        losses["loss"].backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        found.append(({name: loss.detach() for name, loss in losses.items()}, gradients))
    for there, here in zip(*found, strict=True):
        for name, value in here.items():
            scale = value.nan_to_num().abs().max().item()  # NaN of a grain that is not there
            torch.testing.assert_close(
                there[name], value, rtol=0, atol=1e-5 * scale + 1e-7, equal_nan=True, msg=name
            )
