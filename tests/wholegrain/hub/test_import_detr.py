"""DETR's encoder from both of its layouts: same outputs, every tensor accounted for."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wholegrain.errors import CheckpointError
from wholegrain.hub.backbones import load_backbones
from wholegrain.model.config import DetrVision, ModelConfig, TextConfig
from wholegrain.model.detr import sine_positions
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
SIZES: dict[str, Any] = {"width": 16, "heads": 2, "layers": 2, "feed_forward": 24}
# timm's resnet50 with one block a stage, and with few channels.
SHALLOW = DetrVision(image_size=64, options={"layers": [1, 1, 1, 1]}, **SIZES)
NARROW = DetrVision(
    image_size=64, options={"layers": [1, 2, 1, 1], "channels": [4, 8, 16, 16]}, **SIZES
)
IMAGES = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(3))
State = dict[str, Tensor]


def model_of(vision: DetrVision) -> MultiGrainModel:
    torch.manual_seed(1)
    return MultiGrainModel(ModelConfig(vision=vision, text=TEXT, embed_dim=8)).eval()


def stir(module: nn.Module) -> None:
    """Moves weights and frozen statistics, the variances within what is positive."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                tensor += 0.05 * torch.randn(tensor.shape, generator=generator)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- the original -------------------------------------------------------------------------------


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        import torchvision
        from torchvision.models._utils import IntermediateLayerGetter

        network = torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck,
            [1, 1, 1, 1],
            norm_layer=torchvision.ops.FrozenBatchNorm2d,
        )
        self.body = IntermediateLayerGetter(network, return_layers={"layer4": "0"})


