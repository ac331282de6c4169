"""Every layer of the text and cross encoder is computed again in the backward pass."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.wholegrain.model.conftest import TEXT
from wholegrain.model.checkpointing import checkpoint_blocks
from wholegrain.model.concepts import whole_images
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.packing import Packing
from wholegrain.model.text import Reads, TextLayer

Build = Callable[..., MultiGrainModel]
Images = Callable[..., Tensor]
DROPPED = replace(TEXT, dropout=0.3, attention_dropout=0.3)
ROWS = torch.tensor([0, 1, 2, 0, 2])
"""Texts that are fused, some of them twice."""


def step(model: MultiGrainModel, images: Tensor, chosen: bool) -> list[Tensor]:
    """Fused [CLS] states and every gradient; `chosen` fuses each text as often as it is read."""
    torch.manual_seed(0)
    model.zero_grad()
    texts = Packing.of_lengths(torch.tensor([5, 2, 4]), 11, 5)
    memory = model.memory(whole_images(model.encode_images(images)))
    states = model.encode_packed(torch.arange(11) + 1, texts)
    if chosen:
        fewer = texts.choose(ROWS)
        reads = Reads.first(fewer.texts)
        fused = model.fuse_packed(states, texts, memory, ROWS % 2, reads, fewer)
    else:
        fused = model.fuse_packed(states, texts, memory, torch.arange(3) % 2, Reads.first(texts))
    fused.square().sum().backward()
    return [fused.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def runs_of(model: MultiGrainModel) -> Counter[str]:
    """How often each half of each text layer has been entered, counted from now on."""
    runs: Counter[str] = Counter()
    for name, layer in model.named_modules():
        if isinstance(layer, TextLayer):
            for half in ("attention", "feed_forward"):
                part = f"{name}.{half}"
                inner = layer.attention.output if half == "attention" else layer.feed_forward
                inner.register_forward_pre_hook(
                    lambda module, given, part=part: runs.update([part])
                )
    return runs


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("fusion_layer", [2, 3])
def test_every_text_layer_is_computed_again_to_the_same_result(
    build: Build, images: Images, fusion_layer: int, chosen: bool
) -> None:
    """The first cross layer runs in two halves, unless it is the only one; draws are the same."""
    model = build("vit", text=replace(DROPPED, fusion_layer=fusion_layer)).train()
    pixels = images(model)
    expected = step(model, pixels, chosen)
    assert not torch.equal(expected[0], step(model.eval(), pixels, chosen)[0]), "dropout is on"
    model.train()
    runs = runs_of(model)
    checkpoint_blocks(model)
    found = step(model, pixels, chosen)
    assert set(runs.values()) == {2}
    assert len(runs) == 2 * 4
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_of_the_cross_encoder_the_inputs_of_its_steps_are_remembered_alone(
    build: Build, images: Images
) -> None:
    """Three steps of two layers: the halves of the first, and the second."""
    model = build("vit", text=DROPPED).train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    checkpoint_blocks(model)
    texts = Packing.of_lengths(torch.full((8,), 12), 96, 12)
    memory = model.memory(whole_images(model.encode_images(images(model))))
    states = torch.randn(96, 24, requires_grad=True)
    kept: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        model.fuse_packed(states, texts, memory, torch.arange(8) % 2)
    assert sum(kept.values()) == 3 * states.untyped_storage().nbytes()
