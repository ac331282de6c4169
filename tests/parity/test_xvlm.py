"""Parity with X-VLM's reference numbers, for every folder in $XVLM_FIXTURES and small ones made.

Values agree to 1e-5, gradients to 1e-4, each tensor relative to its own largest element.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from tests.parity import library
from tests.parity.folders import Folder
from wholegrain.hub.xvlm_names import to_xvlm
from wholegrain.model.config import VitVision
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.train.config import OptimConfig
from wholegrain.train.optim import Optimizer, parameter_groups

RELATIVE = 1e-5
GRADIENT = 1e-4
RATE = 1e-4
KINDS = pytest.mark.parametrize("kind", ["image", "region"])
# Of tied weights, which a file of gradients may name twice.
SECOND_NAMES = {f"text_encoder.cls.predictions.decoder.{part}" for part in ("weight", "bias")}
AT_TOKENS = ("text_embeds", "cross_embeds_pos")  # padding holds no promise of ours


class Case:
    """A folder with the library's model of it."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.facts = folder, folder.facts
        self.config = library.config_of(folder)
        self.model = self.fresh_model()
        self.values = cache(self._values)  # several tests look at one answer

    def fresh_model(self) -> MultiGrainModel:
        """The checkpoint's weights."""
        return library.load(self.folder, self.config)

    def in_their_names(self, ours: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors, or parts of them, as X-VLM calls them."""
        vision = self.config.vision
        clip = isinstance(vision, VitVision) and vision.clip
        return to_xvlm(ours, self.config.text.fusion_layer, clip)

    def _values(self, kind: str) -> tuple[dict[str, Tensor], dict[str, float]]:
        batch, draws = self.folder.batch(kind), self.recorded(kind)
        with torch.no_grad():
            found = library.answer(self.model, batch, draws)
        values = found.values | library.more(self.model, batch, draws)
        return values, {name: loss.item() for name, loss in found.losses.items()}

    def recorded(self, kind: str) -> library.Draws:
        """The negatives that the reference drew."""
        expected = self.folder.expected(kind)
        return expected["neg_image_idx"].long(), expected["neg_text_idx"].long()

    def draw_seed(self) -> int:
        """Of the reference's draws."""
        if "draw_seed" not in self.facts:
            pytest.skip(f"{self.folder.path} does not tell the seed of its draws")
        return int(self.facts["draw_seed"])


@pytest.fixture(scope="session")
def whole_case(folder: Folder) -> Case:
    return Case(folder)


@pytest.fixture
def case(whole_case: Case, request: pytest.FixtureRequest) -> Case:
    kind = request.node.callspec.params.get("kind")
    if kind is not None and kind not in whole_case.folder.kinds():
        pytest.skip(f"{whole_case.folder.path} has no {kind} batch")
    return whole_case


def _error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected element."""
    assert actual.shape == expected.shape
    scale = expected.abs().max().clamp(min=1e-12)
    return ((actual - expected).abs().max() / scale).item()


@KINDS
def test_values(case: Case, kind: str) -> None:
    """Features, weights of negatives, matching logits, boxes."""
    batch, expected = case.folder.batch(kind), case.folder.expected(kind)
    values, _ = case.values(kind)
    compared = set()
    for name in values.keys() & expected.keys() - {"mlm_logits"}:
        actual, wanted = values[name], expected[name]
        if name in AT_TOKENS:
            tokens = batch["text_atts"].bool()
            actual, wanted = actual[tokens], wanted[tokens]
        if name == "image_embeds" and kind == "region" and _has_local_layers(case):
            visible = batch["image_atts"].bool()
            actual, wanted = actual[visible], wanted[visible]
        error = _error(actual, wanted)
        assert error <= RELATIVE, f"{name}: relative error {error:.2e}"
        compared.add(name)
    must = {"image_feat", "text_feat", "itm_logits_pos"}
    must |= {"output_coord"} if kind == "region" else set()
    assert compared >= must, f"the folder does not record {must - compared}"


def _has_local_layers(case: Case) -> bool:
    """Then what a region makes of the patches outside, which nothing reads, is not computed."""
    vision = case.config.vision
    return isinstance(vision, VitVision) and vision.local_layers > 0


@KINDS
def test_image_sequences_of_the_slow_reference(case: Case, kind: str) -> None:
    """The library's own reference keeps every patch, those outside of a region too."""
    expected = case.folder.expected(kind)
    found = library.slow_sequences(case.model, case.folder.batch(kind))
    compared = found.keys() & expected.keys()
    must = {"image_embeds"} | ({"image_embeds_full"} if kind == "region" else set())
    assert compared >= must, f"the folder does not record {must - compared}"
    for name in compared:
        assert _error(found[name], expected[name]) <= RELATIVE, name


@KINDS
def test_masked_language_logits(case: Case, kind: str) -> None:
    used = case.folder.batch(kind)["masked_ids"] != -100
    expected = case.folder.expected(kind)["mlm_logits"][used]
    assert _error(case.values(kind)[0]["mlm_logits"], expected) <= RELATIVE


@KINDS
def test_draws(case: Case, kind: str) -> None:
    """The weights lead the reference's generator to the reference's negatives."""
    ours = library.drawn(case.model, case.folder.batch(kind), case.draw_seed())
    for actual, expected in zip(ours, case.recorded(kind), strict=True):
        assert actual.tolist() == expected.tolist()


@KINDS
def test_losses(case: Case, kind: str) -> None:
    _, losses = case.values(kind)
    expected = {n: v for n, v in case.facts["losses"][kind].items() if n.startswith("loss_")}
    assert losses == pytest.approx(expected, rel=RELATIVE)


@KINDS
def test_gradients(case: Case, kind: str) -> None:
    """Every parameter, as X-VLM divides them, relative to its own largest element.

    There is no floor but one. The bias of attention keys adds the same number to all scores of a
    query, so its true gradient is zero, and what a computation finds is what its rounding left
    (about 1e-10). It is measured against the gradient of the matrix beside it.
    """
    case.model.zero_grad()
    library.answer(case.model, case.folder.batch(kind), case.recorded(kind)).total().backward()
    ours = {n: p.grad for n, p in case.model.named_parameters() if p.grad is not None}
    case.model.zero_grad()
    found, expected = case.in_their_names(ours), case.folder.gradients(kind)
    wrong = {}
    for name in found.keys() | expected.keys() - SECOND_NAMES:
        # A parameter that a batch does not reach has no gradient, or one of zeros.
        gradient = expected[name] if name in expected else torch.zeros_like(found[name])
        actual = found[name] if name in found else torch.zeros_like(gradient)
        key = name.endswith(("key.bias", "k_proj.bias"))
        scale = expected[name.removesuffix("bias") + "weight"] if key else gradient
        error = (actual - gradient).abs().max() / scale.abs().max().clamp(min=1e-12)
        if not error <= GRADIENT:
            wrong[name] = f"{error.item():.2e}"
    assert not wrong
    if "grad_norm" in case.facts["losses"][kind]:
        norm = torch.stack([gradient.norm() for gradient in found.values()]).norm().item()
        assert norm == pytest.approx(case.facts["losses"][kind]["grad_norm"], rel=RELATIVE)


def test_parameter_groups(case: Case) -> None:
    optim = OptimConfig(recipe="xvlm")
    # Each tensor is filled with its group's number, which then tells where X-VLM's tensors, some of
    # which we join, come from.
    parameters = dict(case.model.named_parameters())
    groups = parameter_groups(case.model, optim)
    numbered = {
        name: torch.tensor(number).expand(parameters[name].shape)
        for number, group in enumerate(groups)
        for name in group["names"]
    }
    assert numbered.keys() == parameters.keys()
    ours = {}
    for name, tensor in case.in_their_names(numbered).items():
        group = groups[int(tensor.flatten()[0])]
        ours[name] = (group["factor"] * RATE, group["weight_decay"])
    theirs = {
        name: (group["lr"], group["weight_decay"])
        for group in case.facts["parameter_groups"]
        for name in group["params"]
    }
    assert ours.keys() == theirs.keys()
    assert {n: ours[n] for n in ours if ours[n] != pytest.approx(theirs[n])} == {}
    for group in case.facts["parameter_groups"]:
        assert (optim.betas, optim.eps) == (tuple(group["betas"]), group["eps"])


def test_one_region_and_one_image_update(case: Case) -> None:
    """Losses and norms at each update and after both; negatives are drawn as the reference did."""
    if "one_step" not in case.facts:
        pytest.skip(f"{case.folder.path} records no updates")
    model = case.fresh_model()
    optim = OptimConfig(lr=RATE, recipe="xvlm", schedule="constant", warmup=0)
    optimizer, expected = Optimizer(model, optim, steps=2), case.facts["one_step"]
    for update, kind in enumerate(("region", "image")):
        optimizer.begin_step(update)
        found = _with_fresh_draws(case, model, kind)
        _same_losses(found, expected[kind])
        found.total().backward()
        norm = optimizer.step().norm
        assert norm.item() == pytest.approx(expected[f"{kind}_norm"], rel=RELATIVE)
    for kind in ("region", "image"):
        with torch.no_grad():
            _same_losses(_with_fresh_draws(case, model, kind), expected[f"{kind}_after"])


def _with_fresh_draws(case: Case, model: MultiGrainModel, kind: str) -> library.Answer:
    batch = case.folder.batch(kind)
    return library.answer(model, batch, library.drawn(model, batch, case.draw_seed()))


def _same_losses(found: library.Answer, expected: dict[str, float]) -> None:
    losses = {name: loss.item() for name, loss in found.losses.items()}
    assert losses == pytest.approx(expected, rel=RELATIVE)