class Detr(nn.Module):
    """The encoder half of DETR from torch's and torchvision's own modules, by its names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(Backbone())
        self.input_proj = nn.Conv2d(2048, 16, 1)
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.1, batch_first=True)
        self.transformer = nn.Module()
        self.transformer.encoder = nn.Module()
        self.transformer.encoder.layers = nn.TransformerEncoder(layer, 2).layers
        decoder = nn.TransformerDecoderLayer(16, 2, 24)
        self.transformer.decoder = nn.TransformerDecoder(decoder, 1, nn.LayerNorm(16))
        self.class_embed, self.query_embed = nn.Linear(16, 5), nn.Embedding(3, 16)
        self.bbox_embed = nn.Linear(16, 4)
        stir(self)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.input_proj(self.backbone[0].body(images)["0"])
        states = maps.flatten(2).transpose(1, 2)
        places = sine_positions(maps.shape[2:], 16, images.device, images.dtype)
        for layer in self.transformer.encoder.layers:
            asked = states + places
            states = layer.norm1(states + layer.self_attn(asked, asked, states)[0])
            states = layer.norm2(states + layer.linear2(layer.linear1(states).relu()))
        return states


@pytest.mark.parametrize("masks", [False, True])
def test_the_original_layout(tmp_path: Path, masks: bool) -> None:
    theirs, model = Detr(), model_of(SHALLOW)
    state = theirs.state_dict()
    if masks:  # a panoptic checkpoint: the detector below, a mask head beside it
        state = {f"detr.{name}": tensor for name, tensor in state.items()}
        state |= {
            "mask_head.lay1.weight": torch.ones(3),
            "bbox_attention.q_linear.bias": torch.ones(3),
        }
    stored = {"model": state, "args": argparse.Namespace(lr=1e-4, masks=masks), "epoch": 300}
    torch.save(stored, tmp_path / "detr.pth")
    report = load_backbones(model, vision=tmp_path / "detr.pth")
    features = model.encode_images(IMAGES)
    close(features.patches, theirs(IMAGES))
    assert features.grid == (3, 2)
    part = report.parts[0]
    assert part.layout == "DETR (original)"
    tops = {re.sub(r"^detr\.", "", name).split(".")[0] for name in part.dropped}
    expected = {"transformer", "class_embed", "query_embed", "bbox_embed"}
    assert tops == (expected | {"mask_head", "bbox_attention"} if masks else expected)
    assert not any("encoder" in name or "backbone" in name for name in part.dropped)
    assert not any(place.startswith("vision") for place in report.fresh)


# --- Hugging Face's -----------------------------------------------------------------------------


def hugging_face(kind: str, backbone: str) -> Any:
    import transformers

    sizes = {
        "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "num_queries": 3,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    }  # fmt: skip
    torch.manual_seed(0)
    if backbone == "timm":
        network: dict[str, Any] = {
            "use_timm_backbone": True,
            "use_pretrained_backbone": False,
            "backbone": "resnet26",
        }
    else:
        resnet = transformers.ResNetConfig(
            embedding_size=64,
            hidden_sizes=[16, 32, 64, 64],
            depths=[1, 2, 1, 1],
            out_features=["stage4"],
        )
        network = {"use_timm_backbone": False, "backbone_config": resnet}
    model = getattr(transformers, kind)(transformers.DetrConfig(**sizes, **network))
    stir(model)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "backbone"),
    [
        ("DetrModel", "resnet"),
        ("DetrForObjectDetection", "resnet"),
        ("DetrForObjectDetection", "timm"),
    ],
)
def test_hugging_faces_layout(tmp_path: Path, kind: str, backbone: str) -> None:
    theirs = hugging_face(kind, backbone)
    theirs.save_pretrained(tmp_path)
    vision = NARROW if backbone == "resnet" else DetrVision(name="resnet26", image_size=64, **SIZES)
    model = model_of(vision)
    report = load_backbones(model, vision=tmp_path)
    stack = getattr(theirs, "model", theirs) if kind != "DetrModel" else theirs
    with torch.no_grad():
        expected = stack(pixel_values=IMAGES).encoder_last_hidden_state
        features = model.encode_images(IMAGES)
    close(features.patches, expected)
    part = report.parts[0]
    assert part.layout == "DETR (Hugging Face)"
    tops = {name.removeprefix("model.").split(".")[0] for name in part.dropped}
    detector = {"class_labels_classifier", "bbox_predictor"} if kind != "DetrModel" else set()
    assert tops == {"decoder", "query_position_embeddings"} | detector


def test_stages_are_the_networks(tmp_path: Path) -> None:
    theirs = hugging_face("DetrModel", "resnet")
    theirs.save_pretrained(tmp_path)
    model = model_of(NARROW)
    load_backbones(model, vision=tmp_path)
    # In double precision: in single, fifty convolutions round differently from one processor to the
    # next, by more than what is asked for here.
    network, images = theirs.double().backbone.model, IMAGES.double()
    hidden = network(images, output_hidden_states=True).hidden_states[1:]
    for ours, expected in zip(model.double().encode_images(images).pyramid, hidden, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_a_dilated_network_is_refused(tmp_path: Path) -> None:
    theirs = hugging_face("DetrModel", "resnet")
    theirs.config.dilation = True
    theirs.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"dilation True, the model False; .* without DC5"):
        load_backbones(model_of(NARROW), vision=tmp_path)


# --- what does not fit --------------------------------------------------------------------------

LAYER = "transformer.encoder.layers.1"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop(f"{LAYER}.norm2.bias"), "lacks vision.layers.1.feed_forward_norm.bias"),
        (lambda s: s.update({f"{LAYER}.norm3.bias": torch.ones(16)}), "norm3.bias' is not part of"),
        (
            lambda s: s.update({"transformer.encoder.norm.bias": torch.ones(16)}),
            "a DETR trained with norms before each block",
        ),
        (
            lambda s: s.update({f"{LAYER}.self_attn.in_proj_bias": torch.ones(47)}),
            "in_proj_bias' has 47 rows",
        ),
        (
            lambda s: s.pop("backbone.0.body.bn1.running_var"),
            "lacks vision.backbone.bn1.running_var",
        ),
        (
            lambda s: s.update({"backbone.0.body.layer5.0.conv1.weight": torch.ones(1)}),
            "layer5.0.conv1.weight' is not part of DETR",
        ),
        (
            lambda s: s.update({"backbone.0.body.layer1.1.conv1.weight": torch.ones(1)}),
            "the model has no vision.backbone.layer1.1.conv1.weight.*Set vision.name",
        ),
        (
            lambda s: s.update({"detr.input_proj.bias": torch.ones(16)}),
            "which has 'input_proj.bias' already",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[State], object], match: str
) -> None:
    state = Detr().state_dict()
    change(state)
    torch.save({"model": state}, tmp_path / "detr.pth")
    with pytest.raises(CheckpointError, match=match):
        load_backbones(model_of(SHALLOW), vision=tmp_path / "detr.pth")


def test_counters_of_batches_are_passed_over(tmp_path: Path) -> None:
    state = Detr().state_dict()
    state["backbone.0.body.bn1.num_batches_tracked"] = torch.tensor(7)
    torch.save(state, tmp_path / "detr.pth")
    load_backbones(model_of(SHALLOW), vision=tmp_path / "detr.pth")
