"""X-VLM's files: every layout is mapped whole, anything unknown or hostile is refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wholegrain.errors import CheckpointError
from wholegrain.hub.import_xvlm import from_xvlm, read_xvlm
from wholegrain.model.config import ModelConfig, SwinVision, TextConfig, VisionConfig, VitVision
from wholegrain.model.multigrain import MultiGrainModel

TEXT = TextConfig(
    vocab_size=50,
    hidden_size=24,
    layers=4,
    fusion_layer=2,
    heads=3,
    intermediate_size=40,
    max_positions=20,
)
VISIONS: dict[str, VisionConfig] = {
    "swin": SwinVision(image_size=64, embed_dim=8, depths=(2, 2), heads=(1, 2), window=4),
    "vit": VitVision(image_size=32, patch_size=8, width=24, depth=2, heads=3),
    "clip": VitVision(image_size=32, patch_size=8, width=24, depth=2, heads=3, clip=True),
}
State = dict[str, Tensor]


class Made:
    """Random tensors by the names and shapes of a published file."""

    def __init__(self) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(0)

    def put(self, name: str, *shape: int) -> None:
        self.state[name] = torch.randn(shape, generator=self.generator)

    def linear(self, name: str, out: int, width: int, bias: bool = True) -> None:
        self.put(f"{name}.weight", out, width)
        if bias:
            self.put(f"{name}.bias", out)

    def norm(self, name: str, width: int) -> None:
        self.put(f"{name}.weight", width)
        self.put(f"{name}.bias", width)


def text_parts(made: Made, vision_width: int) -> None:
    bert, width = "text_encoder.bert", 24
    made.state[f"{bert}.embeddings.position_ids"] = torch.arange(20)[None]
    for name, rows in (("word", 50), ("position", 20), ("token_type", 2)):
        made.put(f"{bert}.embeddings.{name}_embeddings.weight", rows, width)
    made.norm(f"{bert}.embeddings.LayerNorm", width)
    for n in range(4):
        layer = f"{bert}.encoder.layer.{n}"
        for block in ("attention", "crossattention")[: 1 if n < 2 else 2]:
            source = width if block == "attention" else vision_width
            made.linear(f"{layer}.{block}.self.query", width, width)
            made.linear(f"{layer}.{block}.self.key", width, source)
            made.linear(f"{layer}.{block}.self.value", width, source)
            made.linear(f"{layer}.{block}.output.dense", width, width)
            made.norm(f"{layer}.{block}.output.LayerNorm", width)
        made.linear(f"{layer}.intermediate.dense", 40, width)
        made.linear(f"{layer}.output.dense", width, 40)
        made.norm(f"{layer}.output.LayerNorm", width)
    head = "text_encoder.cls.predictions"
    made.put(f"{head}.bias", 50)
    made.linear(f"{head}.transform.dense", width, width)
    made.norm(f"{head}.transform.LayerNorm", width)
    made.state[f"{head}.decoder.weight"] = made.state[f"{bert}.embeddings.word_embeddings.weight"]
    made.state[f"{head}.decoder.bias"] = made.state[f"{head}.bias"]
    made.linear("vision_proj", 256, vision_width)
    made.linear("text_proj", 256, width)
    for name, out in (("itm_head", 2), ("bbox_head", 4)):
        made.linear(f"{name}.0", 2 * width, width)
        made.norm(f"{name}.1", 2 * width)
        made.linear(f"{name}.3", out, 2 * width)
    made.put("temp")


def swin_parts(made: Made) -> None:
    top = "vision_encoder"
    made.put(f"{top}.patch_embed.proj.weight", 8, 3, 4, 4)
    made.put(f"{top}.patch_embed.proj.bias", 8)
    made.norm(f"{top}.patch_embed.norm", 8)
    for i, width in enumerate((8, 16)):
        for j in range(2):
            block = f"{top}.layers.{i}.blocks.{j}"
            made.norm(f"{block}.norm1", width)
            made.put(f"{block}.attn.relative_position_bias_table", 49, 1 + i)
            made.state[f"{block}.attn.relative_position_index"] = torch.zeros(16, 16).long()
            made.linear(f"{block}.attn.qkv", 3 * width, width)
            made.linear(f"{block}.attn.proj", width, width)
            made.norm(f"{block}.norm2", width)
            made.linear(f"{block}.mlp.fc1", 4 * width, width)
            made.linear(f"{block}.mlp.fc2", width, 4 * width)
            if j:
                made.state[f"{block}.attn_mask"] = torch.zeros(4, 16, 16)
    made.norm(f"{top}.layers.0.downsample.norm", 32)
    made.linear(f"{top}.layers.0.downsample.reduction", 16, 32, bias=False)
    made.norm(f"{top}.norm", 16)


def vit_parts(made: Made) -> None:
    top, width = "vision_encoder", 24
    made.put(f"{top}.cls_token", 1, 1, width)
    made.put(f"{top}.pos_embed", 1, 17, width)
    made.put(f"{top}.patch_embed.proj.weight", width, 3, 8, 8)
    made.put(f"{top}.patch_embed.proj.bias", width)
    for n in range(2):
        block = f"{top}.blocks.{n}"
        for norm in ("norm1", "norm2"):
            made.norm(f"{block}.{norm}", width)
        made.linear(f"{block}.attn.qkv", 3 * width, width)
        made.linear(f"{block}.attn.proj", width, width)
        made.linear(f"{block}.mlp.fc1", 4 * width, width)
        made.linear(f"{block}.mlp.fc2", width, 4 * width)
    made.norm(f"{top}.norm", width)


def clip_parts(made: Made) -> None:
    top, width = "vision_encoder", 24
    made.put(f"{top}.class_embedding", width)
    made.state[f"{top}.position_ids"] = torch.arange(17)[None]
    made.put(f"{top}.patch_embed.weight", width, 3, 8, 8)
    made.put(f"{top}.pos_embed.weight", 17, width)
    for norm in ("pre_layrnorm", "post_layernorm"):
        made.norm(f"{top}.{norm}", width)
    for n in range(2):
        layer = f"{top}.encoder.layers.{n}"
        for part in "qkv":
            made.linear(f"{layer}.self_attn.{part}_proj", width, width)
        made.linear(f"{layer}.self_attn.out_proj", width, width)
        made.norm(f"{layer}.layer_norm1", width)
        made.norm(f"{layer}.layer_norm2", width)
        made.linear(f"{layer}.mlp.fc1", 4 * width, width)
        made.linear(f"{layer}.mlp.fc2", width, 4 * width)


def published(kind: str) -> State:
    made = Made()
    {"swin": swin_parts, "vit": vit_parts, "clip": clip_parts}[kind](made)
    text_parts(made, 16 if kind == "swin" else 24)
    return made.state


@pytest.mark.parametrize("kind", VISIONS)
def test_every_tensor_of_every_layout_is_mapped(kind: str) -> None:
    model = MultiGrainModel(ModelConfig(vision=VISIONS[kind], text=TEXT))
    state = from_xvlm(published(kind), TEXT.fusion_layer)
    model.load_state_dict(state, strict=True)
    assert set(state) == set(model.state_dict())
    features = model.eval().encode_images(torch.randn(1, 3, *[VISIONS[kind].image_size] * 2))
    assert torch.isfinite(features.patches).all()


def test_values_arrive_where_they_belong() -> None:
    source = published("swin")
    ours = from_xvlm(source, TEXT.fusion_layer)
    layer = "text_encoder.bert.encoder.layer"
    for theirs, name in {
        "temp": "temperature",
        f"{layer}.1.attention.self.key.weight": "text.layers.1.attention.key.weight",
        f"{layer}.2.output.dense.bias": "cross.layers.0.feed_forward.down.bias",
        f"{layer}.3.crossattention.output.LayerNorm.weight": (
            "cross.layers.1.cross_residual.norm.weight"
        ),
        "bbox_head.3.weight": "box_head.mlp.3.weight",
        "itm_head.1.bias": "match_head.1.bias",
        "vision_encoder.layers.0.downsample.reduction.weight": (
            "vision.backbone.layers.1.downsample.reduction.weight"
        ),
        "text_encoder.cls.predictions.bias": "masked_language_head.bias",
    }.items():
        assert torch.equal(ours[name], source[theirs]), name


def test_clips_three_projections_become_one() -> None:
    source = published("clip")
    ours = from_xvlm(source, TEXT.fusion_layer)
    fused = ours["vision.backbone.blocks.1.attn.qkv.weight"]
    parts = [
        source[f"vision_encoder.encoder.layers.1.self_attn.{each}_proj.weight"] for each in "qkv"
    ]
    assert torch.equal(fused, torch.cat(parts))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("swin", "text_decoder.bert.embeddings.word_embeddings.weight"),
        ("swin", "text_encoder.bert.encoder.layer.1.adapter.dense.weight"),
        ("swin", "text_encoder.encoder.layer.1.output.dense.weight"),
        ("swin", "queue"),
        ("swin", "cls_head.0.weight"),
        ("swin", "vision_encoder.layers.0.blocks.0.attn.extra.weight"),
        ("swin", "vision_encoder.head.weight"),
        ("vit", "vision_encoder.dist_token"),
        ("clip", "vision_encoder.encoder.layers.0.layer_norm3.weight"),
        ("clip", "vision_encoder.patch_embed.bias"),
    ],
)
def test_unknown_tensors_are_named(kind: str, name: str) -> None:
    state = {**published(kind), name: torch.zeros(1)}
    with pytest.raises(CheckpointError, match=f"'{name}' is not part of a pretraining checkpoint"):
        from_xvlm(state, TEXT.fusion_layer)


def test_a_missing_part_of_clips_projection_is_named() -> None:
    state = published("clip")
    gone = "vision_encoder.encoder.layers.0.self_attn.k_proj.bias"
    del state[gone]
    with pytest.raises(CheckpointError, match=f"'{gone}' is missing"):
        from_xvlm(state, TEXT.fusion_layer)


@pytest.mark.parametrize("wrapped", [True, False])
def test_read(tmp_path: Path, wrapped: bool) -> None:
    state = published("vit")
    content: Any = {"model": state, "config": {"image_res": 224}} if wrapped else state
    torch.save(content, tmp_path / "a.th")
    read = read_xvlm(tmp_path / "a.th")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.write_text, (self.target, "it ran")


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_that_runs_code_is_refused_unrun(tmp_path: Path, legacy: bool) -> None:
    target, path = tmp_path / "ran", tmp_path / "bomb.th"
    torch.save(
        {"model": {"temp": torch.zeros(1)}, "config": Bomb(target)},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(CheckpointError) as caught:
        read_xvlm(path)
    assert not target.exists()
    message = str(caught.value)
    assert message.startswith(f"{path}: not a checkpoint of tensors")
    assert "weights_only" not in message, "no advice to take the protection off"


def test_a_bare_pickle_bomb(tmp_path: Path) -> None:
    target, path = tmp_path / "ran", tmp_path / "bomb.pkl"
    path.write_bytes(pickle.dumps(Bomb(target), protocol=2))
    with pytest.raises(CheckpointError):
        read_xvlm(path)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x80\x04garbage"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.th"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.th: not a checkpoint"):
        read_xvlm(path)
    with pytest.raises(CheckpointError, match=r"absent\.th"):
        read_xvlm(tmp_path / "absent.th")


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"model": [1, 2]}, {"model": {"a": 3}}])
def test_files_without_a_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.th")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_xvlm(tmp_path / "a.th")
