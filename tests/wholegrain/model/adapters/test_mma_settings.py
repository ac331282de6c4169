"""MMA's settings: which blocks are paired, how a model takes them, and what is refused."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wholegrain.config import from_dict
from wholegrain.errors import ConfigError
from wholegrain.model.adapters.mma import Mma, paired
from wholegrain.model.config import MlpBoxHead, MmaConfig, RegFusion
from wholegrain.model.multigrain import MultiGrainModel

Build = Callable[..., MultiGrainModel]
Images = Callable[..., Tensor]
WAYS = ("down", "up")


def test_default_pairs() -> None:
    assert paired(MmaConfig(), 12, 6, 4) == [(9, 3), (10, 4), (11, 5), (12, 6)]
    assert paired(MmaConfig(), 24, 6, 4) == [(21, 3), (22, 4), (23, 5), (24, 6)]  # Swin-B
    assert paired(MmaConfig(blocks=1), 2, 5, 4) == [(2, 5)]
    chosen = from_dict(MmaConfig, {"pairs": [[19, 3], [23, 5]]})
    assert paired(chosen, 24, 6, 4) == [(19, 3), (23, 5)]


def test_sites_of_the_default(build: Build) -> None:
    model = build("swin")
    assert Mma(model, MmaConfig(blocks=2, cross=True)).sites() == (
        *("vision.block.3", "text.layer.1", "vision.block.4", "text.layer.2"),
        *("cross.layer.1", "cross.layer.2"),
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pairs": []}, r"image blocks \[\]; name at least one"),
        ({"pairs": [[0, 1]]}, r"image blocks \[0\]"),
        ({"pairs": [[1, 1], [2, 1]]}, r"text layers \[1, 1\]"),
        ({"pairs": [[1, 1]], "blocks": 2}, "adapters.blocks is 2 and adapters.pairs"),
        ({"alpha": -0.1}, "alpha"),
        ({"rank": 0}, "rank"),
    ],
)
def test_wrong_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(MmaConfig, values)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("timm", {"blocks": 2}, "vision.kind is 'timm', whose convolutions"),
        ("vit", {}, r"adapters.blocks is 4 \(the default\), but there are 3 image blocks"),
        ("vit", {"blocks": 3}, "adapters.blocks is 3, but there are 3 image blocks and 2 text"),
        ("vit", {"pairs": ((1, 1), (4, 2))}, r"adapters.pairs has \[4, 2\]"),
        ("local", {"blocks": 1}, "vision.local_layers is 2"),
    ],
)
def test_hosts_without_what_is_asked_for(
    build: Build, kind: str, options: dict[str, Any], message: str
) -> None:
    model = build(kind)
    with pytest.raises(ConfigError, match=message):
        Mma(model, MmaConfig(**options))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_fusion_other_than_the_cross_encoder_leaves_its_layers_alone(build: Build) -> None:
    fusion = RegFusion(width=8, layers=1, heads=2, feed_forward=16)
    model = build("vit", fusion=fusion, box_head=MlpBoxHead())
    with pytest.raises(ConfigError, match=r"adapters\.cross is true, but fusion\.kind is 'reg'"):
        model.add_adapter(MmaConfig(blocks=1, cross=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.add_adapter(MmaConfig(blocks=1))


def test_a_model_holds_its_adapters(build: Build, images: Images) -> None:
    """Under names of their own, and a copy of the model brings them along."""
    model = build("vit")
    host, batch = set(model.state_dict()), images(model)
    expected = model.encode_images(batch).patches
    model.add_adapter(MmaConfig(rank=4, blocks=2, alpha=0.5, zero_up=True))
    names = set(model.state_dict()) - host
    parts = ("shared", *(f"sides.{side}.{way}" for side in ("vision", "text") for way in WAYS))
    assert names == {
        f"adapters.mma.pairs.{pair}.{part}.{kind}"
        for pair in range(2)
        for part in parts
        for kind in ("weight", "bias")
    }
    assert torch.equal(model.encode_images(batch).patches, expected)
    assert not model.image_depends_on_text
    with pytest.raises(ConfigError, match="adapters of kind 'mma' already"):
        model.add_adapter(MmaConfig(blocks=1))
    twin = copy.deepcopy(model)
    for parameter in twin.adapters.parameters():
        nn.init.normal_(parameter, std=0.4)
    assert (twin.encode_images(batch).patches - expected).abs().max() > 1e-3
    assert torch.equal(model.encode_images(batch).patches, expected)
    again = MultiGrainModel(model.config).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.encode_images(batch).patches, expected)
