"""Which image encoders are refused as ScanFormer's body, and with what words."""

import pytest
import torch
from torch import nn

from wholegrain.errors import ConfigError
from wholegrain.model.config import (
    DetrVision,
    ScanFusion,
    SwinVision,
    TimmVision,
    VisionConfig,
    VitVision,
)
from wholegrain.model.grounding.scan import ScanFormer
from wholegrain.model.grounding.scan_body import (
    class_state,
    embed_patches,
    photo_patches,
    scale_positions,
)
from wholegrain.model.grounding.scan_tokens import patchify
from wholegrain.model.vision import VitEncoder, build_vision

PLAIN = {"image_size": 64, "patch_size": 8, "width": 32, "depth": 2, "heads": 4}
SMALL = {"channels": [4, 8, 16, 32], "stem_width": 4}
REFUSED: list[tuple[VisionConfig, str]] = [
    (
        SwinVision(image_size=64, embed_dim=8, depths=(2, 2), heads=(1, 2), window=4),
        "'swin', whose windows and relative positions tell equal patches apart",
    ),
    (
        DetrVision(image_size=64, width=16, layers=2, heads=2, feed_forward=8, options=SMALL),
        "'detr', whose layers add positions",
    ),
    (TimmVision(name="resnet18d", image_size=64, options=SMALL), "'timm', whose stages have no"),
    (VitVision(**{**PLAIN, "local_layers": 1}), "local_layers is 1"),
    (VitVision(**{**PLAIN, "depth": 1}), "depth is 1, which cannot be cut"),
    (VitVision(**{**PLAIN, "drop_path": 0.1}), "drop_path is 0.1"),
]


@pytest.mark.parametrize(("vision", "reason"), REFUSED)
def test_an_encoder_that_cannot_be_the_body(vision: VisionConfig, reason: str) -> None:
    with torch.device("meta"):
        encoder = build_vision(vision)
    with pytest.raises(ConfigError) as refusal:
        ScanFormer(ScanFusion(), encoder, text_width=8)
    assert reason in str(refusal.value)
    assert "fusion.kind is 'scan'" in str(refusal.value)
    assert "use vision.kind vit (ViT, DeiT or CLIP)" in str(refusal.value)


def test_relative_positions_in_a_plain_encoder() -> None:
    encoder = VitEncoder(VitVision(**PLAIN))
    encoder.backbone.blocks[1].attn.rel_pos = nn.Embedding(3, 4)
    with pytest.raises(ConfigError, match=r"relative positions \(blocks.1.attn.rel_pos\)"):
        ScanFormer(ScanFusion(), encoder, text_width=8)


def test_an_image_that_cannot_be_halved() -> None:
    encoder = VitEncoder(VitVision(**{**PLAIN, "image_size": 48}))
    ScanFormer(ScanFusion(scales=2), encoder, text_width=8)
    message = "vision.image_size is 48, but with 3 fusion.scales it is halved 2 times and must be"
    with pytest.raises(ConfigError, match=message + " a multiple of 32"):
        ScanFormer(ScanFusion(scales=3), encoder, text_width=8)


def test_an_exit_needs_something_to_leave_out() -> None:
    with pytest.raises(ConfigError, match=r"fusion.exit_quality is 0.5, but there is only one"):
        ScanFusion(scales=1, exit_quality=0.5)


@pytest.mark.parametrize("clip", [False, True])
def test_the_finest_scale_enters_as_the_encoder_has_it(clip: bool) -> None:
    """Patch embedding, positions and class token against the encoder's own."""
    torch.manual_seed(0)
    encoder = VitEncoder(VitVision(**PLAIN, clip=clip)).double()
    images = torch.randn(2, 3, 64, 64).double()
    backbone = encoder.backbone
    expected = backbone._pos_embed(backbone.patch_embed(images))
    patches = embed_patches(encoder, patchify(images, 8)) + scale_positions(encoder, 0)
    torch.testing.assert_close(patches, expected[:, 1:], rtol=0, atol=1e-12)
    torch.testing.assert_close(class_state(encoder), expected[0, 0], rtol=0, atol=0)


def test_coarse_positions_are_means_of_fine_ones() -> None:
    encoder = VitEncoder(VitVision(**PLAIN)).double()
    table = encoder.backbone.pos_embed[0, 1:].view(8, 8, 32)
    coarse = scale_positions(encoder, 2).view(2, 2, 32)
    torch.testing.assert_close(coarse[1, 0], table[4:, :4].mean((0, 1)), rtol=0, atol=1e-12)


def test_a_patch_with_one_pixel_of_photo_counts() -> None:
    encoder = VitEncoder(VitVision(**PLAIN))
    mask = torch.zeros(1, 64, 64).bool()
    mask[0, 17, 63] = True
    assert photo_patches(encoder, mask, 0).nonzero().tolist() == [[0, 2 * 8 + 7]]
    assert photo_patches(encoder, mask, 2).nonzero().tolist() == [[0, 1]]
