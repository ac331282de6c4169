"""Parity with X-VLM's reference numbers, for every folder in $XVLM_FIXTURES."""

from __future__ import annotations

import glob
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pretrain.config import ObjectiveConfig
from pretrain.objective import ConceptInputs, Outputs, run_objectives
from wholegrain.hub.import_xvlm import from_xvlm, read_xvlm
from wholegrain.model.config import ModelConfig, SwinVision, TextConfig, VisionConfig, VitVision
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.objectives.matching import Negatives, negative_weights
from wholegrain.train.config import OptimConfig
from wholegrain.train.optim import Optimizer, parameter_groups

RELATIVE = 1e-5
GRADIENT = 1e-4


def _folders() -> list[Path]:
    default = Path(__file__).parents[3] / "shared" / "fixtures" / "xvlm" / "*"
    patterns = os.environ.get("XVLM_FIXTURES", str(default)).split(":")
    found = [Path(p) for pattern in patterns for p in sorted(glob.glob(pattern))]
    return [path for path in found if (path / "fixture.json").exists()]


@dataclass
class Case:
    facts: dict[str, Any]
    model: MultiGrainModel
    batch: dict[str, Tensor]
    expected: dict[str, Tensor]
    folder: Path


def _vision(facts: dict[str, Any]) -> VisionConfig:
    config, vision = facts["config"], facts["vision_config"]
    size = config["image_res"]
    if config["use_swin"]:
        return SwinVision(
            image_size=size,
            embed_dim=vision["embed_dim"],
            depths=tuple(vision["depths"]),
            heads=tuple(vision["num_heads"]),
            window=vision["window_size"],
        )
    width = vision["vision_width"]
    return VitVision(
        image_size=size,
        patch_size=vision.get("patch_size", config["patch_size"]),
        width=width,
        depth=vision.get("num_hidden_layers", vision.get("depth", 12)),
        heads=vision.get("num_attention_heads", vision.get("num_heads", 12)),
        mlp_ratio=vision.get("intermediate_size", 4 * width) / width,
        clip=config["use_clip_vit"],
        local_layers=vision.get("local_attn_depth", 4),
    )


def _model(facts: dict[str, Any], folder: Path) -> MultiGrainModel:
    text = facts["text_config"]
    config = ModelConfig(
        vision=_vision(facts),
        text=TextConfig(
            vocab_size=text["vocab_size"],
            hidden_size=text["hidden_size"],
            layers=text["num_hidden_layers"],
            fusion_layer=text["fusion_layer"],
            heads=text["num_attention_heads"],
            intermediate_size=text["intermediate_size"],
            max_positions=text["max_position_embeddings"],
            type_vocab_size=text["type_vocab_size"],
            norm_eps=text["layer_norm_eps"],
        ),
        embed_dim=facts["config"]["embed_dim"],
        temperature=facts["config"]["temp"],
    )
    model = MultiGrainModel(config).eval()
    state = from_xvlm(read_xvlm(folder / "checkpoint.th"), text["fusion_layer"])
    model.load_state_dict(state, strict=True)
    return model


@pytest.fixture(params=_folders() or [None], ids=lambda p: p.name if p else "none")
def case(request: pytest.FixtureRequest) -> Case:
    folder = request.param
    if folder is None:
        pytest.skip("no reference numbers: set XVLM_FIXTURES to folders with fixture.json")
    facts = json.loads((folder / "fixture.json").read_text())
    return Case(
        facts=facts,
        model=_model(facts, folder),
        batch=load_file(folder / "batch.safetensors"),
        expected=load_file(folder / "expected.safetensors"),
        folder=folder,
    )


