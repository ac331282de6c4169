"""DETR's image encoder: positions, frozen statistics, any resolution, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch

from wholegrain.errors import ConfigError
from wholegrain.model.config import DetrVision, ModelConfig, TextConfig
from wholegrain.model.detr import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DetrEncoder,
    FrozenBatchNorm2d,
    sine_positions,
)
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.vision import build_vision
from wholegrain.train.config import OptimConfig
from wholegrain.train.optim import parameter_groups

TINY = DetrVision(
    name="resnet26",
    image_size=64,
    width=16,
    heads=2,
    layers=2,
    feed_forward=24,
    options={"channels": [4, 8, 16, 16], "layers": [1, 1, 1, 1]},
)
TEXT = TextConfig(
    vocab_size=50,
    hidden_size=24,
    layers=2,
    fusion_layer=1,
    heads=3,
    intermediate_size=40,
    max_positions=20,
)
CPU = torch.device("cpu")


@pytest.fixture
def encoder() -> DetrEncoder:
    torch.manual_seed(0)
    built = build_vision(TINY)
    assert isinstance(built, DetrEncoder)
    return built.eval()


def test_published_size() -> None:
    """DETR-R50 without decoder and heads: 23.45 M of ResNet, 0.52 M of projection, 7.89 M."""
    count = sum(parameter.numel() for parameter in build_vision(DetrVision()).parameters())
    network = 23_454_912  # torchvision's resnet50 without classifier and norms
    layer = 4 * (256 * 256 + 256) + 2 * 256 * 2048 + 2048 + 256 + 4 * 256
    assert count == network + 2048 * 256 + 256 + 6 * layer


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (100, 130)])
def test_any_resolution(encoder: DetrEncoder, size: tuple[int, int]) -> None:
    features = encoder(torch.randn(2, 3, *size))
    grid = (math.ceil(size[0] / 32), math.ceil(size[1] / 32))
    assert features.grid == grid
    assert features.patches.shape == (2, grid[0] * grid[1], 16)
    torch.testing.assert_close(features.cls, features.patches.mean(1))
    assert [level.shape[1] for level in features.pyramid] == [16, 32, 64, 64]
    assert tuple(features.pyramid[-1].shape[2:]) == grid
    assert tuple(features.pyramid[0].shape[2:]) == tuple(math.ceil(side / 4) for side in size)


def test_positions_by_the_formula() -> None:
    codes = sine_positions((3, 5), 8, CPU, torch.float64).view(3, 5, 8)
    for row in range(3):
        for column in range(5):
            for half, (place, count) in enumerate(((row + 1, 3), (column + 1, 5))):
                scaled = 2 * math.pi * place / (count + 1e-6)
                for k in range(2):
                    angle = scaled / 10000 ** (2 * k / 4)
                    found = codes[row, column, 4 * half + 2 * k : 4 * half + 2 * k + 2].tolist()
                    assert found == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-12)


def test_norms_are_batch_norms_at_rest() -> None:
    theirs = torch.nn.BatchNorm2d(6).eval()
    with torch.no_grad():
        for tensor in (theirs.weight, theirs.bias, theirs.running_mean, theirs.running_var):
            assert tensor is not None
            tensor.uniform_(0.5, 2)
    ours = FrozenBatchNorm2d(6)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if "tracked" not in k})
    states = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(ours.train()(states), theirs(states))
    assert not list(ours.parameters())


def test_training_moves_no_statistics(encoder: DetrEncoder) -> None:
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder.train()(torch.randn(2, 3, 64, 64)).patches.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())
    without = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert not without
    # No block starts shut behind a norm that can never open.
    assert all(bool(p.grad.abs().sum() > 0) for n, p in encoder.named_parameters() if "conv3" in n)


def test_images_do_not_see_each_other(encoder: DetrEncoder) -> None:
    images = torch.randn(3, 3, 64, 64)
    alone = encoder(images[1:2]).patches[0]
    torch.testing.assert_close(encoder(images).patches[1], alone, rtol=1e-5, atol=1e-5)


def test_constants_are_imagenets(encoder: DetrEncoder) -> None:
    pixels = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    for channel in range(3):
        expected = (pixels[0, channel] / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        torch.testing.assert_close(encoder.normalise(pixels)[0, channel], expected)


def test_a_model_with_it() -> None:
    torch.manual_seed(0)
    model = MultiGrainModel(ModelConfig(vision=TINY, text=TEXT, embed_dim=8)).eval()
    images = model.normalise_images(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    ids = torch.tensor([[1, 2, 3], [1, 4, 0]])
    boxes, scores = model.ground(images, ids, ids > 0, torch.tensor([0, 1]))
    assert boxes.shape == (2, 4)
    assert torch.isfinite(scores).all()
    groups = parameter_groups(model, OptimConfig())
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image_size": 100}, "vision.image_size is 100.*32"),
        ({"heads": 3}, "vision.width is 16.*vision.heads 3"),
        ({"width": 18, "heads": 2}, "vision.width is 18.*positions' group 4"),
    ],
)
def test_sizes_that_cannot_be(change: dict[str, int], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        replace(TINY, **change)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("no_such_model", {}, "vision.name is 'no_such_model'"),
        ("convnext_atto", {}, "residual network"),
        ("resnet26", {"nonsense": 1}, "nonsense"),
        ("resnet26", {"act_layer": "zz"}, r"vision.name is 'resnet26' with stages \(1, 2, 3, 4\)"),
        ("resnet26", {"output_stride": 16}, r"strides \[4, 8, 16, 16\]"),
    ],
)
def test_networks_that_are_none(name: str, options: dict[str, int], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build_vision(replace(TINY, name=name, options=options))
