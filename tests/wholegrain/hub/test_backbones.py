"""Files of weights as they lie about, and a model that is started from two of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wholegrain.errors import CheckpointError, ConfigError
from wholegrain.hub.backbone_files import read_weights
from wholegrain.hub.backbones import load_backbones
from wholegrain.model.config import (
    MmcaConfig,
    ModelConfig,
    TextConfig,
    TimmVision,
    VisionConfig,
    VitVision,
)
from wholegrain.model.multigrain import MultiGrainModel

TEXT = TextConfig(
    vocab_size=50,
    hidden_size=24,
    layers=2,
    fusion_layer=1,
    heads=3,
    intermediate_size=40,
    max_positions=20,
)
VIT = VitVision(image_size=16, patch_size=8, width=24, depth=2, heads=3)
State = dict[str, Tensor]


def model_of(vision: VisionConfig = VIT, **options: Any) -> MultiGrainModel:
    torch.manual_seed(1)
    return MultiGrainModel(ModelConfig(vision=vision, text=TEXT, embed_dim=8, **options)).eval()


def vit_state() -> State:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(2)
    model = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=3
    )
    return {name: tensor + 0.1 for name, tensor in model.state_dict().items()}


def bert_state() -> State:
    import transformers

    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=20,
    )
    model = transformers.BertForMaskedLM(config)
    return {name: tensor + 0.1 for name, tensor in model.state_dict().items()}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A ViT as timm publishes it and a BERT in a folder of its own."""
    torch.save({"model": vit_state()}, tmp_path / "vit.pth")
    (tmp_path / "bert").mkdir()
    torch.save(bert_state(), tmp_path / "bert" / "pytorch_model.bin")
    return tmp_path / "vit.pth", tmp_path / "bert"


def unchanged(model: MultiGrainModel) -> bool:
    before = model_of(model.config.vision).state_dict()
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- the model ----------------------------------------------------------------------------------


def test_both_at_once_and_what_is_told(files: tuple[Path, Path]) -> None:
    model = model_of()
    report = load_backbones(model, *files)
    fresh = {
        "cross.layers.*.cross_attention": 8,
        "cross.layers.*.cross_residual": 2,
        "image_projection": 2,
        "text_projection": 2,
        "temperature": 1,
        "match_head": 6,
        "box_head": 6,
    }
    assert report.fresh == fresh
    taken = sum(sum(part.taken.values()) for part in report.parts)
    assert taken + sum(fresh.values()) == len(model.state_dict())
    filled = sum(part.parameters for part in report.parts)
    before = model_of().state_dict()
    moved = [
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert sum(model.state_dict()[name].numel() for name in moved) == filled
    shown = str(report)
    assert f"{files[0]}: ViT (timm)" in shown
    assert f"{files[1] / 'pytorch_model.bin'}: BERT (Hugging Face)" in shown
    assert "dropped  head.weight, head.bias" in shown
    assert "fresh: temperature 1, cross.layers.*.cross_attention 8" in shown


def test_one_of_them_or_none(files: tuple[Path, Path]) -> None:
    model = model_of()
    report = load_backbones(model)
    assert unchanged(model)
    assert report.parts == ()
    assert set(report.fresh) >= {"vision", "text", "cross"}
    report = load_backbones(model, vision=files[0])
    assert "vision" not in report.fresh
    assert report.fresh["text"] == 21


def test_a_bad_second_file_leaves_the_first_unused(files: tuple[Path, Path]) -> None:
    state = bert_state()
    del state["bert.embeddings.LayerNorm.weight"]
    torch.save(state, files[1] / "pytorch_model.bin")
    model = model_of()
    with pytest.raises(CheckpointError, match=r"lacks text.embeddings.norm.weight"):
        load_backbones(model, *files)
    assert unchanged(model)


def test_a_model_of_another_precision(files: tuple[Path, Path]) -> None:
    model = model_of().double()
    load_backbones(model, *files)
    assert all(p.dtype == torch.float64 for p in model.parameters())


def test_a_file_under_the_wrong_name(files: tuple[Path, Path]) -> None:
    vit, bert = files
    with pytest.raises(CheckpointError, match=r"it is a BERT: name it under 'text'"):
        load_backbones(model_of(), vision=bert)
    with pytest.raises(CheckpointError, match=r"it is ViT \(timm\): name it under 'vision'"):
        load_backbones(model_of(), text=vit)


def test_other_models_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {f"vision_encoder.{n}": t for n, t in vit_state().items()}}, path)
    for place in ("vision", "text"):
        with pytest.raises(CheckpointError, match=r"whole X-VLM.*import-xvlm"):
            load_backbones(model_of(), **{place: path})
    torch.save({f"some.{n}": torch.ones(1) for n in "abcdef"}, path)
    with pytest.raises(CheckpointError, match=r"some.a, some.b, some.c, some.d and 2 more"):
        load_backbones(model_of(), vision=path)