def _inputs(case: Case, kind: str) -> ConceptInputs:
    batch = {k.removeprefix(f"{kind}."): v for k, v in case.batch.items() if k.startswith(kind)}
    ids = batch["text_ids"]
    count, patches = len(ids), case.model.vision.grid[0] * case.model.vision.grid[1]
    if kind == "image":
        image = torch.arange(count)
        mask = torch.ones(count, patches, dtype=torch.bool)
        box, boxed = torch.zeros(count, 4), torch.zeros(0, dtype=torch.long)
    else:
        image = batch["idx_to_group_img"]
        mask = batch["image_atts"][:, 1:].bool()
        box = batch["target_bbox"]
        boxed = (batch["is_image"] == 0).nonzero().squeeze(1)
    labels = batch["masked_ids"]
    row, slot = (labels != -100).nonzero(as_tuple=True)
    return ConceptInputs(
        images=batch["image"],
        image=image,
        mask=mask,
        box=box,
        ids=ids,
        tokens=batch["text_atts"].bool(),
        masked_ids=batch["text_ids_masked"],
        hidden=(row, batch["masked_pos"][row, slot], labels[row, slot]),
        boxed=boxed,
    )


def _recorded(case: Case, kind: str) -> Negatives:
    image = case.expected[f"{kind}.neg_image_idx"].long()
    text = case.expected[f"{kind}.neg_text_idx"].long()
    return Negatives(image, text, torch.ones(len(image), dtype=torch.bool))


OPTIONS = ObjectiveConfig(all_others_are_negatives=True)


def _run(case: Case, kind: str, negatives: Negatives | None = None) -> Outputs:
    chosen = negatives or _recorded(case, kind)
    return run_objectives(case.model, _inputs(case, kind), OPTIONS, chosen)


def _close(actual: Tensor, expected: Tensor, relative: float, name: str) -> None:
    assert actual.shape == expected.shape, name
    scale = expected.abs().max().clamp(min=1e-12)
    error = ((actual - expected).abs().max() / scale).item()
    assert error <= relative, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("kind", ["image", "region"])
def test_values(case: Case, kind: str) -> None:
    outputs, inputs = _run(case, kind), _inputs(case, kind)
    expected = {
        k.removeprefix(f"{kind}."): v for k, v in case.expected.items() if k.startswith(f"{kind}.")
    }
    tokens = inputs.tokens
    pairs = {
        "image_embeds": outputs.sequence,
        "image_feat": outputs.image_vector,
        "text_feat": outputs.text_vector,
        "itm_logits_pos": outputs.match_logits[: len(tokens)],
    }
    for name, actual in pairs.items():
        _close(actual, expected[name], RELATIVE, name)
    _close(outputs.text_states[tokens], expected["text_embeds"][tokens], RELATIVE, "text_embeds")
    _close(outputs.fused[tokens], expected["cross_embeds_pos"][tokens], RELATIVE, "cross")
    if kind == "region":
        boxes = expected["output_coord"][inputs.boxed]
        _close(outputs.boxes, boxes, RELATIVE, "output_coord")


@pytest.mark.parametrize("kind", ["image", "region"])
def test_masked_language_logits(case: Case, kind: str) -> None:
    outputs = _run(case, kind)
    used = case.batch[f"{kind}.masked_ids"] != -100
    _close(outputs.token_logits, case.expected[f"{kind}.mlm_logits"][used], RELATIVE, "mlm_logits")


@pytest.mark.parametrize("kind", ["image", "region"])
def test_negative_weights(case: Case, kind: str) -> None:
    outputs = _run(case, kind)
    similarity = outputs.image_vector @ outputs.text_vector.T / case.model.temperature
    diagonal = torch.eye(len(similarity), dtype=torch.bool)
    for name, matrix in (("i2t", similarity), ("t2i", similarity.T)):
        weights = negative_weights(matrix, diagonal)
        _close(weights, case.expected[f"{kind}.weights_{name}"], RELATIVE, name)


@pytest.mark.parametrize("kind", ["image", "region"])
def test_losses(case: Case, kind: str) -> None:
    losses = _run(case, kind).losses
    expected = case.facts["losses"][kind]
    names = {
        "loss_itc": "contrastive",
        "loss_itm": "matching",
        "loss_mlm": "masked_language",
        "loss_bbox": "box_l1",
        "loss_giou": "box_giou",
    }
    for theirs, ours in names.items():
        if theirs in expected:
            assert losses[ours].item() == pytest.approx(expected[theirs], rel=RELATIVE), theirs


def _total(outputs: Outputs, kind: str) -> Tensor:
    names = ["contrastive", "matching", "masked_language"]
    if kind == "region":
        names += ["box_l1", "box_giou"]
    return torch.stack([outputs.losses[name] for name in names]).sum()


