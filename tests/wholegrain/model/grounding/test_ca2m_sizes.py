"""CA2M at its published sizes, the depths that its groups take, and what it refuses."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from wholegrain.config import from_dict, to_dict
from wholegrain.errors import ConfigError
from wholegrain.model.adapters.condition import Condition
from wholegrain.model.config import Ca2mFusion, ModelConfig, SwinVision, TimmVision, VitVision
from wholegrain.model.grounding.ca2m import Ca2m, text_depths
from wholegrain.model.grounding.records import TextStates
from wholegrain.model.vision import VisionEncoder, build_vision

TEXT_WIDTH, TEXT_LAYERS = 20, 6
CONFIG = Ca2mFusion(
    stage_width=8,
    group_width=16,
    heads=4,
    group_feed_forward=24,
    feed_forward=40,
)
TIMM = TimmVision(
    name="resnet26",
    image_size=64,
    stages=(2, 3, 4),
    options={"channels": [4, 8, 12, 16], "layers": [1, 1, 1, 1]},
)


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.fixture(scope="module")
def published() -> tuple[VisionEncoder, Ca2m]:
    """ResNet-50 at 512 pixels and BERT's first six layers, without values."""
    with torch.device("meta"):
        vision = build_vision(TimmVision(name="resnet50", image_size=512, stages=(2, 3, 4)))
        return vision.eval(), Ca2m(Ca2mFusion(), vision, 768, 6).eval()


def test_published_size(published: tuple[VisionEncoder, Ca2m]) -> None:
    vision, fusion = published
    interaction = [layer for group in fusion.groups for layer in group.layers] + [*fusion.layers]
    linears = [linear for group in fusion.groups for linear in (group.visual, group.textual)]
    assert [count(linear) for linear in linears] == [196_864] * 6
    assert count(fusion.stages) == 918_272
    assert count(*interaction) == 6 * 2_630_144 + 3 * 14_175_744
    assert round(count(*interaction) / 1e6, 2) == 58.31
    assert count(fusion) == count(*interaction) + 918_272 + 6 * 196_864
    with torch.device("meta"):
        small = Ca2m(Ca2mFusion(group_feed_forward=1024), vision, 768, 6)
    layers = [layer for group in small.groups for layer in group.layers] + [*small.layers]
    assert round(count(*layers) / 1e6, 2) == 52.00


def test_published_shapes(published: tuple[VisionEncoder, Ca2m]) -> None:
    vision, fusion = published
    shapes: list[tuple[int, ...]] = []
    for module in (*fusion.groups, fusion.layers[0]):
        module.register_forward_hook(
            lambda _, __, output: shapes.extend(tuple(part.shape) for part in output)
        )
    with torch.device("meta"):
        features = vision(torch.zeros(2, 3, 512, 512))
        states = tuple(torch.zeros(2, 40, 768) for _ in range(6))
        texts = TextStates(states[-1], torch.ones(2, 40, dtype=torch.bool), states)
        image = torch.arange(2)
        assert fusion.joined(features).shape == (2, 1024, 768)
        vectors = fusion(vision, texts, features, image, Condition()).vectors
    assert shapes == [(2, 1024, 256), (2, 40, 256)] * 3 + [(2, 1024, 768), (2, 40, 768)]
    assert vectors.shape == (2, 1, 768)


def test_swin_base_has_the_maps() -> None:
    with torch.device("meta"):
        vision = build_vision(SwinVision(image_size=384, window=12))
        fusion = Ca2m(Ca2mFusion(), vision, 768, 6)
    assert fusion.maps == [(8, 256), (16, 512), (32, 1024)]
    projections = [stage.projection for stage in fusion.stages]
    assert count(*projections) == (256 + 512 + 1024) * 256 + 3 * 256


def test_the_costs_that_the_docs_name() -> None:
    """With Swin-B at 384 px and a text of 40 tokens; the formula is compared with torch's counter
    on small sizes."""
    with torch.device("meta"):
        vision = build_vision(SwinVision(image_size=384, window=12))
        cost = Ca2m(Ca2mFusion(), vision, 768, 6).macs((384, 384), 40)
    assert cost.image == pytest.approx(0.6e9, rel=0.02)
    assert cost.text == pytest.approx(17.9e9, rel=0.02)


def test_behind_the_tiny_model() -> None:
    host = ModelConfig.tiny()
    vision = build_vision(host.vision)
    config = Ca2mFusion(groups=2, group_width=96, group_feed_forward=64, feed_forward=96)
    fusion = Ca2m(config, vision, host.text.hidden_size, host.text.fusion_layer)
    assert (fusion.depths, fusion.width) == ((1, 2), 192)
    with pytest.raises(ConfigError, match=r"fusion.groups is 3, but the text encoder has 2 layers"):
        Ca2m(replace(config, groups=3), vision, 192, host.text.fusion_layer)


@pytest.mark.parametrize(
    ("layers", "groups", "expected"),
    [(6, 3, (2, 4, 6)), (2, 2, (1, 2)), (4, 3, (2, 3, 4)), (3, 3, (1, 2, 3)), (6, 1, (6,))],
)
def test_depths_are_spread_evenly(layers: int, groups: int, expected: tuple[int, ...]) -> None:
    assert text_depths(replace(CONFIG, groups=groups), layers) == expected


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vision", "strides"),
    [
        (VitVision(image_size=32, patch_size=8, width=24, depth=1, heads=3), r"\[8\]"),
        (replace(TIMM, stages=(3, 4)), r"\[16, 32\]"),
        (
            TimmVision(
                name="resnet26", image_size=64, stages=(2, 3, 4), options={"output_stride": 16}
            ),
            r"\[8, 16, 16\]",
        ),
    ],
)
def test_encoders_without_three_strides(vision: Any, strides: str) -> None:
    with pytest.raises(ConfigError, match=f"maps of three strides.*{strides}.*swin"):
        Ca2m(CONFIG, build_vision(vision), TEXT_WIDTH, TEXT_LAYERS)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"stride": 24}, r"fusion.stride is 24.*stride 16.*\[8, 16, 32\]"),
        ({"groups": 7}, "fusion.groups is 7.*6 layers.*at most 6"),
        ({"text_layers": (2, 4, 8)}, r"fusion.text_layers is \[2, 4, 8\].*6 layers.*1 to 6"),
    ],
)
def test_models_that_do_not_suit(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Ca2m(replace(CONFIG, **change), build_vision(TIMM), TEXT_WIDTH, TEXT_LAYERS)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"heads": 5}, "fusion.group_width is 16.*fusion.heads 5"),
        ({"group_width": 18, "heads": 2}, "fusion.group_width is 18.*positions' group 4"),
        ({"text_layers": (2, 4)}, r"fusion.text_layers is \[2, 4\] for 3 fusion.groups"),
        ({"text_layers": (2, 6, 4)}, "ascending"),
        ({"text_layers": (2, 2, 4)}, "ascending"),
        ({"text_layers": (0, 2, 4)}, "from 1"),
    ],
)
def test_configurations_that_cannot_be(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        replace(CONFIG, **change)


def test_configuration_survives_a_file() -> None:
    config = replace(CONFIG, text_layers=(1, 2, 3))
    assert from_dict(Ca2mFusion, to_dict(config)) == config
