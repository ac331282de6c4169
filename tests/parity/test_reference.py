"""The slow reference can be trusted: it equals X-VLM's own numbers, and the encoders' origins.

X-VLM's numbers are single precision. The reference is compared in double, so that what is seen is
their rounding alone (1.4e-6 of a value, 1.0e-5 of a gradient), the same on every processor.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import wholegrain.torchvision_shim  # noqa: F401  timm imports torchvision
from tests.parity.folders import SHIPPED, Folder, within
from tests.parity.make_fixture import CASES, losses_of, random_weights, two_updates
from tests.parity.reference_optim import parameter_groups
from tests.parity.reference_vision import ClipVit, Vit, build_vision
from tests.parity.reference_xvlm import Xvlm, generalized_iou, total

CLIP, VIT, SWIN = (CASES[name] for name in ("clip", "vit", "swin"))


@pytest.fixture(scope="module", params=within(str(SHIPPED)) or [None], ids=lambda p: p and p.name)
def shipped(request: pytest.FixtureRequest) -> Folder:
    """Numbers that X-VLM's own code gave."""
    if request.param is None:
        pytest.skip(f"no reference numbers at {SHIPPED}")
    return Folder(request.param)


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def xvlm(shipped: Folder, double: None) -> Xvlm:
    model = Xvlm(shipped.facts).eval()
    state = torch.load(shipped.checkpoint(), weights_only=True)["model"]
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or name.endswith("attn_mask"):
            assert torch.equal(tensor, state[name].to(tensor.dtype)), name
    model.load_state_dict(state, strict=True)
    return model


def _batch(shipped: Folder, kind: str) -> dict[str, Tensor]:
    tensors = shipped.batch(kind)
    return {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}


def _near(actual: Tensor, expected: Tensor, relative: float, scale: Tensor | None = None) -> bool:
    largest = (expected if scale is None else scale).abs().max()
    return actual.shape == expected.shape and bool(
        (actual - expected).abs().max() <= relative * largest
    )


@pytest.mark.parametrize("kind", ["image", "region"])
def test_values_and_gradients_of_x_vlm(shipped: Folder, xvlm: Xvlm, kind: str) -> None:
    found = xvlm(_batch(shipped, kind), seed=shipped.facts["draw_seed"])
    for name, expected in shipped.expected(kind).items():
        assert _near(found[name], expected, 2e-6), name
    total(found).backward()
    given = {n: p.grad for n, p in xvlm.named_parameters() if p.grad is not None}
    gradients = shipped.gradients(kind)
    assert given.keys() == gradients.keys()
    for name, expected in gradients.items():
        # A key's bias has no gradient but what rounding leaves.
        beside = name.removesuffix("bias") + "weight" if name.endswith("key.bias") else name
        assert _near(given[name], expected, 2e-5, gradients[beside]), name


def test_parameter_groups_of_x_vlm(shipped: Folder, xvlm: Xvlm) -> None:
    assert parameter_groups(xvlm) == shipped.facts["parameter_groups"]


def test_updates_of_x_vlm(shipped: Folder, xvlm: Xvlm) -> None:
    batches = {kind: _batch(shipped, kind) for kind in shipped.kinds()}
    found = two_updates(xvlm, batches, shipped.facts["draw_seed"])
    expected = shipped.facts["one_step"]
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name


def _randomised(part: nn.Module) -> nn.Module:
    random_weights(part, seed=7)
    return part.eval()


def test_clip_equals_transformers() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    for activation in ("quick_gelu", "gelu"):
        facts = CLIP.facts()
        facts["vision_config"] = CLIP.vision | {"hidden_act": activation}
        ours = _randomised(build_vision(facts["config"], facts["vision_config"]))
        theirs = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=48,
                intermediate_size=112,
                num_hidden_layers=6,
                num_attention_heads=4,
                image_size=64,
                patch_size=16,
                hidden_act=activation,
            )
        ).eval()
        renamed = {
            "class_embedding": "embeddings.class_embedding",
            "patch_embed.weight": "embeddings.patch_embedding.weight",
            "pos_embed.weight": "embeddings.position_embedding.weight",
        }
        state = {renamed.get(n, n): t for n, t in ours.state_dict().items() if n != "position_ids"}
        prefix = "vision_model." if hasattr(theirs, "vision_model") else ""
        wanted = {n for n in theirs.state_dict() if not n.endswith("position_ids")}
        state = {f"{prefix}{name}": tensor for name, tensor in state.items()}
        assert state.keys() == wanted
        theirs.load_state_dict(state, strict=False)
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            # Theirs norms the class token alone; ours, as X-VLM's, every token.
            expected = theirs(images).last_hidden_state
            assert _near(ours(images), ours.post_layernorm(expected), 1e-5)


