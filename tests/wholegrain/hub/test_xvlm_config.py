"""What model a file holds, told by shapes, by what is stored, and by what is given."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.wholegrain.hub.published_xvlm import CONFIGS, STORED, TOLD, VISIONS, published
from wholegrain.errors import CheckpointError, ConfigError
from wholegrain.hub.export_xvlm import as_xvlm_file
from wholegrain.hub.xvlm_config import model_config_of
from wholegrain.hub.xvlm_layout import as_layout, inventory
from wholegrain.hub.xvlm_names import TIED, is_index
from wholegrain.model.config import ModelConfig, SwinVision, VitVision
from wholegrain.model.multigrain import MultiGrainModel

BASES = {
    "swin 224": SwinVision(),
    "swin 384": SwinVision(image_size=384, window=12),
    "swin tiny": SwinVision(embed_dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)),
    "vit": VitVision(local_layers=4),
    "clip 384": VitVision(image_size=384, clip=True, local_layers=4),
}


@pytest.mark.parametrize("kind", VISIONS)
@pytest.mark.parametrize("layout", ["pretrained", "retrieval", "grounding"])
def test_small_models(kind: str, layout: str) -> None:
    assert model_config_of(published(kind, layout), STORED, **TOLD[kind]) == CONFIGS[kind]


@pytest.mark.parametrize("name", BASES)
def test_published_sizes_need_no_help(name: str) -> None:
    config = ModelConfig(vision=BASES[name])
    state = inventory(config)
    assert model_config_of(state) == config
    # A grounding file has no projections, but everything else that tells the model.
    assert model_config_of(as_layout(state, "grounding")) == config


def test_the_inventory_of_the_published_model() -> None:
    """Figures of the 4M Swin-B checkpoint."""
    state = inventory(ModelConfig.base())
    assert len(state) == 644
    weights = {k: v for k, v in state.items() if k not in TIED and not is_index(k)}
    assert len(weights) == 606
    assert sum(value.numel() for value in weights.values()) == 215_637_241
    assert all(value.is_meta for value in weights.values()), "nothing was allocated"
    parts = {
        "vision_encoder.": 86_743_224,
        "text_encoder.": 126_057_018,
        "itm_head.": 1_187_330,
        "bbox_head.": 1_190_404,
    }
    for start, count in parts.items():
        found = sum(v.numel() for k, v in weights.items() if k.startswith(start))
        assert found == count, start
    masks = {k: tuple(v.shape) for k, v in state.items() if k.endswith("attn_mask")}
    assert len(masks) == 11
    assert set(masks.values()) == {(64, 49, 49), (16, 49, 49), (4, 49, 49)}
    shapes = {
        "vision_encoder.layers.2.blocks.17.attn.relative_position_bias_table": (169, 16),
        "vision_encoder.layers.2.downsample.reduction.weight": (1024, 2048),
        "vision_encoder.layers.0.blocks.0.attn.relative_position_index": (49, 49),
        "text_encoder.bert.encoder.layer.6.crossattention.self.key.weight": (768, 1024),
        "text_encoder.bert.embeddings.position_ids": (1, 512),
        "text_encoder.cls.predictions.decoder.weight": (30522, 768),
        "vision_proj.weight": (256, 1024),
        "itm_head.3.weight": (2, 1536),
        "bbox_head.3.weight": (4, 1536),
        "temp": (),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_a_stored_configuration_fills_what_shapes_leave_open() -> None:
    odd = replace(
        CONFIGS["vit"],
        vision=replace(VISIONS["vit"], heads=6, local_layers=0),
        text=replace(CONFIGS["vit"].text, heads=2, dropout=0.0, norm_eps=1e-6),
        temperature=0.1,
    )
    file = as_xvlm_file(MultiGrainModel(odd), "grounding")
    assert model_config_of(file.state, file.config) == odd
    # What is given goes before what is stored.
    assert model_config_of(file.state, file.config, text_heads=4).text.heads == 4


def test_64_channels_a_head_unless_told() -> None:
    state = published("swin")
    with pytest.raises(CheckpointError, match=r"heads of 24 channels .* give text_heads"):
        model_config_of(state)
    with pytest.raises(CheckpointError, match=r"heads of 24 channels .* give vision_heads"):
        model_config_of(published("vit"))
    with pytest.raises(CheckpointError, match=r"text\.hidden_size is 24, .* text\.heads 5"):
        model_config_of(state, text_heads=5)
    with pytest.raises(CheckpointError, match=r"vision\.local_layers is 4, more than the 2 blocks"):
        model_config_of(published("vit"), text_heads=3, vision_heads=3)
    with pytest.raises(ConfigError, match="it is a Swin"):
        model_config_of(state, text_heads=3, vision_heads=3)


@pytest.mark.parametrize(
    ("kind", "stored", "message"),
    [
        ("swin", {"use_roberta": True}, "RoBERTa's words"),
        ("swin", {"image_res": 224}, "is of 56 px .* image_res of the stored configuration is 224"),
        ("vit", {"image_res": 224}, "is of 32 px .* image_res of the stored configuration is 224"),
        ("vit", {"temp": "warm"}, "temp of the stored configuration is 'warm', expected a number"),
        ("vit", {"temp": True}, "temp of the stored configuration is True"),
        ("vit", {"temp": -1}, "'temperature' is -1"),
        ("vit", {"text_config": {"num_attention_heads": 0}}, "'text.heads' is 0"),
        ("vit", {"text_config": {"layer_norm_eps": float("nan")}}, "'text.norm_eps' is"),
        ("vit", {"vision_config": {"hidden_act": "relu"}}, "hidden_act .* 'relu'; gelu and"),
        ("vit", {"image_res": 32.5}, "image_res of the stored configuration is 32.5"),
    ],
)
def test_contradictions(kind: str, stored: dict[str, Any], message: str) -> None:
    told = dict(TOLD[kind])
    if "num_attention_heads" in stored.get("text_config", {}):
        told.pop("text_heads")
    with pytest.raises(CheckpointError, match=message):
        model_config_of(published(kind), stored, **told)


def test_an_unusual_activation_is_read_where_the_file_tells_it() -> None:
    stored = {"vision_config": {"hidden_act": "gelu"}}
    assert model_config_of(published("clip"), stored, **TOLD["clip"]).vision.gelu == "gelu"
    assert model_config_of(published("clip"), {}, **TOLD["clip"]).vision.gelu == "quick_gelu"


def test_positions_that_are_no_square() -> None:
    state = published("clip")
    state["vision_encoder.pos_embed.weight"] = torch.zeros(16, 24)
    with pytest.raises(CheckpointError, match="16 positions, expected one of the class token"):
        model_config_of(state, **TOLD["clip"])
    state["vision_encoder.pos_embed.weight"] = torch.zeros(1, 24)
    with pytest.raises(CheckpointError, match="1 positions, expected one of the class token"):
        model_config_of(state, **TOLD["clip"])
