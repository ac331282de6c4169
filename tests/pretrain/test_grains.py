"""Losses by grain: by hand, against the slow reference, and over ranks."""

import math
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pretrain import objective
from pretrain.config import ObjectiveConfig
from pretrain.grains import BOXED, Terms, grain_means
from pretrain.inputs import inputs_of, mark_hidden
from pretrain.objective import PretrainingModule, run_objectives
from pretrain.reference import ReferenceModule
from tests.pretrain import grain_ranks as program
from tests.programs import run_program
from wholegrain.data.batch import (
    GRAINS,
    IMAGE,
    OBJECT,
    REGION,
    Concept,
    ConceptBatch,
    Sample,
    collate,
)
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

PROGRAM = Path(program.__file__)
WHOLE = (0.5, 0.5, 1.0, 1.0)
OPTIONS = ObjectiveConfig()
NEGATIVES = Negatives(
    image=torch.tensor([2, 3, 0, 1, 2]),
    text=torch.tensor([3, 2, 1, 0, 1]),
    valid=torch.tensor([True, True, True, True, False]),
)


def concept(grain: int, box: tuple[float, ...], length: int, hidden: int, text: str) -> Concept:
    ids = [2, *range(5, 4 + length)]
    labels = [ids[place] if 0 < place <= hidden else -100 for place in range(length)]
    masked = [4 if label >= 0 else token for token, label in zip(ids, labels, strict=True)]
    return Concept(grain, box, text, ids, masked, labels)  # type: ignore[arg-type]


@pytest.fixture
def batch() -> ConceptBatch:
    """Two photos with three and two concepts; the object hides no word."""
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    photos = [
        [
            concept(IMAGE, WHOLE, 7, 2, "a caption"),
            concept(REGION, (0.3, 0.3, 0.4, 0.4), 3, 1, "a dog"),
            concept(OBJECT, (0.8, 0.6, 0.3, 0.5), 2, 0, "car"),
        ],
        [
            concept(IMAGE, WHOLE, 5, 1, "another caption"),
            concept(REGION, (0.6, 0.2, 0.2, 0.3), 4, 2, "a dog"),
        ],
    ]
    return mark_hidden(
        collate([Sample(f"a/{n}", pixels[n].byte(), some) for n, some in enumerate(photos)])
    )


def build(head: BoxHeadConfig | None = None, dropout: float = 0.0) -> MultiGrainModel:
    torch.manual_seed(0)
    text = TextConfig(
        vocab_size=20,
        hidden_size=24,
        layers=2,
        fusion_layer=1,
        heads=2,
        intermediate_size=32,
        max_positions=10,
        dropout=dropout,
        attention_dropout=dropout,
    )
    vision = VitVision(image_size=32, patch_size=8, width=24, depth=2, heads=2)
    model = MultiGrainModel(
        ModelConfig(vision=vision, text=text, embed_dim=8, box_head=head or PatchBoxHead(width=8))
    )
    for parameter in model.parameters():
        if parameter.ndim:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def test_means_by_hand() -> None:
    grain = torch.tensor([REGION, IMAGE, REGION])
    terms = {
        "contrastive": Terms(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 1, 2])),
        "matching": Terms(
            torch.tensor([1.0, 2.0, 3.0, 8.0]),
            torch.tensor([0, 1, 2, 2]),
            torch.tensor([True, False, True, True]),
        ),
        "box_l1": Terms(torch.tensor([0.25]), torch.tensor([2]), grains=BOXED),
    }
    found = grain_means(terms, grain, across=True)
    expected = {
        "contrastive/image": 2.0,
        "contrastive/region": 3.0,
        "contrastive/object": math.nan,
        "matching/image": math.nan,
        "matching/region": 4.0,
        "matching/object": math.nan,
        "box_l1/region": 0.25,
        "box_l1/object": math.nan,
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        expected, nan_ok=True
    )
    assert grain_means({}, grain, across=True) == {}


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_what_is_lost_stays_in_its_grain(lost: float) -> None:
    terms = {
        "matching": Terms(torch.tensor([lost, 2.0, 3.0]), torch.tensor([0, 1, 2])),
        "box_l1": Terms(torch.tensor([1.0]), torch.tensor([0]), grains=BOXED),
    }
    found = grain_means(terms, torch.tensor([REGION, IMAGE, OBJECT]), across=False)
    assert not found["matching/region"].isfinite()
    assert found["matching/image"] == 2
    assert found["matching/object"] == 3
    assert found["box_l1/region"] == 1