def test_vit_equals_timm() -> None:
    from timm.models.vision_transformer import VisionTransformer

    ours = _randomised(build_vision(VIT.facts()["config"], VIT.vision))
    theirs = VisionTransformer(
        img_size=48, patch_size=8, embed_dim=36, depth=5, num_heads=3, num_classes=0
    ).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert _near(ours(images), theirs.forward_features(images), 1e-5)


def test_swin_equals_timm() -> None:
    from timm.models.swin_transformer import SwinTransformer

    ours = _randomised(build_vision(SWIN.facts()["config"], SWIN.vision))
    sizes = {key: SWIN.vision[key] for key in ("window_size", "embed_dim", "depths", "num_heads")}
    theirs = SwinTransformer(img_size=96, num_classes=0, **sizes).eval()
    state = {}
    for name, tensor in ours.state_dict().items():
        stage, merging, rest = name.partition(".downsample.")
        if merging:  # timm merges on entering a stage
            name = f"layers.{int(stage.removeprefix('layers.')) + 1}{merging}{rest}"
        if not name.endswith(("attn_mask", "relative_position_index")):
            state[name] = tensor
    assert state.keys() == dict(theirs.named_parameters()).keys()
    theirs.load_state_dict(state, strict=False)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        patches = theirs.forward_features(images).flatten(1, 2)
        found = ours(images)
    assert _near(found[:, 1:], patches, 1e-5)
    assert _near(found[:, 0], patches.mean(dim=1), 1e-5)


@pytest.mark.parametrize("kind", ["clip", "vit"])
def test_a_region_is_what_a_sequence_of_its_own_patches_gives(kind: str) -> None:
    """In the local layers a region's tokens see each other alone; in the others, the image."""
    case = CASES[kind]
    encoder = _randomised(build_vision(case.facts()["config"], case.vision))
    assert isinstance(encoder, ClipVit | Vit)
    layers = list(encoder.encoder.layers if isinstance(encoder, ClipVit) else encoder.blocks)
    norm = encoder.post_layernorm if isinstance(encoder, ClipVit) else encoder.norm
    size = case.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    visible = torch.zeros(2, 1 + (size // case.vision["patch_size"]) ** 2, dtype=torch.long)
    visible[0, [0, 3, 4, 7]] = 1
    visible[1, [0, 1]] = 1
    seen: list[Tensor] = []
    layers[len(layers) - 4].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        rows, whole = encoder(images, torch.tensor([1, 0]), visible)
        alone = encoder(images)
        assert _near(whole, alone, 1e-5)
        entering = seen[1]
        for row, image in ((0, 1), (1, 0)):
            own = visible[row].bool()
            tokens = entering[image : image + 1, own]
            for layer in layers[-4:]:
                tokens = layer(tokens, None)
            assert _near(rows[row, own], norm(tokens)[0], 1e-5)
            assert not _near(rows[row, own], whole[image, own], 1e-2)


def test_overlap_of_boxes() -> None:
    first = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    second = torch.tensor([[1.0, 0.0, 3.0, 2.0], [0.0, 0.0, 1.0, 1.0], [3.0, 3.0, 4.0, 4.0]])
    expected = torch.tensor([1 / 3, 1.0, -14 / 16])
    torch.testing.assert_close(generalized_iou(first, second), expected)


@pytest.mark.parametrize("name", sorted(CASES))
def test_single_precision_is_enough(name: str) -> None:
    """The losses that the made folders record carry rounding far below the tests' tolerance."""
    from tests.parity.make_fixture import random_batches

    case = CASES[name]
    model = Xvlm(case.facts()).eval()
    random_weights(model, seed=0)
    for batch in random_batches(case.facts(), seed=1).values():
        single = model(batch, seed=3)
        draws = (single["neg_image_idx"], single["neg_text_idx"])
        double = model.double()(
            {n: t.double() if t.is_floating_point() else t for n, t in batch.items()}, draws
        )
        model.float()
        assert losses_of(single) == pytest.approx(losses_of(double), rel=2e-6)
