"""Backbone, adapters, fusion and head together: neutral settings, order, caching."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wholegrain.errors import ConfigError
from wholegrain.model.config import (
    AdapterConfig,
    Ca2mFusion,
    ClsBoxHead,
    FusionConfig,
    MlpBoxHead,
    MmaConfig,
    MmcaConfig,
    PatchBoxHead,
    RegFusion,
    ScanFusion,
)
from wholegrain.model.multigrain import MultiGrainModel

Build = Callable[..., MultiGrainModel]
Images = Callable[..., Tensor]
Words = tuple[Tensor, Tensor]
IMAGE = torch.tensor([0, 1, 0])

MMCA = MmcaConfig(rank=3, embed_dim=5, gate_dim=4, blocks=1)
MMA = MmaConfig(rank=4, alpha=0.5, blocks=2)
CROSS_MMA = replace(MMA, cross=True)
ONE_SCALE = ScanFusion(scales=1, selector_width=8)
SCAN = ScanFusion(scales=2, selector_width=8, gate_bias=0.0)
CA2M = Ca2mFusion(
    groups=2,
    stage_width=8,
    stride=8,
    group_width=8,
    group_layers=1,
    fusion_layers=1,
    heads=2,
    group_feed_forward=16,
    feed_forward=16,
    dropout=0.0,
)
REG = RegFusion(width=8, layers=2, heads=2, feed_forward=16, dropout=0.0, max_text=12)
Combination = tuple[str, FusionConfig | None, tuple[AdapterConfig, ...]]
COMBINATIONS: list[Combination] = [
    ("vit", None, ()),
    ("vit", None, (MMCA,)),
    ("vit", None, (MMA,)),
    ("swin", None, (MMA, MMCA)),
    ("timm", CA2M, ()),
    ("timm", CA2M, (MMCA,)),
    ("vit", SCAN, ()),
    ("vit", SCAN, (MMA,)),
    ("vit", SCAN, (MMCA,)),
    ("vit", SCAN, (MMA, MMCA)),
    ("vit", REG, (MMCA,)),
    ("timm", REG, ()),
]


def assemble(
    build: Build,
    vision: str,
    fusion: FusionConfig | None = None,
    adapters: tuple[AdapterConfig, ...] = (),
    awake: bool = True,
) -> MultiGrainModel:
    """In double precision; awake, every addition does something."""
    model = build(vision)
    if fusion is not None:
        model.new_fusion(fusion, MlpBoxHead(layers=2))
    for adapter in adapters:
        model.add_adapter(adapter)
    if awake:
        generator = torch.Generator().manual_seed(3)
        additions = [model.adapters, model.box_head, *([model.fusion] if model.fusion else [])]
        for part in additions:
            for parameter in part.parameters():
                nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.double().eval()


@pytest.mark.parametrize(("vision", "fusion", "adapters"), COMBINATIONS)
def test_together_is_one_by_one(
    build: Build,
    images: Images,
    words: Words,
    vision: str,
    fusion: FusionConfig | None,
    adapters: tuple[AdapterConfig, ...],
) -> None:
    """Whatever is shared by the texts of an image, each gets the answer that it gets alone."""
    model = assemble(build, vision, fusion, adapters)
    batch = images(model).double()
    boxes, scores = model.ground(batch, *words, IMAGE)
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (boxes[0] - boxes[2]).abs().max() > 1e-6, "the text matters"
    for row in range(3):
        one = slice(row, row + 1)
        pixels = batch[IMAGE[one]]
        box, score = model.ground(pixels, words[0][one], words[1][one], torch.tensor([0]))
        torch.testing.assert_close(box[0], boxes[row], rtol=0, atol=1e-9)
        torch.testing.assert_close(score[0], scores[row], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("vision", "fusion"), [("vit", None), ("swin", None), ("vit", SCAN)])
@pytest.mark.parametrize("adapter", [MMA, MMCA])
def test_neutral_is_the_host_to_the_bit(
    build: Build,
    images: Images,
    words: Words,
    vision: str,
    fusion: FusionConfig | None,
    adapter: AdapterConfig,
) -> None:
    host = assemble(build, vision, fusion)
    model = assemble(build, vision, fusion, (adapter,))
    model.box_head.load_state_dict(host.box_head.state_dict())
    if fusion is not None:
        model.fusion.load_state_dict(host.fusion.state_dict())  # type: ignore[union-attr]
    batch = images(model).double()
    expected, _ = host.ground(batch, *words, IMAGE)
    (attached,) = model.adapters.values()
    assert not torch.equal(model.ground(batch, *words, IMAGE)[0], expected)
    with attached.neutral():  # type: ignore[operator]
        assert torch.equal(model.ground(batch, *words, IMAGE)[0], expected)


@pytest.mark.parametrize(("vision", "fusion"), [("vit", None), ("swin", None), ("vit", SCAN)])
def test_adapters_come_in_any_order(
    build: Build, images: Images, words: Words, vision: str, fusion: FusionConfig | None
) -> None:
    """Both add to the output of what stands at a site, from its input, which neither changes."""
    one = assemble(build, vision, fusion, (MMA, MMCA))
    other = assemble(build, vision, fusion, (MMCA, MMA))
    other.load_state_dict(one.state_dict())
    batch = images(one).double()
    first, second = (model.ground(batch, *words, IMAGE)[0] for model in (one, other))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("vision", "fusion", "adapters"),
    [("vit", None, ()), ("vit", None, (MMA,)), ("swin", REG, (MMA,)), ("timm", CA2M, ())],
)
def test_an_encoded_image_serves_any_text(
    build: Build,
    images: Images,
    words: Words,
    vision: str,
    fusion: FusionConfig | None,
    adapters: tuple[AdapterConfig, ...],
) -> None:
    """Where no text reaches an image's pass, its features are the same before and after."""
    model = assemble(build, vision, fusion, adapters)
    batch = images(model).double()
    assert not model.image_depends_on_text
    texts = model.read_texts(*words)
    kept = model.see(batch)
    cached = model.ground_encoded(kept, texts, IMAGE)[0].boxes
    again = model.ground_encoded(kept, texts, IMAGE)[0].boxes
    assert torch.equal(cached, again)
    assert torch.equal(cached, model.ground(batch, *words, IMAGE)[0])