@pytest.mark.parametrize("head", [PatchBoxHead(width=8), ClsBoxHead()])
@pytest.mark.parametrize("chunk", [None, 2])
def test_equal_the_reference(
    batch: ConceptBatch, head: BoxHeadConfig, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every loss, every grain: concept by concept on the host."""
    model = build(head)
    options = ObjectiveConfig(contrastive_chunk=chunk)
    slow = ReferenceModule(model, options, length=8)
    expected = slow.by_grain(batch, slow.outputs(batch, NEGATIVES))
    monkeypatch.setattr(objective, "draw_negatives", lambda *_, **__: NEGATIVES)
    found = PretrainingModule(model, options, capacity=None)(batch)
    by_grain = {name: value.item() for name, value in found.items() if "/" in name}
    votes = {"box_vote"} if isinstance(head, PatchBoxHead) else set()
    losses = {"contrastive", "matching", "masked_language", "box_l1", "box_giou", *votes}
    names = {f"{loss}/{grain}" for loss in losses for grain in GRAINS}
    assert by_grain.keys() == names - {f"{loss}/image" for loss in losses if "box" in loss}
    # No object hides a word.
    assert math.isnan(by_grain.pop("masked_language/object"))
    assert by_grain == pytest.approx(expected, rel=1e-5)
    assert len(set(by_grain.values())) == len(by_grain), "no two figures are the same one"


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_weighted_by_their_terms_they_give_the_loss(batch: ConceptBatch, form: str) -> None:
    model = build()
    inputs = inputs_of(batch, model, OPTIONS)
    options = ObjectiveConfig(contrastive_form=form, contrastive_chunk=2)
    outputs = run_objectives(model, inputs, options, NEGATIVES)
    means = grain_means(outputs.terms, batch.grain, across=False)
    for name, terms in outputs.terms.items():
        counted = terms.counted if terms.counted is not None else torch.ones_like(terms.concept) > 0
        total, number = 0.0, 0
        for kind, grain in enumerate(GRAINS):
            count = int((batch.grain[terms.concept] == kind)[counted].sum())
            if count:
                total += count * means[f"{name}/{grain}"].item()
                number += count
        assert total / number == pytest.approx(outputs.losses[name].item(), rel=1e-5), name


def test_they_cost_losses_and_gradients_not_a_bit(
    batch: ConceptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(dropout=0.1)
    found = []
    for without in (False, True):
        if without:
            monkeypatch.setattr(objective, "grain_means", lambda *_, **__: {})
        model.zero_grad()
        torch.manual_seed(0)
        losses = PretrainingModule(model, OPTIONS, capacity=None)(batch)
        losses["loss"].backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        found.append(({name: loss.detach() for name, loss in losses.items()}, gradients))
    (with_them, gradients), (without_them, expected) = found
    assert all("/" in name for name in with_them.keys() - without_them.keys())
    for name, loss in without_them.items():
        assert torch.equal(with_them[name], loss), name
    for name, gradient in expected.items():
        assert torch.equal(gradients[name], gradient), name


def test_they_are_scalars_without_gradient(batch: ConceptBatch) -> None:
    losses = PretrainingModule(build(), OPTIONS, capacity=None)(batch)
    for name, value in losses.items():
        assert value.shape == (), name
        assert value.requires_grad == ("/" not in name), name


def test_an_update_without_boxes_has_no_figures_of_boxes(batch: ConceptBatch) -> None:
    plain = mark_hidden(batch, boxes=False)
    losses = PretrainingModule(build(), OPTIONS, capacity=None)(plain)
    assert not [name for name in losses if name.startswith("box")]
    assert {"matching/image", "matching/region", "matching/object"} <= losses.keys()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.ranks
@pytest.mark.parametrize("divided", [[4, 3], [1, 0, 6]])
def test_ranks_report_the_figures_of_all(divided: list[int], tmp_path: Path) -> None:
    """However the concepts are divided, each rank has the mean over the terms of all."""
    command = [sys.executable, str(PROGRAM), str(tmp_path), *map(str, divided)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = run_program(command, timeout_s=120, env=environment)
    assert done.returncode == 0, done.stderr
    whole, first = {}, 0
    for rank, count in enumerate(divided):
        found = torch.load(tmp_path / f"{rank}.pt")
        own = slice(first, first + count)
        assert_same(found["alone"], program.figures(own, across=False))
        whole[rank], first = found["across"], first + count
    expected = _by_hand(divided)
    for found in whole.values():
        assert {name: value.item() for name, value in found.items()} == pytest.approx(expected)


def _by_hand(divided: list[int]) -> dict[str, float]:
    """Which terms count is a rule over a rank's own rows."""
    seen: dict[str, list[float]] = {}
    first = 0
    for count in divided:
        for term in range(3 * count):
            concept = first + term % count
            if (term + concept) % 4:
                name = f"matching/{GRAINS[program.GRAINS[concept]]}"
                seen.setdefault(name, []).append(concept + (0.1, 0.2, 0.4)[term // count])
        for concept in range(first, first + count):
            if program.GRAINS[concept] != IMAGE:
                name = f"box_l1/{GRAINS[program.GRAINS[concept]]}"
                seen.setdefault(name, []).append(concept / 3)
        first += count
    return {name: sum(each) / len(each) for name, each in seen.items()}
