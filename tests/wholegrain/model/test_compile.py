"""Compiled and recomputed blocks: the same values and gradients, and nothing compiled twice."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from wholegrain.errors import ConfigError
from wholegrain.model.checkpointing import checkpoint_blocks
from wholegrain.model.compile import compile_blocks
from wholegrain.model.concepts import whole_images
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.packing import Packing
from wholegrain.model.stochastic_depth import StochasticDepth

Build = Callable[..., MultiGrainModel]
BACKEND = "aot_eager"  # traces and partitions as the real one, without a C++ compiler


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(model: MultiGrainModel, images: Tensor, lengths: list[int], seed: int = 0) -> list[Tensor]:
    """Fused states, pooled regions, and every gradient."""
    torch.manual_seed(seed)
    model.zero_grad()
    sizes = torch.tensor(lengths)
    texts = Packing.of_lengths(sizes, sum(lengths), max(lengths))
    tokens = torch.arange(sum(lengths)) % 40 + 1
    features = model.encode_images(images)
    image = torch.arange(len(lengths)) % len(images)
    boxes = torch.tensor([[0.4, 0.5, 0.5, 0.4]]).expand(len(lengths), 4)
    concepts = model.concepts(features, image, boxes)
    states = model.encode_packed(tokens, texts)
    fused = model.fuse_packed(states, texts, model.memory(whole_images(features)), image)
    (fused.square().sum() + concepts.sequence().square().sum()).backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [fused.detach(), concepts.cls.detach(), *gradients]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * scale + 1e-7)


@pytest.mark.parametrize("kind", ["swin", "vit", "local"])
def test_compiled_blocks_change_nothing(
    build: Build, images: Callable[..., Tensor], kind: str
) -> None:
    model = build(kind).train()
    _no_chance(model)
    expected = run(model, images(model), [5, 2, 4])
    names = list(model.state_dict())
    compile_blocks(model, BACKEND)
    assert_same(run(model, images(model), [5, 2, 4]), expected)
    assert list(model.state_dict()) == names


def test_nothing_is_compiled_twice(build: Build, images: Callable[..., Tensor]) -> None:
    """Blocks with stochastic depth of many rates, texts of any length, training and evaluation."""
    model = build("swin").train()
    assert any(isinstance(module, StochasticDepth) for module in model.modules())
    compile_blocks(model, BACKEND)
    for lengths in ([5, 2, 4], [3, 3]):
        run(model.train(), images(model), lengths)
        run(model.eval(), images(model, 3), lengths)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ([6, 2, 4, 5], [2, 3], [4, 4, 4, 4, 4, 2, 6]):
            run(model.train(), images(model), lengths)
            run(model.eval(), images(model, 1), lengths)


@pytest.mark.parametrize("kind", ["swin", "local"])
def test_recomputed_blocks_change_nothing(
    build: Build, images: Callable[..., Tensor], kind: str
) -> None:
    """Not even the draws of dropout and stochastic depth."""
    model = build(kind).train()
    expected = run(model, images(model), [5, 2, 4])
    checkpoint_blocks(model)
    assert_same(run(model, images(model), [5, 2, 4]), expected)
    assert_same(
        run(model, images(model), [5, 2, 4], seed=1), run(model, images(model), [5, 2, 4], seed=1)
    )


def test_recomputed_blocks_remember_less(build: Build, images: Callable[..., Tensor]) -> None:
    model = build("swin").train()
    kept = []
    for recompute in (False, True):
        if recompute:
            checkpoint_blocks(model)
        sizes: dict[int, int] = {}

        def remember(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        pixels = images(model, 4)
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            model.encode_images(pixels)
        kept.append(sum(sizes.values()))
    assert kept[1] < kept[0] / 2


def test_recomputed_and_compiled(build: Build, images: Callable[..., Tensor]) -> None:
    model = build("swin").train()
    _no_chance(model)
    expected = run(model, images(model), [5, 2, 4])
    checkpoint_blocks(model)
    compile_blocks(model, BACKEND)
    assert_same(run(model, images(model), [5, 2, 4]), expected)


def test_convolutions_are_not_recomputed(build: Build) -> None:
    with pytest.raises(ConfigError, match="checkpoint_activations"):
        checkpoint_blocks(build("timm"))


def test_stochastic_depth_drops_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    part = StochasticDepth(0.25)
    update = torch.ones(20_000, 2)
    dropped = part(update)
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert part.eval()(update) is update


@pytest.mark.parametrize("rate", [0.3, 0.9999, 1e-6])
def test_samples_that_go_without_a_branch_do_not_enter_it(rate: float) -> None:
    """The same draws, values and gradients; few, none or all go in."""
    torch.manual_seed(0)
    branch, seen = nn.Linear(3, 3), []

    def watched(states: Tensor) -> Tensor:
        seen.append(len(states))
        return branch(states)

    states = torch.randn(6, 2, 3, requires_grad=True)
    part = StochasticDepth(rate)
    found = []
    for run_branch in (part.add, lambda states, branch: states + part(branch(states))):
        torch.manual_seed(1)
        branch.zero_grad()
        states.grad = None
        result = run_branch(states, watched)
        result.square().sum().backward()
        found.append([result.detach(), states.grad, branch.weight.grad.clone()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert seen[1] == 6
    assert {0.3: seen[0] < 6, 0.9999: seen[0] == 6, 1e-6: seen[0] == 6}[rate]


def test_a_swin_block_is_timms(build: Build, images: Callable[..., Tensor]) -> None:
    model = build("swin").double()
    states = model.vision.backbone.patch_embed(images(model).double())
    for block in model.vision.backbone.layers[0].blocks:
        expected = type(block).forward(block, states)
        states = block(states)
        torch.testing.assert_close(states, expected, rtol=0, atol=1e-12)


def _no_chance(model: MultiGrainModel) -> None:
    """A compiler draws its own random numbers."""
    for module in model.modules():
        if isinstance(module, StochasticDepth):
            module.keep.fill_(1.0)
            module.drop_prob = 0.0
        if hasattr(module, "dropout"):
            module.dropout = 0.0
