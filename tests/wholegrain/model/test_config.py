"""Configurations of a model: what cannot be is refused where it is written."""

from typing import Any

import pytest

from wholegrain.config import dump_config, from_dict, to_dict
from wholegrain.errors import ConfigError
from wholegrain.model.config import (
    ClsBoxHead,
    MmcaConfig,
    ModelConfig,
    PatchBoxHead,
    SwinVision,
    TimmVision,
    VitVision,
)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"text": {"layers": 2}}, "text.fusion_layer is 6 of 2 layers"),
        ({"text": {"fusion_layer": 0}}, "text.fusion_layer is 0"),
        ({"text": {"heads": 7}}, "text.hidden_size is 768.*text.heads 7"),
        ({"text": {"heads": 0}}, "'text.heads' is 0"),
        ({"text": {"dropout": 1.0}}, "'text.dropout' is 1.0"),
        ({"vision": {"kind": "vit", "patch_size": 15}}, "vision.image_size is 224.*patch_size 15"),
        ({"vision": {"kind": "vit", "heads": 5}}, "vision.width is 768.*vision.heads 5"),
        ({"vision": {"kind": "vit", "local_layers": 13}}, "more than the 12 blocks"),
        ({"vision": {"kind": "vit", "local_layers": -1}}, "'vision.local_layers' is -1"),
        ({"vision": {"kind": "swin", "image_size": 230}}, "vision.image_size is 230.*patch 32"),
        ({"vision": {"kind": "swin", "depths": [2, 2]}}, "one positive number in both"),
        ({"vision": {"kind": "swin", "heads": [4, 8, 16, 3]}}, "stage 3's width is 1024.*heads 3"),
        ({"vision": {"kind": "swin", "depth": 3}}, "'vision.depth'; did you mean 'depths'"),
        ({"vision": {"kind": "timm", "stages": "all"}}, "'vision.stages' is 'all'"),
        ({"temperature": 0.0}, "'temperature' is 0.0"),
        ({"embed_dim": True}, "'embed_dim' is True"),
        ({"adapters": [{"kind": "mmca", "rank": 0}]}, "rank' is 0"),
        ({"adapters": [{"kind": "mmca", "sites": []}]}, r"adapters.sites is \[\]"),
        ({"adapters": [{"kind": "mmca", "sites": ["key", "key"]}]}, "name each place once"),
        ({"adapters": [{"kind": "mmca", "sites": ["output"]}]}, "sites.0' is 'output'"),
        ({"adapters": [{"kind": "mmca", "condition": "sound"}]}, "condition' is 'sound'"),
        ({"box_head": {"kind": "patch", "width": -1}}, "'box_head.width' is -1"),
    ],
)
def test_refused(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=rf"^m\.yaml: .*{match}"):
        from_dict(ModelConfig, values, where="m.yaml")


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig.base(),
        ModelConfig.tiny(),
        ModelConfig(vision=VitVision(clip=True), box_head=PatchBoxHead(), adapters=(MmcaConfig(),)),
        ModelConfig(vision=TimmVision(options={"channels": [1, 2], "act_layer": "relu"})),
    ],
)
def test_a_release_can_carry_it(config: ModelConfig) -> None:
    assert from_dict(ModelConfig, to_dict(config)) == config
    assert dump_config(config).startswith("vision:")


def test_presets() -> None:
    assert ModelConfig.base().vision == SwinVision()
    assert ModelConfig.base().box_head == ClsBoxHead()
    assert ModelConfig.tiny(vocab_size=77).text.vocab_size == 77
    assert ModelConfig.tiny().adapters == ()


def test_kind_is_part_of_what_is_written() -> None:
    kinds = {to_dict(ModelConfig(vision=v))["vision"]["kind"] for v in (VitVision(), TimmVision())}
    assert kinds == {"vit", "timm"}
