"""Losses of validation are means over what was measured, however batches divide it."""

import math

import pytest
import torch

from pretrain.config import ObjectiveConfig
from pretrain.inputs import inputs_of
from pretrain.objective import Outputs, run_objectives
from pretrain.validate import _SEED, validate
from tests.pretrain.test_bad_batches import batch_of, concept
from wholegrain.data.batch import OBJECT, REGION, ConceptBatch
from wholegrain.model.config import ModelConfig, TextConfig, VitVision
from wholegrain.model.multigrain import MultiGrainModel

OPTIONS = ObjectiveConfig()
LOSSES = {"contrastive", "matching", "masked_language", "box_l1", "box_giou"}


@pytest.fixture(scope="module")
def model() -> MultiGrainModel:
    return build()


def build() -> MultiGrainModel:
    torch.manual_seed(0)
    text = TextConfig(
        vocab_size=20, hidden_size=12, layers=2, fusion_layer=1, heads=2, intermediate_size=16
    )
    vision = VitVision(image_size=16, patch_size=8, width=12, depth=1, heads=2)
    return MultiGrainModel(ModelConfig(vision=vision, text=text, embed_dim=8)).eval()


def batches() -> list[ConceptBatch]:
    """Three images without a box, one with two, and one that hides no word and shows no box."""
    made = [
        batch_of([concept(first=5)], [concept(6, first=9)], [concept(3, first=12)]),
        batch_of([concept(5, grain=REGION, first=7), concept(grain=OBJECT, first=10)]),
        batch_of([concept(first=6, hide=False)], [concept(first=11, hide=False)]),
    ]
    for step, batch in enumerate(made):
        batch.extras["step"] = step
    return made


def outputs_of(model: MultiGrainModel, batch: ConceptBatch) -> Outputs:
    torch.manual_seed(_SEED + batch.extras["step"])
    return run_objectives(model, inputs_of(batch, model, OPTIONS), OPTIONS)


@torch.no_grad()
def test_every_term_counts_alike_and_what_is_not_there_counts_nothing(
    model: MultiGrainModel,
) -> None:
    given = batches()
    figures = validate(model, given, OPTIONS, torch.device("cpu"))
    outputs = [outputs_of(model, batch) for batch in given]
    numbers = {  # of each batch: captions or their kind, counted pairs, hidden words, boxes
        "contrastive": [3, 2, 2],
        "matching": [3 + 6, 2, 2 + 4],  # regions of one image have no negatives
        "masked_language": [3, 2, 0],
        "box_l1": [0, 2, 0],
        "box_giou": [0, 2, 0],
    }
    for name, counts in numbers.items():
        total = sum(
            count * each.losses[name].item() for each, count in zip(outputs, counts, strict=True)
        )
        assert figures[name] == pytest.approx(total / sum(counts), rel=1e-5), name
    assert figures["box_l1"] > 0
    assert figures["box_l1"] == pytest.approx(outputs[1].losses["box_l1"].item())


@torch.no_grad()
def test_the_grains_figures_add_up_to_the_whole(model: MultiGrainModel) -> None:
    figures = validate(model, batches(), OPTIONS, torch.device("cpu"))
    for name in ("box_l1", "box_giou"):
        halves = figures[f"{name}/region"] + figures[f"{name}/object"]
        assert figures[name] == pytest.approx(halves / 2)


@torch.no_grad()
def test_a_loss_of_which_there_is_nothing_is_left_out(model: MultiGrainModel) -> None:
    figures = validate(model, batches()[2:], OPTIONS, torch.device("cpu"))
    assert figures.keys() & LOSSES == {"contrastive", "matching"}
    assert not any(math.isnan(value) for value in figures.values())