def test_models_that_cannot_be_started_so(files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="has adapters"):
        load_backbones(model_of(adapters=(MmcaConfig(blocks=1),)), *files)
    small = TimmVision(
        name="resnet18d", image_size=64, options={"channels": [8, 8, 8, 8], "stem_width": 4}
    )
    with pytest.raises(ConfigError, match=r"vision.kind is 'timm'"):
        load_backbones(model_of(small), *files)


# --- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_other_precisions_are_cast_and_reported(
    tmp_path: Path, precision: str, suffix: str
) -> None:
    state = {name: value.to(getattr(torch, precision)) for name, value in vit_state().items()}
    path = tmp_path / f"a.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state, path)  # type: ignore[operator]
    model = model_of()
    report = load_backbones(model, vision=path)
    assert report.parts[0].cast == {precision: len(state)}
    assert f"cast     {len(state)} tensors of {precision} to float32" in str(report)
    found = model.vision.state_dict()["backbone.norm.weight"]
    assert torch.equal(found, state["norm.weight"].float())


@pytest.mark.parametrize("other", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_integer_weights_are_refused(tmp_path: Path, other: torch.dtype) -> None:
    state = vit_state()
    state["blocks.0.attn.qkv.weight"] = state["blocks.0.attn.qkv.weight"].to(other)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"'blocks.0.attn.qkv.weight' is of {other}"):
        load_backbones(model_of(), vision=tmp_path / "a.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused_by_name(tmp_path: Path, value: float) -> None:
    state = vit_state()
    state["blocks.1.mlp.fc2.bias"][3] = value
    state["head.bias"][0] = value  # which nobody uses
    torch.save(state, tmp_path / "a.pth")
    model = model_of()
    with pytest.raises(CheckpointError, match=r"NaN or infinity in vision\S+\.fc2\.bias; fetch"):
        load_backbones(model, vision=tmp_path / "a.pth")
    assert unchanged(model)


# --- files --------------------------------------------------------------------------------------


def test_what_is_read(tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "position_ids": torch.arange(3), "b": torch.ones(2).half()}
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "a.bin")
    file = read_weights(tmp_path / "a.bin")
    assert set(file.tensors) == {"a", "b"}
    assert file.integers == ("position_ids",)
    assert file.cast == {"float16": 1}
    assert file.described == {}


def test_a_folders_description_is_read_with_it(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    torch.save({"b": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    file = read_weights(tmp_path)
    assert set(file.tensors) == {"a"}, "safetensors is preferred"
    assert file.described == {"model_type": "bert"}
    for text in ("[1]", "{", "[" * 100_000, " " * (1 << 21)):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json: does not describe"):
            read_weights(tmp_path)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.write_text, (self.target, "it ran")


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_that_runs_code_is_refused_unrun(tmp_path: Path, legacy: bool) -> None:
    target, path = tmp_path / "ran", tmp_path / "pytorch_model.bin"
    content = {"a": torch.ones(1), "b": Bomb(target)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError) as caught:
        load_backbones(model_of(), text=tmp_path)
    assert not target.exists()
    assert str(caught.value).startswith(f"{path}: not a checkpoint")


def cut(path: Path, share: float) -> bytes:
    content = path.read_bytes()
    return content[: int(len(content) * share)]


def safetensors_file(folder: Path) -> Path:
    save_file(vit_state(), folder / "whole.safetensors")
    return folder / "whole.safetensors"


def pickle_file(folder: Path) -> Path:
    torch.save(vit_state(), folder / "whole.pth")
    return folder / "whole.pth"


def old_file(folder: Path) -> Path:
    torch.save(vit_state(), folder / "old.pth", _use_new_zipfile_serialization=False)
    return folder / "old.pth"


@pytest.mark.parametrize("make", [safetensors_file, pickle_file, old_file])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, make: Callable[[Path], Path], share: float) -> None:
    whole = make(tmp_path)
    read_weights(whole)
    path = tmp_path / f"cut{whole.suffix}"
    path.write_bytes(cut(whole, share))
    with pytest.raises(CheckpointError, match=r"cut\.\w+: not a"):
        load_backbones(model_of(), vision=path)


@pytest.mark.parametrize("name", ["a.pth", "model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>not found</html>",
        b"<!DOCTYPE html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        b"\x80\x04garbage",
        b"\xff" * 8 + b"{" + b"\xff" * 50,
        b"\x02\0\0\0\0\0\0\0{}trailing",
    ],
)
def test_other_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_backbones(model_of(), vision=tmp_path / name)


def test_absent_files_and_folders_without_any(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pth"):
        load_backbones(model_of(), vision=tmp_path / "absent.pth")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match=r"holds neither model.safetensors nor pytorch_model"):
        load_backbones(model_of(), vision=tmp_path)


@pytest.mark.parametrize(
    "content", [[torch.ones(1)], {"model": [1]}, {"a": 3}, {1: torch.ones(1)}, {"state": {}}]
)
def test_files_without_a_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        load_backbones(model_of(), vision=tmp_path / "a.pth")


def test_a_tensor_that_claims_more_than_is_stored(tmp_path: Path) -> None:
    torch.save({"norm.weight": torch.ones(1).expand(1 << 40)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"'norm\.weight' claims"):
        read_weights(tmp_path / "a.pth")
