"""Models of each kind of image encoder, small enough to be built and run in milliseconds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wholegrain.model.config import (
    ModelConfig,
    SwinVision,
    TextConfig,
    TimmVision,
    VisionConfig,
    VitVision,
)
from wholegrain.model.multigrain import MultiGrainModel

Build = Callable[..., MultiGrainModel]

TEXT = TextConfig(
    vocab_size=50,
    hidden_size=24,
    layers=4,
    fusion_layer=2,
    heads=3,
    intermediate_size=40,
    max_positions=20,
)
VISIONS: dict[str, VisionConfig] = {
    "swin": SwinVision(image_size=64, embed_dim=8, depths=(2, 2), heads=(1, 2), window=4),
    "vit": VitVision(image_size=32, patch_size=8, width=24, depth=3, heads=3),
    "local": VitVision(image_size=32, patch_size=8, width=24, depth=3, heads=3, local_layers=2),
    "clip": VitVision(image_size=32, patch_size=8, width=24, depth=2, heads=3, clip=True),
    "timm": TimmVision(
        name="resnet18d",
        image_size=64,
        stages=(1, 2, 3),
        options={"channels": [8, 12, 16, 16], "stem_width": 4},
    ),
}


def stir(module: nn.Module, seed: int = 0) -> None:
    """Moves every weight, so that no bias, norm or gate is trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def build() -> Build:
    """Makes a stirred model in evaluation mode: ``build("swin", box_head=...)``."""

    def make(vision: str = "vit", seed: int = 0, **options: Any) -> MultiGrainModel:
        torch.manual_seed(seed)
        chosen = VISIONS[vision]
        model = MultiGrainModel(
            ModelConfig(vision=chosen, text=options.pop("text", TEXT), embed_dim=8, **options)
        )
        stir(model, seed)
        with torch.no_grad():
            model.temperature.fill_(0.07)
        return model.eval()

    return make


@pytest.fixture
def images() -> Callable[[MultiGrainModel, int], Tensor]:
    """Random photos of a model's size, normalised."""

    def make(model: MultiGrainModel, count: int = 2) -> Tensor:
        side = model.vision.image_size
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator)
        return model.normalise_images(pixels.to(torch.uint8))

    return make


@pytest.fixture
def words() -> tuple[Tensor, Tensor]:
    """Ids and mask (3, 6) of texts of 6, 3 and 5 tokens."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 50, (3, 6), generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 3, 5])[:, None]
    return ids.masked_fill(~mask, 0), mask
