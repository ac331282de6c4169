"""FLOP of learning to ground against torch's count of the same step on real tensors."""

from collections.abc import Sequence

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wholegrain.model.config import (
    AdapterConfig,
    Ca2mFusion,
    ClsBoxHead,
    CrossFusion,
    DetrVision,
    FusionConfig,
    MlpBoxHead,
    MmaConfig,
    MmcaConfig,
    ModelConfig,
    PatchBoxHead,
    ScanFusion,
    SwinVision,
    TextConfig,
    TimmVision,
    VisionConfig,
    VitVision,
)
from wholegrain.model.grounding_flops import GroundingCost
from wholegrain.model.grounding_reach import unreached
from wholegrain.model.multigrain import MultiGrainModel

SIDE = 64
VISIONS: dict[str, VisionConfig] = {
    "swin": SwinVision(image_size=SIDE, embed_dim=8, depths=(2, 2), heads=(1, 2), window=4),
    "vit": VitVision(image_size=SIDE, patch_size=16, width=24, depth=3, heads=3),
    "timm": TimmVision(
        name="resnet18d",
        image_size=SIDE,
        stages=(1, 2, 3),
        options={"channels": [8, 12, 16, 16], "stem_width": 4},
    ),
    "detr": DetrVision(
        image_size=SIDE,
        width=16,
        layers=2,
        heads=2,
        feed_forward=24,
        options={"channels": [4, 8, 16, 32]},
    ),
}
SCAN = ScanFusion(scales=2, selector_width=8)
CA2M = Ca2mFusion(
    groups=2,
    stage_width=8,
    stride=16,
    group_width=8,
    group_layers=1,
    fusion_layers=2,
    heads=2,
    group_feed_forward=16,
    feed_forward=16,
)
ADAPTER = MmcaConfig(rank=4, embed_dim=8, gate_dim=4, blocks=2)
CASES = [
    ("swin", None, True),
    ("swin", ADAPTER, False),
    ("vit", ADAPTER, False),
    ("timm", None, False),
    ("timm", ADAPTER, True),
    ("detr", None, True),
]


def build(vision: str, adapter: MmcaConfig | None, train_host: bool) -> MultiGrainModel:
    text = TextConfig(
        vocab_size=50,
        hidden_size=24,
        layers=4,
        fusion_layer=2,
        heads=3,
        intermediate_size=40,
        max_positions=20,
    )
    head = ClsBoxHead() if vision == "swin" else PatchBoxHead(width=8)
    config = ModelConfig(
        vision=VISIONS[vision],
        text=text,
        embed_dim=8,
        box_head=head,
        adapters=(adapter,) if adapter else (),
    )
    model = MultiGrainModel(config).eval()
    model.requires_grad_(train_host)
    model.box_head.requires_grad_(True)
    if model.adapters:
        for parameter in model.adapters.parameters():
            parameter.requires_grad_(True)
    return model


def counted(model: MultiGrainModel, images: Sequence[int], tokens: int) -> int:
    """Texts of one length, each in its image, all in one call."""
    rows = torch.tensor(images)
    pixels = torch.randn(int(rows.max()) + 1, 3, SIDE, SIDE)
    ids, mask = torch.ones(len(rows), tokens).long(), torch.ones(len(rows), tokens).bool()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        texts = model.read_texts(ids, mask)
        features, read = model.encode_for_texts(pixels, texts, rows)
        fused = model.fuse_texts(features, texts, read)
        prediction = model.answer(fused, features, read)
        scales = [scale.boxes for scale in prediction.by_scale[:-1]]
        given = (*prediction[:3], prediction.quality, fused.gates, *scales)
        parts = [part for part in given if part is not None]
        torch.stack([part.sum() for part in parts]).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("vision", "adapter", "train_host"), CASES)
def test_a_step_against_torch(vision: str, adapter: MmcaConfig | None, train_host: bool) -> None:
    """To the last product: adapted or not, all of it learning or the additions alone.

    As many texts an image, where they share it: otherwise the fast path fills up.
    """
    model = build(vision, adapter, train_host)
    cost = GroundingCost(model)
    assert cost(2, [7] * 4) == counted(model, [0, 0, 1, 1], 7)


@pytest.mark.parametrize("train_host", [True, False])
@pytest.mark.parametrize(
    ("vision", "fusion", "adapter"),
    [
        ("timm", CA2M, None),
        ("timm", CA2M, ADAPTER),
        ("vit", SCAN, None),
        ("vit", SCAN, MmaConfig(rank=4, blocks=2)),
        ("swin", CrossFusion(), MmaConfig(rank=4, blocks=2)),
    ],
)
def test_a_step_of_each_method_against_torch(
    vision: str, fusion: FusionConfig, adapter: AdapterConfig | None, train_host: bool
) -> None:
    model = build(vision, None, train_host)
    model.new_fusion(fusion, MlpBoxHead(layers=2))
    if adapter is not None:
        model.add_adapter(adapter)
    if model.fusion is not None:
        model.fusion.train()  # its work does not depend on what it sees, as in a step
    parameters = dict(model.named_parameters())
    for name in unreached(model):
        parameters[name].requires_grad_(False)
    cost = GroundingCost(model)
    assert cost(2, [7] * 4) == counted(model, [0, 0, 1, 1], 7)


def test_texts_of_unequal_length_cost_what_each_costs() -> None:
    """Nothing of an image is counted twice, and no padding; what is frozen asks for less."""
    model = build("vit", None, train_host=True)
    state = torch.get_rng_state()
    cost = GroundingCost(model)
    assert torch.equal(torch.get_rng_state(), state)
    image = cost(1, [])
    assert image > 0
    assert cost(1, [3, 9, 5]) - image == sum(cost(1, [length]) - image for length in (3, 9, 5))
    frozen = GroundingCost(build("vit", None, train_host=False))
    assert frozen(1, [3, 9, 5]) < 0.5 * cost(1, [3, 9, 5])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())
