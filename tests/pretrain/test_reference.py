"""The slow reference and the fast path: the same losses, the same gradients."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pretrain.config import ObjectiveConfig
from pretrain.inputs import inputs_of, mark_hidden
from pretrain.objective import run_objectives
from pretrain.reference import ReferenceModule
from wholegrain.data.batch import IMAGE, OBJECT, REGION, Concept, ConceptBatch, Sample, collate
from wholegrain.model.config import (
    BoxHeadConfig,
    ClsBoxHead,
    ModelConfig,
    PatchBoxHead,
    SwinVision,
    TextConfig,
    TimmVision,
    VisionConfig,
    VitVision,
)
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.objectives.matching import Negatives

WHOLE = (0.5, 0.5, 1.0, 1.0)
SIDE = 64
VISIONS: dict[str, VisionConfig] = {
    # A map of 16 patches in windows of 4, shifted, then one of 8; and one that windows do not fill.
    "swin": SwinVision(image_size=SIDE, embed_dim=8, depths=(2, 2), heads=(1, 2), window=4),
    "swin, uneven": SwinVision(image_size=SIDE, embed_dim=8, depths=(2, 2), heads=(1, 2), window=5),
    "swin, one window": SwinVision(
        image_size=SIDE, embed_dim=8, depths=(1, 1, 1, 2), heads=(1, 1, 2, 2), window=2
    ),
    "vit": VitVision(image_size=SIDE, patch_size=16, width=24, depth=3, heads=3),
    "local": VitVision(image_size=SIDE, patch_size=16, width=24, depth=3, heads=3, local_layers=2),
    "clip": VitVision(
        image_size=SIDE, patch_size=16, width=24, depth=3, heads=3, local_layers=1, clip=True
    ),
    "timm": TimmVision(
        name="resnet18d",
        image_size=SIDE,
        stages=(1, 2, 3),
        options={"channels": [8, 12, 16, 16], "stem_width": 4},
    ),
}
DRAWN = Negatives(
    image=torch.tensor([4, 3, 5, 0, 1, 2]),
    text=torch.tensor([3, 5, 4, 2, 0, 1]),
    valid=torch.tensor([True, True, True, True, True, False]),
)


def concept(
    grain: int, box: tuple[float, float, float, float], length: int, hidden: int, text: str
) -> Concept:
    """A concept of `length` tokens, every second of which is hidden until there are `hidden`."""
    ids = [2, *(5 + (7 * place + len(text)) % 40 for place in range(length - 1))]
    places = range(1, length, 2)[:hidden]
    masked = [4 if place in places else token for place, token in enumerate(ids)]
    labels = [token if place in places else -100 for place, token in enumerate(ids)]
    return Concept(grain, box, text, ids, masked, labels)


@pytest.fixture
def batch() -> ConceptBatch:
    """Whole images, regions and objects of three photos, one text of which occurs twice."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, SIDE, SIDE), generator=generator).to(torch.uint8)
    concepts = [
        [
            concept(IMAGE, WHOLE, 9, 2, "a long caption of a photo"),
            concept(REGION, (0.3, 0.3, 0.4, 0.5), 4, 1, "a dog"),
            concept(OBJECT, (0.8, 0.6, 0.3, 0.5), 2, 0, "car"),
        ],
        [
            concept(IMAGE, WHOLE, 12, 3, "another caption"),
            concept(REGION, (0.6, 0.2, 0.2, 0.3), 4, 1, "a dog"),
        ],
        [concept(REGION, (0.5, 0.7, 0.9, 0.2), 6, 2, "the grass at the front")],
    ]
    samples = [Sample(f"a/{i}", pixels[i], some) for i, some in enumerate(concepts)]
    return mark_hidden(collate(samples))


