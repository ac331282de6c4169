"""The objectives of one batch against the same taken pass by pass."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from pretrain import reference
from pretrain.config import ObjectiveConfig
from pretrain.inputs import inputs_of, mark_hidden
from pretrain.objective import Outputs, PretrainingModule, run_objectives
from wholegrain.boxes import box_mask
from wholegrain.data.batch import IMAGE, OBJECT, REGION, Concept, ConceptBatch, Sample, collate
from wholegrain.model.config import (
    BoxHeadConfig,
    ClsBoxHead,
    ModelConfig,
    PatchBoxHead,
    TextConfig,
    VitVision,
)
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.objectives.matching import Negatives

WHOLE = (0.5, 0.5, 1.0, 1.0)
OPTIONS = ObjectiveConfig()
NEGATIVES = Negatives(
    image=torch.tensor([2, 3, 0, 1, 2]),
    text=torch.tensor([3, 2, 1, 0, 1]),
    valid=torch.tensor([True, True, True, True, False]),
)


def concept(
    grain: int, box: tuple[float, ...], ids: list[int], hidden: dict[int, int], text: str
) -> Concept:
    """A concept whose tokens at `hidden` places are shown as another id."""
    masked = [hidden.get(place, token) for place, token in enumerate(ids)]
    labels = [token if place in hidden else -100 for place, token in enumerate(ids)]
    return Concept(grain=grain, box=box, ids=ids, masked_ids=masked, labels=labels, text=text)  # type: ignore[arg-type]


@pytest.fixture
def batch() -> ConceptBatch:
    """Two photos with three and two concepts; the text "a dog" occurs on both."""
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    samples = [
        Sample(
            "a/0",
            pixels[0].to(torch.uint8),
            [
                concept(IMAGE, WHOLE, [2, 7, 8, 9, 10], {2: 4, 4: 4}, "a caption"),
                concept(REGION, (0.3, 0.3, 0.4, 0.4), [2, 11, 12], {1: 4}, "a dog"),
                concept(OBJECT, (0.8, 0.6, 0.3, 0.5), [2, 13], {}, "car"),
            ],
        ),
        Sample(
            "a/1",
            pixels[1].to(torch.uint8),
            [
                concept(IMAGE, WHOLE, [2, 14, 15, 16], {3: 4}, "another caption"),
                concept(REGION, (0.6, 0.2, 0.2, 0.3), [2, 11, 12], {2: 4}, "a dog"),
            ],
        ),
    ]
    return mark_hidden(collate(samples))


def build(
    head: BoxHeadConfig | None = None,
    local: int = 0,
    dropout: float = 0.0,
    bias: float | None = None,
) -> MultiGrainModel:
    torch.manual_seed(0)
    model = MultiGrainModel(
        ModelConfig(
            vision=VitVision(
                image_size=32, patch_size=8, width=24, depth=2, heads=2, local_layers=local
            ),
            text=TextConfig(
                vocab_size=20,
                hidden_size=24,
                layers=2,
                fusion_layer=1,
                heads=2,
                intermediate_size=32,
                max_positions=10,
                dropout=dropout,
                attention_dropout=dropout,
            ),
            embed_dim=8,
            contrastive_bias=bias,
            box_head=head or PatchBoxHead(width=8),
        )
    )
    for parameter in model.parameters():
        if parameter.ndim:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def test_mark_hidden_lists_what_the_padded_labels_hold(batch: ConceptBatch) -> None:
    _, _, _, labels = batch.padded()
    rows, columns = (labels != -100).nonzero(as_tuple=True)
    assert torch.equal(batch.extras["hidden_row"], rows)
    assert torch.equal(batch.extras["hidden_column"], columns)
    assert torch.equal(batch.extras["hidden_label"], labels[rows, columns])
    assert len(rows) == 5


def test_mark_hidden_asks_boxes_of_regions_and_objects(batch: ConceptBatch) -> None:
    assert batch.extras["boxed"].tolist() == [1, 2, 4]


def test_mark_hidden_counts_what_boxes_show_for_the_host(batch: ConceptBatch) -> None:
    assert "patches_seen" not in batch.extras
    seen = mark_hidden(batch, (4, 4)).to("meta").extras["patches_seen"]
    assert seen.tolist() == box_mask(batch.concept_box, (4, 4)).sum(dim=1).tolist()
    assert seen[0] == seen[3] == 16


def test_keys_tell_images_and_texts_apart(batch: ConceptBatch) -> None:
    image, text = batch.extras["image_key"], batch.extras["text_key"]
    assert torch.equal(image[:, None] == image, batch.concept_image[:, None] == batch.concept_image)
    same = text[:, None] == text
    assert same.sum() == 7, "itself, and `a dog` twice"
    assert same[1, 4]
    assert (image > 0).all(), "a filler row's key, 0, is no one's"
    assert (text > 0).all()


def test_keys_are_the_same_in_every_process(batch: ConceptBatch) -> None:
    """A number written down: Python's own hash of a string differs between processes."""
    assert batch.extras["image_key"][0].item() == 4_569_340_207_699_926_535


