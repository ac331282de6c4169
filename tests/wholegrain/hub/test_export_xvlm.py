"""A release in X-VLM's layout, or the reason why it cannot be."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.wholegrain.hub.published_xvlm import CONFIGS, HEADS, VISIONS, published
from wholegrain.errors import CheckpointError, ConfigError, DataError, ReleaseError
from wholegrain.hub.card import Card
from wholegrain.hub.export_xvlm import as_xvlm_file, export_xvlm
from wholegrain.hub.import_xvlm import convert_xvlm
from wholegrain.hub.release import save_release
from wholegrain.hub.xvlm_config import model_config_of
from wholegrain.hub.xvlm_file import read_xvlm, read_xvlm_file
from wholegrain.hub.xvlm_layout import swin_tables
from wholegrain.model.config import (
    MmcaConfig,
    ModelConfig,
    PatchBoxHead,
    SwinVision,
    TimmVision,
)
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.text import Tokenizer

POOLED = replace(CONFIGS["vit"], vision=replace(VISIONS["vit"], local_layers=0))
Save = Callable[[ModelConfig], Path]


@pytest.fixture
def save(tmp_path: Path, letters: Tokenizer) -> Save:
    def make(config: ModelConfig) -> Path:
        torch.manual_seed(0)
        return save_release(tmp_path / "r", MultiGrainModel(config), letters, card=Card("T"))

    return make


@pytest.mark.parametrize("kind", VISIONS)
@pytest.mark.parametrize("layout", ["pretrained", *HEADS])
def test_names_shapes_and_types_are_the_published_ones(kind: str, layout: str) -> None:
    found = as_xvlm_file(MultiGrainModel(CONFIGS[kind]), layout).state
    expected = published(kind, layout)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape and found[name].dtype == value.dtype, name
        if not value.is_floating_point() or name.endswith("attn_mask"):
            assert torch.equal(found[name], value), name


def test_tied_weights_are_stored_once(tmp_path: Path, save: Save) -> None:
    told = export_xvlm(save(CONFIGS["clip"]), tmp_path / "a.th")
    assert told.layout == "pretrained" and "pretrained layout" in str(told)
    state = read_xvlm(tmp_path / "a.th")
    first = state["text_encoder.bert.embeddings.word_embeddings.weight"]
    second = state["text_encoder.cls.predictions.decoder.weight"]
    assert first.data_ptr() == second.data_ptr()
    # Nothing is stored but what is named: a slice would bring the whole that it is cut from.
    held = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in state.values()}
    assert sum(held.values()) == 4 * told.parameters + 8 * (17 + 20)
    assert told.parameters == sum(p.numel() for p in MultiGrainModel(CONFIGS["clip"]).parameters())


def test_the_stored_configuration_is_plain(tmp_path: Path, save: Save) -> None:
    export_xvlm(save(CONFIGS["swin"]), tmp_path / "a.th", layout="grounding")
    file = read_xvlm_file(tmp_path / "a.th")
    assert set(file.state) == set(published("swin", "grounding"))
    facts = {"use_swin": True, "use_clip_vit": False, "image_res": 56, "patch_size": 8}
    assert facts.items() <= file.config.items()
    assert file.config["vision_config"]["depths"] == [2, 2]
    assert file.config["text_config"]["fusion_layer"] == 2


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            replace(
                CONFIGS["vit"],
                vision=TimmVision(image_size=64, options={"channels": [8, 8, 8, 8]}),
            ),
            "image encoder is of kind 'timm'",
        ),
        (replace(CONFIGS["vit"], box_head=PatchBoxHead(width=8)), "box head is of kind 'patch'"),
        (
            replace(POOLED, adapters=(MmcaConfig(rank=2, embed_dim=8, gate_dim=4, blocks=1),)),
            "it has adapters",
        ),
        (
            replace(CONFIGS["swin"], vision=SwinVision(
                image_size=64, embed_dim=8, depths=(2, 2), heads=(1, 2), window=5)),
            "windows of 5 do not tile stage 0's map of 16",
        ),
    ],
)  # fmt: skip
def test_models_that_the_layout_cannot_hold(
    tmp_path: Path, save: Save, config: ModelConfig, reason: str
) -> None:
    folder = save(config)
    with pytest.raises(CheckpointError, match=reason) as caught:
        export_xvlm(folder, tmp_path / "a.th")
    assert str(caught.value).startswith(f"{folder}: ")
    assert not (tmp_path / "a.th").exists()


def test_an_existing_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a.th").write_text("precious")
    with pytest.raises(DataError, match="the file exists"):
        export_xvlm(tmp_path / "no release", tmp_path / "a.th")
    assert (tmp_path / "a.th").read_text() == "precious"
    with pytest.raises(ReleaseError, match="no such release folder"):
        export_xvlm(tmp_path / "no release", tmp_path / "a.th", overwrite=True)


def test_an_unknown_layout() -> None:
    with pytest.raises(ConfigError, match="layout is 'vqa'; choose one of pretrained, retrieval"):
        as_xvlm_file(MultiGrainModel(CONFIGS["vit"]), "vqa")


def test_maps_no_larger_than_a_window_have_no_mask(tmp_path: Path, save: Save) -> None:
    one = SwinVision(image_size=56, embed_dim=8, depths=(2, 2), heads=(1, 2), window=7)
    assert [name for name in swin_tables(one) if "mask" in name] == ["layers.0.blocks.1.attn_mask"]
    small = replace(one, image_size=16)  # maps of 4 and 2, whose windows are no larger
    tables = swin_tables(small)
    assert {tuple(table.shape) for table in tables.values()} == {(16, 16), (4, 4)}
    assert not [name for name in tables if "mask" in name]
    export_xvlm(save(replace(CONFIGS["swin"], vision=small)), tmp_path / "a.th")
    file = read_xvlm_file(tmp_path / "a.th")
    found = model_config_of(file.state, file.config)
    convert_xvlm(file, found)
    assert found.vision == replace(small, window=4)
