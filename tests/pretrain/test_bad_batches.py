"""Batches at the edge: an error or a stated fallback; no crash in a kernel, no silent zero."""

import math

import pytest
import torch

from pretrain.config import ObjectiveConfig
from pretrain.inputs import inputs_of, mark_hidden
from pretrain.objective import Outputs, PretrainingModule, run_objectives
from wholegrain.data.batch import IMAGE, REGION, Concept, ConceptBatch, Sample, collate
from wholegrain.model.config import ModelConfig, TextConfig, VitVision
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.train.config import OptimConfig
from wholegrain.train.optim import Optimizer

WHOLE = (0.5, 0.5, 1.0, 1.0)
OPTIONS = ObjectiveConfig()


def concept(
    length: int = 4, text: str = "a dog", grain: int = IMAGE, first: int = 5, hide: bool = True
) -> Concept:
    ids = [2, *((first + place) % 14 + 5 for place in range(length - 1))]
    masked, labels = list(ids), [-100] * length
    if hide and length > 1:
        masked[1], labels[1] = 4, ids[1]
    box = WHOLE if grain == IMAGE else (0.4, 0.4, 0.3, 0.4)
    return Concept(grain, box, text, ids, masked, labels)


def batch_of(*images: list[Concept]) -> ConceptBatch:
    pixels = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(0))
    samples = [Sample(f"a/{n}", pixels.to(torch.uint8), each) for n, each in enumerate(images)]
    return mark_hidden(collate(samples), (2, 2))


@pytest.fixture
def model() -> MultiGrainModel:
    torch.manual_seed(0)
    text = TextConfig(
        vocab_size=20,
        hidden_size=12,
        layers=3,
        fusion_layer=1,
        heads=2,
        intermediate_size=16,
        max_positions=512,
    )
    vision = VitVision(image_size=16, patch_size=8, width=12, depth=2, heads=2)
    return MultiGrainModel(ModelConfig(vision=vision, text=text, embed_dim=8))


def run(model: MultiGrainModel, batch: ConceptBatch) -> Outputs:
    return run_objectives(model, inputs_of(batch, model, OPTIONS), OPTIONS)


def test_all_pairs_are_one(model: MultiGrainModel) -> None:
    """Of one image, or of one text: no negatives, so that positives alone count."""
    for batch in (
        batch_of([concept(first=5, text="x"), concept(first=9, text="y")]),
        batch_of([concept()], [concept()], [concept()]),
    ):
        outputs = run(model, batch)
        assert not outputs.negatives.valid.any()
        assert outputs.losses["contrastive"].item() == 0
        assert outputs.losses["matching"].item() > 0
        loss = outputs.total(OPTIONS.weights())
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        model.zero_grad()


def test_a_text_of_512_tokens(model: MultiGrainModel) -> None:
    outputs = run(model, batch_of([concept(512, "long")], [concept(1, "none", hide=False)]))
    loss = outputs.total(OPTIONS.weights())
    loss.backward()
    assert torch.isfinite(loss)


def test_a_longer_text_is_refused_before_it_reaches_a_kernel(model: MultiGrainModel) -> None:
    with pytest.raises(ValueError, match=r"513 tokens exceeds the 512 positions"):
        run(model, batch_of([concept(513, "long")], [concept()]))


def test_a_batch_without_any_concept(model: MultiGrainModel) -> None:
    """Images whose texts were all dropped: nothing to learn, and every loss says 0."""
    outputs = run(model, batch_of([], []))
    assert {name: loss.item() for name, loss in outputs.losses.items()} == dict.fromkeys(
        outputs.losses, 0.0
    )
    outputs.total(OPTIONS.weights()).backward()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_shows_and_is_not_learnt_from(
    model: MultiGrainModel, value: float
) -> None:
    batch = batch_of([concept(text="x"), concept(grain=REGION, text="y")], [concept(text="z")])
    inputs = inputs_of(batch, model, OPTIONS)
    inputs.images[0, 0, 0, 0] = value
    optimizer = Optimizer(model, OptimConfig(warmup=0), steps=2)
    optimizer.begin_step(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    outputs = run_objectives(model, inputs, OPTIONS)
    loss = outputs.total(OPTIONS.weights())
    assert not torch.isfinite(loss)
    assert not torch.isfinite(outputs.losses["contrastive"])
    loss.backward()
    skipped = optimizer.step().skipped
    assert skipped.item() == 1
    for name, parameter in model.named_parameters():
        if name != "temperature":  # which is clamped in the forward pass
            assert torch.equal(parameter, before[name]), name


def test_half_precision_is_for_products_alone(model: MultiGrainModel) -> None:
    """Under bf16 autocast similarities, losses and boxes are fp32, and near those of fp32."""
    batch = batch_of(
        [concept(text="x"), concept(grain=REGION, text="y", first=7)], [concept(7, "z", first=2)]
    )
    model.eval()
    torch.manual_seed(1)
    exact = run(model, batch)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        half = run_objectives(model, inputs_of(batch, model, OPTIONS), OPTIONS, exact.negatives)
        losses = PretrainingModule(model, OPTIONS, None)(batch)
    assert half.match_logits.dtype == torch.bfloat16, "products are in half precision"
    for vector in (half.image_vector, half.text_vector, half.boxes, *half.losses.values()):
        assert vector is not None
        assert vector.dtype == torch.float32
    assert losses["loss"].dtype == torch.float32
    for name, loss in exact.losses.items():
        assert half.losses[name].item() == pytest.approx(loss.item(), rel=0.03, abs=0.01), name