def build(vision: str, head: BoxHeadConfig | None = None, dropout: float = 0.0) -> MultiGrainModel:
    torch.manual_seed(0)
    chosen = VISIONS[vision]
    if not isinstance(chosen, TimmVision):
        chosen = replace(chosen, drop_path=dropout)
    model = MultiGrainModel(
        ModelConfig(
            vision=chosen,
            text=TextConfig(
                vocab_size=50,
                hidden_size=24,
                layers=4,
                fusion_layer=2,
                heads=3,
                intermediate_size=40,
                max_positions=40,
                dropout=dropout,
                attention_dropout=dropout,
            ),
            embed_dim=8,
            box_head=head or ClsBoxHead(),
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter += 0.05 * torch.randn_like(parameter)
    return model


def fast_losses(
    model: MultiGrainModel, batch: ConceptBatch, options: ObjectiveConfig
) -> dict[str, Tensor]:
    """What the fast path makes of a batch with the negatives given."""
    outputs = run_objectives(model, inputs_of(batch, model, options), options, DRAWN)
    return {**outputs.losses, "loss": outputs.total(options.weights())}


def gradients(model: MultiGrainModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def assert_same(
    model: MultiGrainModel, batch: ConceptBatch, options: ObjectiveConfig, length: int = 15
) -> None:
    """Both paths: every loss to 1e-5, every parameter's gradient to 1e-4."""
    slow = ReferenceModule(model, options, length)(batch, DRAWN)
    slow_gradients = gradients(model, slow["loss"])
    fast = fast_losses(model, batch, options)
    fast_gradients = gradients(model, fast["loss"])
    assert fast.keys() == slow.keys()
    for name, loss in slow.items():
        assert_near(name, fast[name], loss, 1e-5, 1e-6)
    for name, expected in slow_gradients.items():
        # Keys' biases shift all scores of a query alike: their gradients are rounding noise.
        floor = 1e-6 if name.endswith("key.bias") else 1e-7
        floor = max(floor, 1e-4 * expected.abs().max().item())
        assert_near(name, fast_gradients[name], expected, 1e-4, floor)


def assert_near(name: str, found: Tensor, expected: Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(
        found, expected, rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}"
    )


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("xvlm", [False, True])
def test_fast_path_equals_the_reference(batch: ConceptBatch, vision: str, xvlm: bool) -> None:
    """Whole images and regions in one batch, in training mode without dropout."""
    options = ObjectiveConfig(all_others_are_negatives=xvlm)
    assert_same(build(vision), batch, options)


@pytest.mark.parametrize("vision", ["swin", "local", "timm"])
def test_in_evaluation_mode_dropout_is_off(batch: ConceptBatch, vision: str) -> None:
    assert_same(build(vision, dropout=0.5).eval(), batch, ObjectiveConfig())


def test_patch_head(batch: ConceptBatch) -> None:
    assert_same(build("swin", PatchBoxHead(width=8)), batch, ObjectiveConfig())


@pytest.mark.parametrize("grain", [IMAGE, REGION])
def test_pure_batches(batch: ConceptBatch, grain: int) -> None:
    """A batch of whole images, whose box losses are 0, and one of regions."""
    pure = replace(batch, grain=torch.full_like(batch.grain, grain))
    if grain == IMAGE:
        pure.concept_box = torch.tensor(WHOLE).expand(6, 4).contiguous()
    assert_same(build("local"), mark_hidden(pure), ObjectiveConfig())


def test_an_image_update_leaves_the_box_head_alone(batch: ConceptBatch) -> None:
    model = build("swin")
    pure = replace(batch, grain=torch.full_like(batch.grain, IMAGE))
    pure.concept_box = torch.tensor(WHOLE).expand(6, 4).contiguous()
    pure = mark_hidden(pure, boxes=False)
    assert_same(model, pure, ObjectiveConfig())
    assert not [name for name in fast_losses(model, pure, ObjectiveConfig()) if "box" in name]


def test_padding_changes_nothing(batch: ConceptBatch) -> None:
    model = build("swin")
    short, long = (
        ReferenceModule(model, ObjectiveConfig(), length)(batch, DRAWN) for length in (12, 40)
    )
    for name, loss in short.items():
        torch.testing.assert_close(long[name], loss, rtol=1e-5, atol=1e-6)


def test_unused_slots_count_for_nothing(batch: ConceptBatch) -> None:
    model = build("vit")
    few, many = (
        ReferenceModule(model, ObjectiveConfig(), slots=slots).outputs(batch, DRAWN)
        for slots in (1, 8)
    )
    assert few.token_logits.shape == many.token_logits.shape == (9, 50)
    torch.testing.assert_close(few.losses["masked_language"], many.losses["masked_language"])


def test_token_logits_lie_in_the_order_of_the_hidden_words(batch: ConceptBatch) -> None:
    model = build("vit").eval()
    slow = ReferenceModule(model, ObjectiveConfig()).outputs(batch, DRAWN)
    fast = run_objectives(
        model, inputs_of(batch, model, ObjectiveConfig()), ObjectiveConfig(), DRAWN
    )
    torch.testing.assert_close(fast.token_logits, slow.token_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.match_logits, slow.match_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.boxes, slow.boxes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("xvlm", [False, True])
def test_negatives_are_drawn_as_allowed(batch: ConceptBatch, xvlm: bool) -> None:
    torch.manual_seed(0)
    model = build("swin").eval()
    module = ReferenceModule(model, ObjectiveConfig(all_others_are_negatives=xvlm))
    image_key, text_key = batch.extras["image_key"], batch.extras["text_key"]
    own, same_image = torch.arange(6), False
    for _ in range(10):
        with torch.no_grad():
            drawn = module.outputs(batch).negatives
        assert drawn.valid.all()
        for which in (drawn.image, drawn.text):
            assert (which != own).all()
            same_image |= bool((image_key[which] == image_key).any())
            assert xvlm or not (text_key[which] == text_key).any()
    assert same_image == xvlm


def test_a_pair_alone_has_no_negative(batch: ConceptBatch) -> None:
    alone = mark_hidden(
        collate([Sample("a/0", batch.images[0], [concept(IMAGE, WHOLE, 5, 1, "a dog")])])
    )
    outputs = ReferenceModule(build("swin"), ObjectiveConfig()).outputs(alone)
    assert not outputs.negatives.valid.any()
    assert all(torch.isfinite(loss) for loss in outputs.losses.values())


def test_dropout_and_stochastic_depth_apply_in_training(batch: ConceptBatch) -> None:
    """Two calls differ in training mode, whichever of the two is on, and are equal without."""
    for drop in ("text", "image"):
        model = build("swin", dropout=0.5)
        (model.vision if drop == "text" else model.text).eval()
        if drop == "image":
            model.cross.eval()
        module = ReferenceModule(model, ObjectiveConfig())
        torch.manual_seed(0)
        losses = [module(batch, DRAWN)["loss"].item() for _ in range(2)]
        assert losses[0] != losses[1], drop
        module.eval()
        losses = [module(batch, DRAWN)["loss"].item() for _ in range(2)]
        assert losses[0] == losses[1], drop


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean() -> None:
    from wholegrain.model.reference_vision import _drop_path

    torch.manual_seed(0)
    update = _drop_path(torch.ones(4000, 5, 3), 0.25)
    kept = update[:, 0, 0] > 0
    assert (update[kept] == 1 / 0.75).all()
    assert (update[~kept] == 0).all()
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
