"""Pretrained image encoders: outputs of the library that made them, every tensor accounted for."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wholegrain.errors import CheckpointError
from wholegrain.hub.backbones import load_backbones
from wholegrain.model.config import ModelConfig, SwinVision, TextConfig, VisionConfig, VitVision
from wholegrain.model.multigrain import MultiGrainModel

TEXT = TextConfig(
    vocab_size=50,
    hidden_size=24,
    layers=2,
    fusion_layer=1,
    heads=3,
    intermediate_size=40,
    max_positions=20,
)
SWIN = SwinVision(image_size=64, embed_dim=8, depths=(2, 2), heads=(1, 2), window=4)
VIT = VitVision(image_size=32, patch_size=8, width=24, depth=3, heads=3)
CLIP = replace(VIT, clip=True)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
SIZES |= {"intermediate_size": 96, "image_size": 32, "patch_size": 8}
State = dict[str, Tensor]


def model_of(vision: VisionConfig) -> MultiGrainModel:
    torch.manual_seed(1)
    return MultiGrainModel(ModelConfig(vision=vision, text=TEXT, embed_dim=8)).eval()


def stirred(model: Any) -> Any:
    """Moves every weight, so that no bias, norm or table is trivial."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- Swin ---------------------------------------------------------------------------------------


def timm_swin(image_size: int = 64, window: int = 4) -> Any:
    from timm.models.swin_transformer import SwinTransformer

    return stirred(
        SwinTransformer(
            img_size=image_size,
            embed_dim=8,
            depths=(2, 2),
            num_heads=(1, 2),
            window_size=window,
            num_classes=7,
        )
    )


def published_swin(model: nn.Module, window: int = 4, masks: bool = True) -> dict[str, State]:
    """As Microsoft's file has it: merging on leaving a stage, index tables, a classifier."""
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("layers.1.downsample", "layers.0.downsample")
        state[name.replace("head.fc.", "head.")] = tensor
    for name in [name for name in state if name.endswith("bias_table")]:
        place = name.removesuffix("relative_position_bias_table")
        count = window**2
        state[f"{place}relative_position_index"] = torch.zeros(count, count).long()
    if masks:
        state["layers.0.blocks.1.attn_mask"] = torch.zeros(16, window**2, window**2)
    return {"model": state}


def test_swin_of_microsoft(tmp_path: Path) -> None:
    theirs, model = timm_swin(), model_of(SWIN)
    torch.save(published_swin(theirs), tmp_path / "swin.pth")
    report = load_backbones(model, vision=tmp_path / "swin.pth")
    images = torch.randn(2, 3, 64, 64)
    close(model.encode_images(images).patches, theirs.forward_features(images).flatten(1, 2))
    part = report.parts[0]
    assert part.layout == "Swin (Microsoft)"
    assert part.dropped == ("head.weight", "head.bias")
    assert part.redundant[0] == "layers.0.blocks.1.attn_mask"
    assert len(part.redundant) == 5
    assert not part.resized
    assert part.parameters == sum(p.numel() for p in model.vision.parameters())
    assert not any(place.startswith("vision") for place in report.fresh)
    assert {"text", "cross", "match_head", "masked_language_head"} <= set(report.fresh)


def test_swin_of_timm(tmp_path: Path) -> None:
    theirs, model = timm_swin(), model_of(SWIN)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    report = load_backbones(model, vision=tmp_path)
    images = torch.randn(2, 3, 64, 64)
    close(model.encode_images(images).patches, theirs.forward_features(images).flatten(1, 2))
    assert report.parts[0].dropped == ("head.fc.bias", "head.fc.weight")


def test_swin_for_another_window(tmp_path: Path) -> None:
    """Tables are resized, everything else is taken as it is, and the report says so."""
    from wholegrain.hub.resize import resize_bias_table

    theirs = timm_swin(64, 4)
    torch.save(published_swin(theirs), tmp_path / "swin.pth")
    model = model_of(replace(SWIN, image_size=80, window=5))
    report = load_backbones(model, vision=tmp_path / "swin.pth")
    assert len(report.parts[0].resized) == 4
    assert all(re.search(r"\(49, [12]\) to \(81, [12]\)$", r) for r in report.parts[0].resized)
    assert "resized  2 tables (49, 2) to (81, 2)" in str(report)
    state = model.vision.state_dict()
    table = next(
        name for name in state if name.endswith("0.blocks.1.attn.relative_position_bias_table")
    )
    source = theirs.layers[0].blocks[1].attn.relative_position_bias_table
    close(state[table], resize_bias_table(source, 9))
    assert torch.isfinite(model.encode_images(torch.randn(1, 3, 80, 80)).patches).all()


# --- ViT and DeiT -------------------------------------------------------------------------------


def timm_vit(**options: Any) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
    return stirred(VisionTransformer(**sizes, num_classes=7, **options))