@pytest.mark.parametrize("kind", ["image", "region"])
def test_gradients(case: Case, kind: str) -> None:
    case.model.zero_grad()
    _total(_run(case, kind), kind).backward()
    expected = load_file(case.folder / "gradients.safetensors")
    prefix = f"{kind}."
    theirs = {k.removeprefix(prefix): v for k, v in expected.items() if k.startswith(prefix)}
    ours = from_xvlm(theirs, case.facts["text_config"]["fusion_layer"])
    parameters = dict(case.model.named_parameters())
    assert ours, "the fixture holds gradients"
    # Below the rounding noise of the whole gradient a relative error says nothing.
    floor = 1e-6 * max(gradient.abs().max().item() for gradient in ours.values())
    for name, gradient in ours.items():
        actual = parameters[name].grad
        assert actual is not None, name
        error = (actual - gradient).abs().max().item()
        assert error <= GRADIENT * gradient.abs().max().item() + floor, f"{name}: {error:.2e}"


def test_parameter_groups(case: Case) -> None:
    groups = parameter_groups(case.model, OptimConfig(recipe="xvlm"))
    ours = {n: (g["factor"] * 1e-4, g["weight_decay"]) for g in groups for n in g["names"]}
    reference = case.facts["parameter_groups"]
    # Each tensor is filled with its group's number, which then tells where our tensors, some of
    # them joined from several, come from.
    original = read_xvlm(case.folder / "checkpoint.th")
    numbered = {
        name: torch.full_like(original[name], number)
        for number, group in enumerate(reference)
        for name in group["params"]
    }
    mapped = from_xvlm(numbered, case.facts["text_config"]["fusion_layer"])
    assert mapped.keys() == ours.keys()
    for name, tensor in mapped.items():
        number = int(tensor.flatten()[0])
        assert torch.all(tensor == number), name
        expected = (reference[number]["lr"], reference[number]["weight_decay"])
        assert ours[name] == pytest.approx(expected), name


def test_one_region_and_one_image_update(case: Case) -> None:
    """Repeats the reference's draws: all images first, then all texts, one row at a time."""
    optim = OptimConfig(recipe="xvlm", schedule="constant", warmup=0)
    optimizer = Optimizer(case.model, optim, steps=2)
    expected = case.facts["one_step"]
    for update, kind in enumerate(("region", "image")):
        optimizer.begin_step(update)
        outputs = _run(case, kind, _drawn(case, kind))
        for theirs, ours in (("loss_itc", "contrastive"), ("loss_mlm", "masked_language")):
            assert outputs.losses[ours].item() == pytest.approx(
                expected[kind][theirs], rel=RELATIVE
            )
        if kind == "image":  # the reference's box head gets no gradient there
            case.model.box_head.requires_grad_(False)
        _total(outputs, kind).backward()
        norm, _ = optimizer.step()
        assert norm.item() == pytest.approx(expected[f"{kind}_norm"], rel=RELATIVE)
    for kind in ("region", "image"):
        losses = _run(case, kind, _drawn(case, kind)).losses
        for theirs, value in expected[f"{kind}_after"].items():
            ours = {
                "loss_itc": "contrastive",
                "loss_itm": "matching",
                "loss_mlm": "masked_language",
                "loss_bbox": "box_l1",
                "loss_giou": "box_giou",
            }[theirs]
            assert losses[ours].item() == pytest.approx(value, rel=RELATIVE), (kind, theirs)


def _drawn(case: Case, kind: str) -> Negatives:
    with torch.no_grad():
        outputs = _run(case, kind)
        similarity = outputs.image_vector @ outputs.text_vector.T / case.model.temperature
        diagonal = torch.eye(len(similarity), dtype=torch.bool)
        torch.manual_seed(case.facts["draw_seed"])
        images = [torch.multinomial(row, 1) for row in negative_weights(similarity.T, diagonal)]
        texts = [torch.multinomial(row, 1) for row in negative_weights(similarity, diagonal)]
    valid = torch.ones(len(images), dtype=torch.bool)
    return Negatives(torch.cat(images), torch.cat(texts), valid)
