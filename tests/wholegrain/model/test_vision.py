"""Image encoders: shapes at several sizes, regions, and configurations that cannot be."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor

from wholegrain.errors import ConfigError
from wholegrain.model import kernels
from wholegrain.model.concepts import Shown
from wholegrain.model.config import SwinVision, TimmVision, VisionConfig, VitVision
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.vision import CLIP_MEAN, CLIP_STD, build_vision

Build = Callable[..., MultiGrainModel]
SMALL_TIMM = TimmVision(
    name="resnet18d",
    image_size=64,
    stages=(1, 2, 3),
    options={"channels": [8, 12, 16, 16], "stem_width": 4},
)
SIZES: list[tuple[VisionConfig, int, int, list[int]]] = [
    (SwinVision(image_size=64, embed_dim=8, depths=(2, 2), heads=(1, 2), window=4), 16, 8, [16, 8]),
    (
        SwinVision(image_size=96, embed_dim=8, depths=(2, 2), heads=(1, 2), window=6),
        16,
        12,
        [24, 12],
    ),
    # A grid that is no multiple of the window.
    (
        SwinVision(image_size=80, embed_dim=8, depths=(2, 2), heads=(1, 2), window=4),
        16,
        10,
        [20, 10],
    ),
    (VitVision(image_size=32, patch_size=8, width=24, depth=2, heads=3), 24, 4, [4]),
    (VitVision(image_size=48, patch_size=8, width=24, depth=2, heads=3, clip=True), 24, 6, [6]),
    (SMALL_TIMM, 16, 4, [16, 8, 4]),
    (replace(SMALL_TIMM, image_size=96), 16, 6, [24, 12, 6]),
    (TimmVision(name="convnext_atto", image_size=64, stages=(1, 2)), 160, 4, [8, 4]),
    (
        TimmVision(
            name="swin_tiny_patch4_window7_224",
            image_size=64,
            stages=(0, 1),
            options={"img_size": 64, "embed_dim": 12, "window_size": 4},
        ),
        24,
        8,
        [16, 8],
    ),
]


@pytest.mark.parametrize(("config", "width", "side", "pyramid"), SIZES)
def test_features(config: VisionConfig, width: int, side: int, pyramid: list[int]) -> None:
    torch.manual_seed(0)
    encoder = build_vision(config).eval()
    assert (encoder.width, encoder.grid) == (width, (side, side))
    pixels = torch.randint(0, 256, (2, 3, config.image_size, config.image_size), dtype=torch.uint8)
    features = encoder(encoder.normalise(pixels))
    assert features.cls.shape == (2, width)
    assert features.patches.shape == (2, side * side, width)
    assert features.grid == (side, side)
    assert [tuple(states.shape[2:]) for states in features.pyramid] == [(s, s) for s in pyramid]
    assert features.pyramid[-1].shape[:2] == (2, width)
    assert torch.isfinite(features.patches).all()


def test_normalise_is_clips() -> None:
    encoder = build_vision(VitVision(image_size=8, patch_size=8, width=8, depth=1, heads=1))
    pixels = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    for channel in range(3):
        expected = (pixels[0, channel] / 255 - CLIP_MEAN[channel]) / CLIP_STD[channel]
        torch.testing.assert_close(encoder.normalise(pixels)[0, channel], expected)
    assert not {"mean", "std"} & set(encoder.state_dict()), "constants are no weights"


@pytest.mark.parametrize("kind", ["swin", "timm"])
def test_image_vector_is_the_mean_of_the_patches(
    build: Build, images: Callable[..., Tensor], kind: str
) -> None:
    model = build(kind)
    features = model.encode_images(images(model))
    torch.testing.assert_close(features.cls, features.patches.mean(1))


def test_images_do_not_see_each_other(build: Build, images: Callable[..., Tensor]) -> None:
    for kind in ("swin", "vit", "timm"):
        model = build(kind)
        batch = images(model, 3)
        alone = model.encode_images(batch[1:2]).patches[0]
        torch.testing.assert_close(
            model.encode_images(batch).patches[1], alone, rtol=1e-5, atol=1e-5
        )


def test_timm_encoder_tells_places_apart(build: Build) -> None:
    """A grey photo looks alike everywhere; learnt positions still say where."""
    model = build("timm")
    grey = torch.zeros(1, 3, 64, 64)
    patches = model.encode_images(grey).patches[0]
    assert (patches[5] - patches[6]).abs().max() > 1e-3


LOCAL_MASK = torch.zeros(1, 16, dtype=torch.bool)
LOCAL_MASK[0, [5, 6]] = True


def test_local_regions_see_their_own_patches_alone(
    build: Build, images: Callable[..., Tensor]
) -> None:
    model = build("local").double()
    features = model.encode_images(images(model, 1).double())
    assert features.before_local is not None
    image = torch.tensor([0])
    before = model.vision.concepts(features, image, LOCAL_MASK)
    changed = features.before_local.clone()
    changed[0, 1:][~LOCAL_MASK[0]] += 5
    after = model.vision.concepts(replace(features, before_local=changed), image, LOCAL_MASK)
    assert torch.equal(before.cls, after.cls)
    own = before.patch_row[0]
    inside = before.patches[own][LOCAL_MASK[0]]
    assert torch.equal(inside, after.patches[own][LOCAL_MASK[0]])
    changed[0, 6] += 1  # patch 5, after the class token
    moved = model.vision.concepts(replace(features, before_local=changed), image, LOCAL_MASK)
    assert not torch.equal(before.cls, moved.cls)


def test_local_region_of_everything_is_the_image(
    build: Build, images: Callable[..., Tensor]
) -> None:
    model = build("local").double()
    features = model.encode_images(images(model).double())
    image = torch.tensor([1, 0, 1])
    mask = torch.ones(3, 16, dtype=torch.bool)
    mask[1] = LOCAL_MASK[0]
    concepts = model.vision.concepts(features, image, mask)
    assert torch.equal(concepts.cls[0], features.cls[1])
    assert torch.equal(concepts.mask, mask)
    assert torch.equal(concepts.sequence()[0, 1:], features.patches[1])


@pytest.mark.parametrize("segments", [False, True])
def test_local_regions_equal_the_padded_rows(
    build: Build, images: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch, segments: bool
) -> None:
    """Values, and gradients of every weight; the slow way runs timm's own blocks over all rows."""
    monkeypatch.setattr(kernels, "segments_suit", lambda states, width, dropout: segments)
    model = build("local").double()
    image, mask = torch.tensor([1, 0, 1]), torch.zeros(3, 16, dtype=torch.bool)
    mask[0, [3, 4, 7]] = mask[1, 5] = mask[2, 2:15] = True
    shown = torch.cat([mask.new_ones(3, 1), mask], dim=1)
    found = []
    for packed in (True, False):
        model.zero_grad()
        features = model.encode_images(images(model).double())
        if packed:
            rows = model.vision.concepts(features, image, mask, Shown.of(mask)).sequence()
        else:
            rows = features.before_local[image]
            for block in model.vision.backbone.blocks[1:]:
                rows = block(rows, attn_mask=shown[:, None, None])
            rows = model.vision.backbone.norm(rows)
        torch.manual_seed(0)
        (rows * torch.randn_like(rows))[shown].sum().backward()
        gradients = [p.grad for p in model.vision.parameters()]
        assert all(gradient is not None for gradient in gradients)
        found.append([rows[shown].detach(), *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_stochastic_depth_drops_whole_regions(build: Build, images: Callable[..., Tensor]) -> None:
    model = build("local")
    features = model.encode_images(images(model))
    for block in model.vision.backbone.blocks:
        block.drop_path1 = block.drop_path2 = DropPath(0.5).train()
    image, mask = torch.zeros(40, dtype=torch.long), LOCAL_MASK[:1].expand(40, -1)
    concepts = model.vision.concepts(features, image, mask)
    # Two branches in each of two blocks: sixteen ways a region may come out, each as a whole.
    kinds = {tuple(row.flatten().tolist()) for row in concepts.sequence()[:, [0, 6]]}
    assert 4 < len(kinds) <= 16


def test_pooled_regions_do_not_read_other_patches(
    build: Build, images: Callable[..., Tensor]
) -> None:
    for kind in ("swin", "vit", "timm"):
        model = build(kind)
        features = model.encode_images(images(model, 1))
        count = features.patches.shape[1]
        mask = torch.arange(count)[None] < 3
        before = model.vision.concepts(features, torch.tensor([0]), mask)
        changed = features.patches.clone()
        changed[0, 3:] += 100
        after = model.vision.concepts(replace(features, patches=changed), torch.tensor([0]), mask)
        torch.testing.assert_close(before.cls, after.cls, rtol=1e-6, atol=1e-6)


def test_stochastic_depth_is_for_training_alone() -> None:
    config = VitVision(image_size=16, patch_size=8, width=8, depth=3, heads=1, drop_path=0.9)
    torch.manual_seed(0)
    encoder = build_vision(config)
    images = torch.randn(4, 3, 16, 16)
    assert not torch.equal(encoder(images).cls, encoder(images).cls)
    encoder.eval()
    assert torch.equal(encoder(images).cls, encoder(images).cls)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (TimmVision(name="no_such_model"), "vision.name is 'no_such_model'"),
        (TimmVision(options={"nonsense": 3}), "nonsense"),
        (TimmVision(stages=(9,)), r"stages \(9,\)"),
        (TimmVision(options={"channels": [1]}), "options"),
        (TimmVision(image_size=72, stages=(1, 2, 3)), "vision.image_size is 72.*stride 16"),
    ],
)
def test_backbones_that_timm_cannot_make(config: TimmVision, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build_vision(config)
