"""The activation is in no shape: `vision.activation` is held against the file's description."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.wholegrain.hub.test_import_vision import CLIP, IMAGES, VIT, close, hugging_face, model_of
from wholegrain.errors import CheckpointError
from wholegrain.hub.backbones import load_backbones
from wholegrain.model.config import VitVision

KINDS = {"clip": ("CLIPVisionModel", "CLIPVisionConfig"), "vit": ("ViTModel", "ViTConfig")}


def saved(folder: Path, activation: str) -> Any:
    """An encoder of Hugging Face's with that activation; the folder's name says which."""
    theirs = hugging_face(*KINDS[folder.name], hidden_act=activation)
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize(
    ("activation", "asked"),
    [("gelu", "gelu"), ("quick_gelu", None), ("quick_gelu", "quick_gelu")],
)
def test_both_activations_of_clip_are_taken(
    tmp_path: Path, activation: str, asked: str | None
) -> None:
    """LAION's CLIP has GELU, OpenAI's quick GELU; outputs are those of the library."""
    theirs = saved(tmp_path / "clip", activation)
    model = model_of(replace(CLIP, activation=asked))  # type: ignore[arg-type]
    load_backbones(model, vision=tmp_path / "clip")
    close(model.encode_images(IMAGES).cls, theirs(pixel_values=IMAGES).pooler_output)


@pytest.mark.parametrize(
    ("kind", "activation", "asked", "match"),
    [
        ("clip", "gelu", CLIP, "'gelu', the model 'quick_gelu'; set vision.activation to the"),
        (
            "clip",
            "quick_gelu",
            replace(CLIP, activation="gelu"),
            "'quick_gelu', the model 'gelu'; set vision.activation to the file's",
        ),
        ("clip", "relu", CLIP, "'relu', the model 'quick_gelu'; no setting changes it"),
        ("vit", "quick_gelu", VIT, "'quick_gelu', the model 'gelu'; set vision.activation"),
        (
            "vit",
            "gelu",
            replace(VIT, activation="quick_gelu"),
            "'gelu', the model 'quick_gelu'; set vision.activation",
        ),
    ],
)
def test_another_activation_is_refused_with_the_setting(
    tmp_path: Path, kind: str, activation: str, asked: VitVision, match: str
) -> None:
    saved(tmp_path / kind, activation)
    model = model_of(asked)
    with pytest.raises(CheckpointError, match=f"has hidden_act {match}"):
        load_backbones(model, vision=tmp_path / kind)


def test_a_file_that_says_nothing_is_taken(tmp_path: Path) -> None:
    saved(tmp_path / "clip", "quick_gelu")
    file = tmp_path / "clip" / "config.json"
    told = json.loads(file.read_text())
    del told["hidden_act"]
    file.write_text(json.dumps(told))
    load_backbones(model_of(replace(CLIP, activation="gelu")), vision=tmp_path / "clip")