def hugging_face(kind: str, config: str, **options: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    settings = getattr(transformers, config)(**SIZES, **options)
    return stirred(getattr(transformers, kind)(settings))


def test_deit_of_timm(tmp_path: Path) -> None:
    theirs, model = timm_vit(), model_of(VIT)
    torch.save({"model": theirs.state_dict()}, tmp_path / "deit.pth")
    report = load_backbones(model, vision=tmp_path / "deit.pth")
    features, expected = model.encode_images(IMAGES), theirs.forward_features(IMAGES)
    close(features.patches, expected[:, 1:])
    close(features.cls, expected[:, 0])
    assert report.parts[0].layout == "ViT (timm)"
    assert report.parts[0].dropped == ("head.weight", "head.bias")


@pytest.mark.parametrize("kind", ["ViTModel", "ViTForImageClassification"])
def test_vit_of_hugging_face(tmp_path: Path, kind: str) -> None:
    theirs = hugging_face(kind, "ViTConfig", layer_norm_eps=1e-6)
    theirs.save_pretrained(tmp_path)
    model = model_of(VIT)
    report = load_backbones(model, vision=tmp_path)
    expected = getattr(theirs, "vit", theirs)(pixel_values=IMAGES).last_hidden_state
    features = model.encode_images(IMAGES)
    close(features.patches, expected[:, 1:])
    close(features.cls, expected[:, 0])
    part = report.parts[0]
    assert part.layout == "ViT (Hugging Face)"
    assert len(part.dropped) == 2
    assert not part.notes


def test_deits_of_hugging_face_that_are_not_distilled(tmp_path: Path) -> None:
    """Under DeiT's prefix, and with the epsilon that Hugging Face writes by default."""
    theirs = hugging_face("ViTModel", "ViTConfig")
    theirs.save_pretrained(tmp_path / "vit")
    state = load_file(tmp_path / "vit" / "model.safetensors")
    save_file(
        {f"deit.{name}": tensor for name, tensor in state.items()}, tmp_path / "a.safetensors"
    )
    model = model_of(VIT)
    load_backbones(model, vision=tmp_path / "a.safetensors")
    expected = theirs(pixel_values=IMAGES).last_hidden_state
    close(model.encode_images(IMAGES).patches, expected[:, 1:])
    noted = load_backbones(model, vision=tmp_path / "vit").parts[0].notes
    assert noted == ("layer norms were trained with epsilon 1e-12, here it is 1e-06",)


def test_distilled_deits_are_refused_with_the_reason(tmp_path: Path) -> None:
    hugging_face("DeiTModel", "DeiTConfig").save_pretrained(tmp_path / "hf")
    state = timm_vit().state_dict()
    state["dist_token"] = torch.zeros(1, 1, 24)
    torch.save({"model": state}, tmp_path / "a.pth")
    for path in (tmp_path / "hf", tmp_path / "a.pth"):
        with pytest.raises(CheckpointError, match=r"is a distillation token.*not distilled"):
            load_backbones(model_of(VIT), vision=path)


# --- CLIP ---------------------------------------------------------------------------------------


def clip(kind: str) -> Any:
    import transformers

    if kind != "CLIPModel":
        return hugging_face(kind, "CLIPVisionConfig", projection_dim=16)
    vision = transformers.CLIPVisionConfig(**SIZES, projection_dim=16)
    text = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=1, num_attention_heads=3,
        intermediate_size=48, max_position_embeddings=12, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16
    )
    return stirred(transformers.CLIPModel(config))