def test_early_exit_answers_from_the_scale_that_is_good_enough(
    build: Build, images: Images, words: Words
) -> None:
    """Threshold 0 stops at the coarsest scale, 1 never; between, each text by itself."""
    answers = {}
    for threshold in (None, 0.0, 1.0):
        config = ScanFusion(scales=2, selector_width=8, gate_bias=0.0, exit_quality=threshold)
        model = assemble(build, "vit", config)
        texts, batch = model.read_texts(*words), images(model).double()
        features, rows = model.encode_for_texts(batch, texts, IMAGE)
        answers[threshold], scores, _ = model.ground_encoded(features, texts, rows)
        assert torch.equal(scores, answers[threshold].confidence)  # type: ignore[arg-type]
    whole = answers[None]
    torch.testing.assert_close(answers[1.0].boxes, whole.boxes, rtol=0, atol=1e-10)
    coarse = whole.by_scale[0]
    torch.testing.assert_close(answers[0.0].boxes, coarse.boxes, rtol=0, atol=1e-10)
    assert (coarse.boxes - whole.boxes).abs().max() > 1e-4
    assert coarse.confidence is not None
    between = float(coarse.confidence.sort().values[1])  # two texts of three are good enough
    config = ScanFusion(scales=2, selector_width=8, gate_bias=0.0, exit_quality=between)
    model = assemble(build, "vit", config)
    boxes, _ = model.ground(images(model).double(), *words, IMAGE)
    stops = (coarse.confidence >= between)[:, None]
    expected = torch.where(stops, coarse.boxes, whole.boxes)
    torch.testing.assert_close(boxes, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("vision", "change", "match"),
    [
        ("swin", {"fusion": SCAN}, "vit"),
        ("timm", {"fusion": SCAN}, "vit"),
        ("vit", {"fusion": CA2M}, "swin"),
        ("timm", {"adapters": (MMA,)}, "swin, vit or detr"),
        ("vit", {"adapters": (MMCA, MMCA)}, "one of each kind"),
        ("vit", {"fusion": SCAN, "box_head": ClsBoxHead()}, "needs `mlp`$"),
        ("vit", {"fusion": REG, "box_head": ClsBoxHead()}, "needs `mlp` or `patch`$"),
        ("vit", {"fusion": SCAN, "box_head": PatchBoxHead(width=8)}, "needs `mlp`$"),
        ("vit", {"fusion": ONE_SCALE, "box_head": PatchBoxHead(width=8)}, "needs `mlp`$"),
        ("vit", {"fusion": REG, "adapters": (CROSS_MMA,)}, "without the cross encoder"),
        ("timm", {"adapters": (replace(MMCA, stages=1),)}, "adapters.stages is 1, .*leave it out"),
        ("timm", {"adapters": (replace(MMCA, sites=("mlp",)),)}, r"adapters.sites is \('mlp',\)"),
    ],
)
def test_what_does_not_go_together_is_refused(
    build: Build, vision: str, change: dict[str, Any], match: str
) -> None:
    """With the reason and what would serve."""
    head = {"box_head": MlpBoxHead()} if "fusion" in change else {}
    with pytest.raises(ConfigError, match=match):
        build(vision, **{**head, **change})


def test_a_refused_fusion_leaves_the_model_alone(build: Build) -> None:
    def refused(model: MultiGrainModel, fusion: FusionConfig, match: str) -> None:
        before, head = model.config, model.box_head
        with pytest.raises(ConfigError, match=match):
            model.new_fusion(fusion)
        assert model.config == before
        assert model.fusion is None and model.box_head is head

    refused(build("swin"), SCAN, "vit")
    refused(build("vit", box_head=PatchBoxHead(width=8)), SCAN, "needs `mlp`")
    refused(build("vit", adapters=(CROSS_MMA,)), REG, "without the cross encoder")


@pytest.mark.parametrize("training", [True, False])
def test_what_is_added_is_in_the_mode_and_precision_of_the_model(
    build: Build, training: bool
) -> None:
    model = build("vit").double().train(training)
    model.add_adapter(MMCA)
    model.new_fusion(replace(REG, dropout=0.5), MlpBoxHead())
    assert {part.training for part in model.modules()} == {training}
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_a_changed_alpha_is_told(build: Build) -> None:
    model = build("vit", adapters=(MMCA, MMA))
    assert model.config_now() == model.config
    model.get_submodule("adapters.mma").alpha = 0.25
    assert model.config_now().adapters == (MMCA, replace(MMA, alpha=0.25))


def test_texts_are_as_long_as_encoder_and_fusion_read(build: Build) -> None:
    model = build("vit")
    assert model.max_text == model.config.text.max_positions
    model.new_fusion(replace(REG, max_text=5), MlpBoxHead())
    assert model.max_text == 5


def test_a_new_fusion_brings_a_head_that_suits_it(build: Build) -> None:
    model = build("vit", box_head=ClsBoxHead())
    model.new_fusion(SCAN)
    assert model.config.box_head == MlpBoxHead()
    assert model.scales == 2
