"""Every tensor of every layout has one name of ours, and the way back is the same."""

import pytest
import torch

from tests.wholegrain.hub.published_xvlm import CONFIGS, TEXT, VISIONS, published
from wholegrain.errors import CheckpointError
from wholegrain.hub.import_xvlm import from_xvlm
from wholegrain.hub.xvlm_names import TIED, is_index, to_xvlm
from wholegrain.model.multigrain import MultiGrainModel


@pytest.mark.parametrize("kind", VISIONS)
def test_every_tensor_of_every_layout_is_mapped(kind: str) -> None:
    model = MultiGrainModel(CONFIGS[kind])
    state = from_xvlm(published(kind), TEXT.fusion_layer)
    model.load_state_dict(state, strict=True)
    assert set(state) == set(model.state_dict())
    features = model.eval().encode_images(torch.randn(1, 3, *[VISIONS[kind].image_size] * 2))
    assert torch.isfinite(features.patches).all()


def test_values_arrive_where_they_belong() -> None:
    source = published("swin")
    ours = from_xvlm(source, TEXT.fusion_layer)
    layer = "text_encoder.bert.encoder.layer"
    for theirs, name in {
        "temp": "temperature",
        f"{layer}.1.attention.self.key.weight": "text.layers.1.attention.key.weight",
        f"{layer}.2.output.dense.bias": "cross.layers.0.feed_forward.down.bias",
        f"{layer}.3.crossattention.output.LayerNorm.weight": (
            "cross.layers.1.cross_residual.norm.weight"
        ),
        "bbox_head.3.weight": "box_head.mlp.3.weight",
        "itm_head.1.bias": "match_head.1.bias",
        "vision_encoder.layers.0.downsample.reduction.weight": (
            "vision.backbone.layers.1.downsample.reduction.weight"
        ),
        "text_encoder.cls.predictions.bias": "masked_language_head.bias",
    }.items():
        assert torch.equal(ours[name], source[theirs]), name


@pytest.mark.parametrize("kind", VISIONS)
def test_the_way_back_gives_every_tensor(kind: str) -> None:
    source = published(kind)
    back = to_xvlm(from_xvlm(source, TEXT.fusion_layer), TEXT.fusion_layer, kind == "clip")
    assert set(back) == {name for name in source if name not in TIED and not is_index(name)}
    assert all(torch.equal(back[name], source[name]) for name in back)


@pytest.mark.parametrize(
    "name", ["adapter.up.weight", "vision.backbone.head.weight", "text.layers.0.gate.weight"]
)
@pytest.mark.parametrize("clip", [True, False])
def test_what_x_vlm_has_no_name_for_is_named(name: str, clip: bool) -> None:
    with pytest.raises(CheckpointError, match=f"'{name}' has no place in X-VLM's layout"):
        to_xvlm({name: torch.zeros(1)}, 2, clip)


def test_clips_three_projections_become_one() -> None:
    source = published("clip")
    ours = from_xvlm(source, TEXT.fusion_layer)
    fused = ours["vision.backbone.blocks.1.attn.qkv.weight"]
    parts = [
        source[f"vision_encoder.encoder.layers.1.self_attn.{each}_proj.weight"] for each in "qkv"
    ]
    assert torch.equal(fused, torch.cat(parts))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("swin", "text_decoder.bert.embeddings.word_embeddings.weight"),
        ("swin", "text_encoder.bert.encoder.layer.1.adapter.dense.weight"),
        ("swin", "text_encoder.encoder.layer.1.output.dense.weight"),
        ("swin", "queue"),
        ("swin", "cls_head.0.weight"),
        ("swin", "vision_encoder.layers.0.blocks.0.attn.extra.weight"),
        ("swin", "vision_encoder.head.weight"),
        ("vit", "vision_encoder.dist_token"),
        ("clip", "vision_encoder.encoder.layers.0.layer_norm3.weight"),
        ("clip", "vision_encoder.patch_embed.bias"),
    ],
)
def test_unknown_tensors_are_named(kind: str, name: str) -> None:
    state = {**published(kind), name: torch.zeros(1)}
    with pytest.raises(CheckpointError, match=f"'{name}' is not part of a pretraining checkpoint"):
        from_xvlm(state, TEXT.fusion_layer)


def test_a_missing_part_of_clips_projection_is_named() -> None:
    state = published("clip")
    gone = "vision_encoder.encoder.layers.0.self_attn.k_proj.bias"
    del state[gone]
    with pytest.raises(CheckpointError, match=f"'{gone}' is missing"):
        from_xvlm(state, TEXT.fusion_layer)