@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel"])
@pytest.mark.parametrize("pickled", [False, True])
def test_clip_of_hugging_face(tmp_path: Path, kind: str, pickled: bool) -> None:
    theirs, model = clip(kind), model_of(CLIP)
    theirs.save_pretrained(tmp_path)
    if pickled:  # as the published pytorch_model.bin has it, with index tables
        state = load_file(tmp_path / "model.safetensors")
        place = "vision_model." if kind != "CLIPVisionModel" else ""
        state[f"{place}embeddings.position_ids"] = torch.arange(17)[None]
        torch.save(state, tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    report = load_backbones(model, vision=tmp_path)
    tower = getattr(theirs, "vision_model", theirs)
    expected = tower(pixel_values=IMAGES)
    features = model.encode_images(IMAGES)
    close(features.cls, expected.pooler_output)
    # X-VLM norms all tokens after the last block, CLIP the class token alone.
    norm = next(part for name, part in tower.named_modules() if name.endswith("post_layernorm"))
    close(features.patches, norm(expected.last_hidden_state[:, 1:]))
    assert report.parts[0].layout == "CLIP (Hugging Face)"
    other = {name.partition(".")[0] for name in report.parts[0].dropped}
    assert (
        other
        == {
            "CLIPVisionModel": set(),
            "CLIPVisionModelWithProjection": {"visual_projection"},
            "CLIPModel": {"text_model", "text_projection", "visual_projection", "logit_scale"},
        }[kind]
    )


def test_clip_of_timm(tmp_path: Path) -> None:
    class QuickGelu(nn.Module):
        def forward(self, states: Tensor) -> Tensor:
            return states * torch.sigmoid(1.702 * states)

    norm = partial(nn.LayerNorm, eps=1e-5)
    theirs = timm_vit(pre_norm=True, act_layer=QuickGelu, norm_layer=norm)
    save_file(theirs.state_dict(), tmp_path / "a.safetensors")
    model = model_of(CLIP)
    report = load_backbones(model, vision=tmp_path / "a.safetensors")
    expected = theirs.forward_features(IMAGES)
    close(model.encode_images(IMAGES).patches, expected[:, 1:])
    assert report.parts[0].layout == "CLIP (timm)"


def test_positions_for_another_image_size(tmp_path: Path) -> None:
    from wholegrain.hub.resize import resize_positions

    theirs = clip("CLIPVisionModel")
    theirs.save_pretrained(tmp_path)
    model = model_of(replace(CLIP, image_size=48))
    report = load_backbones(model, vision=tmp_path)
    assert [each.partition(" ")[2] for each in report.parts[0].resized] == [
        "(1, 17, 24) to (1, 37, 24)"
    ]
    table = load_file(tmp_path / "model.safetensors")["embeddings.position_embedding.weight"]
    found = next(v for n, v in model.vision.state_dict().items() if n.endswith("pos_embed"))
    close(found, resize_positions(table[None], 6))


# --- what does not fit --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vision", "match"),
    [
        (SWIN, r"holds ViT \(timm\), but the model has vision.kind: swin; set vision.kind: vit"),
        (CLIP, r"the model has vision.kind: vit with clip: true; set .* clip: false"),
        (replace(VIT, depth=4), r"the file lacks vision.*blocks.3.*and 8 more.*Set vision.width"),
        (replace(VIT, depth=2), r"the model has no vision.*blocks.2.*and 8 more"),
        (replace(VIT, width=48), r"sizes differ: .* in the file, .* in the model and \d+ more"),
        (replace(VIT, patch_size=4), r"sizes differ: vision.*patch_embed.proj.weight is"),
    ],
)
def test_another_encoder_than_configured(tmp_path: Path, vision: VisionConfig, match: str) -> None:
    torch.save({"model": timm_vit().state_dict()}, tmp_path / "a.pth")
    model, before = model_of(vision), model_of(vision).state_dict()
    with pytest.raises(CheckpointError, match=match):
        load_backbones(model, vision=tmp_path / "a.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


Change = Callable[[State], object]


@pytest.mark.parametrize(
    ("make", "vision", "change", "match"),
    [
        (
            timm_swin,
            SWIN,
            lambda s: s.update({"layers.0.extra": s["norm.bias"]}),
            "'layers.0.extra'",
        ),
        (timm_swin, SWIN, lambda s: s.pop("norm.bias"), "the file lacks vision.*norm.bias"),
        (
            timm_swin,
            SWIN,
            lambda s: s.update({n: v[:-1] for n, v in s.items() if n.endswith("bias_table")}),
            "0.blocks.0.attn.relative_position_bias_table: a relative position table has 48 rows",
        ),
        (timm_vit, VIT, lambda s: s.update({"fc_norm.bias": s["norm.bias"]}), "'fc_norm.bias'"),
        (
            timm_vit,
            VIT,
            lambda s: s.update({"pos_embed": torch.zeros(1, 12, 24)}),
            "pos_embed: 12 positions are not a class token and a square grid",
        ),
        (
            lambda: hugging_face("ViTModel", "ViTConfig"),
            VIT,
            lambda s: s.pop("encoder.layer.1.attention.attention.key.bias"),
            "lacks tensor 'encoder.layer.1.attention.attention.key.bias'",
        ),
        (
            lambda: hugging_face("ViTModel", "ViTConfig"),
            VIT,
            lambda s: s.update({"vit.layernorm.bias": s["layernorm.bias"]}),
            "'vit.layernorm.bias' is not part of ViT .* which has 'layernorm.bias' already",
        ),
        (
            lambda: clip("CLIPVisionModel"),
            CLIP,
            lambda s: s.pop("encoder.layers.1.self_attn.v_proj.weight"),
            "encoder.layers.1.self_attn.v_proj.weight' is missing",
        ),
        (
            lambda: clip("CLIPVisionModel"),
            CLIP,
            lambda s: s.update({"encoder.layers.1.layer_norm3.bias": s["pre_layrnorm.bias"]}),
            "'encoder.layers.1.layer_norm3.bias' is not part of CLIP",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, make: Callable[[], Any], vision: VisionConfig, change: Change, match: str
) -> None:
    theirs = make()
    if hasattr(theirs, "save_pretrained"):
        theirs.save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
    else:
        state = dict(theirs.state_dict())
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=match):
        load_backbones(model_of(vision), vision=tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("num_attention_heads", 4, "num_attention_heads 4, the model 3; set vision.heads"),
        ("hidden_act", "gelu", "hidden_act 'gelu', the model 'quick_gelu'"),
    ],
)
def test_what_no_shape_shows_is_read_from_the_description(
    tmp_path: Path, key: str, value: object, match: str
) -> None:
    clip("CLIPModel").save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    described["vision_config"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=match):
        load_backbones(model_of(CLIP), vision=tmp_path)