def test_inputs(batch: ConceptBatch) -> None:
    model = build()
    inputs = inputs_of(batch, model, OPTIONS)
    assert torch.equal(inputs.mask, box_mask(batch.concept_box, (4, 4)))
    assert torch.equal(inputs.images, model.normalise_images(batch.images))
    assert inputs.texts.lengths.tolist() == [5, 3, 2, 4, 3]
    assert inputs.hidden.counts.tolist() == [2, 1, 0, 1, 1]
    assert inputs.boxed_tokens == 3 + 2 + 3
    assert inputs.image_key is batch.extras["image_key"]
    xvlm = inputs_of(batch, model, ObjectiveConfig(all_others_are_negatives=True))
    assert xvlm.image_key is xvlm.text_key is None


@pytest.mark.parametrize("head", [PatchBoxHead(width=8), ClsBoxHead()])
@pytest.mark.parametrize("local", [0, 1])
def test_one_call_equals_pass_by_pass(batch: ConceptBatch, head: BoxHeadConfig, local: int) -> None:
    model = build(head, local).double()
    inputs = inputs_of(batch, model, OPTIONS)
    inputs.images = inputs.images.double()
    slow_way = reference.ReferenceModule(model, OPTIONS, length=8)
    found = []
    for take_losses in (
        lambda: run_objectives(model, inputs, OPTIONS, NEGATIVES).losses,
        lambda: slow_way.outputs(batch, NEGATIVES).losses,
    ):
        model.zero_grad()
        losses = take_losses()
        weights = OPTIONS.weights()
        torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
        found.append((losses, {n: p.grad.clone() for n, p in model.named_parameters()}))
    (fast, fast_grad), (slow, slow_grad) = found
    # The unit vectors and the box head answer in single precision.
    for name, loss in fast.items():
        torch.testing.assert_close(
            loss, slow[name], rtol=1e-5, atol=1e-6, check_dtype=False, msg=name
        )
    for name, gradient in slow_grad.items():
        torch.testing.assert_close(fast_grad[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_drawn_negatives_are_of_other_images_and_texts(batch: ConceptBatch) -> None:
    torch.manual_seed(0)
    model = build()
    inputs = inputs_of(batch, model, OPTIONS)
    for _ in range(20):
        with torch.no_grad():
            drawn = run_objectives(model, inputs, OPTIONS).negatives
        # Concept 1 shares its text with 4; both find negatives in the other image.
        assert drawn.valid.all()
        for which in (drawn.image, drawn.text):
            assert (batch.extras["image_key"][which] != batch.extras["image_key"]).all()
            assert (batch.extras["text_key"][which] != batch.extras["text_key"]).all()


def outputs_of(batch: ConceptBatch, model: MultiGrainModel) -> Outputs:
    return run_objectives(model, inputs_of(batch, model, OPTIONS), OPTIONS, NEGATIVES)


def test_shapes_of_what_validation_reads(batch: ConceptBatch) -> None:
    outputs = outputs_of(batch, build())
    assert outputs.image_vector.shape == outputs.text_vector.shape == (5, 8)
    assert outputs.match_logits.shape == (15, 2)
    assert outputs.token_logits.shape == (5, 20)
    assert outputs.boxes.shape == (3, 4)
    assert outputs.concepts.sequence().shape == (5, 17, 24)
    assert outputs.text_states.shape == (17, 24)


@pytest.mark.parametrize("head", [PatchBoxHead(width=8), ClsBoxHead()])
def test_every_parameter_learns(batch: ConceptBatch, head: BoxHeadConfig) -> None:
    model = build(head)
    outputs_of(batch, model).total(OPTIONS.weights()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # Keys' biases shift all scores of a query alike; the softmax does not see them.
    assert not [n for n in idle if not n.endswith("key.bias")]


@pytest.mark.parametrize("head", [PatchBoxHead(width=8), ClsBoxHead()])
def test_a_batch_without_regions_and_without_hidden_words(
    batch: ConceptBatch, head: BoxHeadConfig
) -> None:
    """Its losses are 0, finite, and every parameter still takes part."""
    plain = mark_hidden(
        replace(
            batch,
            grain=torch.full_like(batch.grain, IMAGE),
            concept_box=torch.tensor(WHOLE).expand(5, 4).contiguous(),
            masked_tokens=batch.tokens,
            masked_labels=torch.full_like(batch.masked_labels, -100),
        )
    )
    model = build(head)
    outputs = outputs_of(plain, model)
    for name in ("masked_language", "box_l1", "box_giou"):
        assert outputs.losses[name].item() == 0
    total = outputs.total(OPTIONS.weights())
    assert torch.isfinite(total)
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_one_concept_alone(batch: ConceptBatch) -> None:
    """No negatives anywhere: nothing to tell apart, and nothing fails."""
    alone = mark_hidden(
        collate(
            [
                Sample(
                    "a/0",
                    batch.images[0],
                    [concept(REGION, (0.5, 0.5, 0.4, 0.4), [2, 5], {1: 4}, "a dog")],
                )
            ]
        )
    )
    model = build()
    outputs = run_objectives(model, inputs_of(alone, model, OPTIONS), OPTIONS)
    assert outputs.losses["contrastive"].item() == 0
    assert not outputs.negatives.valid.any()
    total = outputs.total(OPTIONS.weights())
    total.backward()
    assert torch.isfinite(total)


NARROW = ObjectiveConfig(min_temperature=0.05, max_temperature=0.2)


@pytest.mark.parametrize(("options", "low", "high"), [(OPTIONS, 0.001, 0.5), (NARROW, 0.05, 0.2)])
def test_the_temperature_is_kept_in_its_bounds(
    batch: ConceptBatch, options: ObjectiveConfig, low: float, high: float
) -> None:
    model = build()
    for start, kept in ((0.9, high), (-1.0, low), (0.1, 0.1)):
        with torch.no_grad():
            model.temperature.fill_(start)
        run_objectives(model, inputs_of(batch, model, options), options, NEGATIVES)
        assert model.temperature.item() == pytest.approx(kept)


def test_the_sigmoid_form_judges_every_pair_by_the_models_bias(batch: ConceptBatch) -> None:
    model, options = build(bias=-10.0), ObjectiveConfig(contrastive_form="sigmoid")
    outputs = run_objectives(model, inputs_of(batch, model, options), options, NEGATIVES)
    similarity = (outputs.image_vector @ outputs.text_vector.T / model.temperature).detach()
    bias = torch.tensor(-10.0, requires_grad=True)
    image, text = (batch.extras[key].tolist() for key in ("image_key", "text_key"))
    total = torch.zeros(())
    for i in range(5):
        for j in range(5):
            if i == j:
                total = total - F.logsigmoid(similarity[i, j] + bias)
            elif image[i] != image[j] and text[i] != text[j]:
                total = total - F.logsigmoid(-similarity[i, j] - bias)
    torch.testing.assert_close(outputs.losses["contrastive"], total / 5)
    (total / 5).backward()
    outputs.losses["contrastive"].backward()
    assert model.contrastive_bias.grad.abs() > 0.1
    torch.testing.assert_close(model.contrastive_bias.grad, bias.grad)


def test_total_weighs_the_losses(batch: ConceptBatch) -> None:
    outputs = outputs_of(batch, build())
    nothing = dict.fromkeys(OPTIONS.weights(), 0.0)
    assert outputs.total(nothing).item() == 0
    one = outputs.total({**nothing, "matching": 2.5})
    assert one.item() == pytest.approx(2.5 * outputs.losses["matching"].item())


def test_module_is_one_forward(batch: ConceptBatch) -> None:
    weights = {"contrastive": 2.0, "matching": 3.0, "masked_language": 5.0}
    weights |= {"box_l1": 7.0, "box_giou": 11.0, "box_vote": 13.0}
    module = PretrainingModule(build(), ObjectiveConfig(**weights), capacity=None)
    torch.manual_seed(0)
    losses = module(batch)
    assert {name for name in losses if "/" not in name} == {*weights, "loss"}
    expected = sum(weight * losses[name].item() for name, weight in weights.items())
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert not any(name.startswith("options") for name in module.state_dict())
