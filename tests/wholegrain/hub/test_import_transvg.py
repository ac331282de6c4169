"""TransVG's and MMCA's files: same boxes, every tensor accounted for, refusals that name it."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.wholegrain.hub.published_transvg import (
    TINY,
    Sizes,
    State,
    Transvg,
    normalised,
    published,
    write,
)
from wholegrain.errors import CheckpointError, ConfigError, ReleaseError
from wholegrain.hub.backbone_files import WeightFile, read_weights
from wholegrain.hub.import_transvg import convert_transvg, from_transvg, import_transvg
from wholegrain.hub.release import load_release
from wholegrain.hub.transvg_config import MMCA, TRANSVG, transvg_config, transvg_layout
from wholegrain.model.adapters.mmca import Mmca
from wholegrain.model.config import DetrVision, MlpBoxHead, MmcaConfig, ModelConfig, TextConfig
from wholegrain.model.fusion_config import RegFusion
from wholegrain.model.grounding.box_head import MlpHead
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.text import Tokenizer

PLAIN = replace(TINY, mmca=False)
BOTH = pytest.mark.parametrize("sizes", [PLAIN, TINY], ids=["transvg", "mmca"])
GENERATOR = torch.Generator().manual_seed(4)
PIXELS = torch.randint(0, 256, (2, 3, 64, 64), generator=GENERATOR).to(torch.uint8)
IDS = torch.randint(1, 57, (3, 6), generator=GENERATOR)
MASK = torch.arange(6) < torch.tensor([5, 2, 4])[:, None]
IMAGE = torch.tensor([1, 0, 1])


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory, letters: Tokenizer) -> Path:
    path = tmp_path_factory.mktemp("vocab") / "tokenizer.json"
    letters.save(path)
    return path


def converted(path: Path) -> MultiGrainModel:
    file = read_weights(path)
    return convert_transvg(file, transvg_config(file, image_size=64, text_heads=3))[0]


@cache
def model_of(sizes: Sizes) -> Transvg:
    return published(sizes)


def expected(theirs: Transvg) -> Tensor:
    with torch.no_grad():
        boxes: Tensor = deepcopy(theirs).double()(normalised(PIXELS)[IMAGE], IDS * MASK, MASK)
    return boxes


def found(model: MultiGrainModel, columns: int = 6) -> Tensor:
    """Our boxes, of texts padded to some length: to that of the table or just as needed."""
    model = model.double().eval()
    exact: list[Tensor] = []  # the boxes themselves are rounded to single precision
    assert isinstance(model.box_head, MlpHead)
    hook = model.box_head.box.register_forward_hook(lambda _, __, logits: exact.append(logits))
    with torch.no_grad(), hook:
        ids, mask = (IDS * MASK)[:, :columns], MASK[:, :columns]
        boxes, _ = model.ground(normalised(PIXELS), ids, mask, IMAGE)
    torch.testing.assert_close(boxes, exact[0].sigmoid().float())
    return exact[0].sigmoid()


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=1e-10)


# --- the same boxes -----------------------------------------------------------------------------


@BOTH
def test_the_same_boxes(tmp_path: Path, sizes: Sizes) -> None:
    theirs = model_of(sizes)
    model = converted(write(tmp_path / "a.pth", theirs.state_dict()))
    boxes = expected(theirs)
    assert (boxes - boxes[:1]).abs().amax(dim=1)[1:].min() > 1e-4, "text and image matter"
    close(found(model), boxes)
    close(found(model, columns=5), boxes)


def test_every_part_of_an_adapter_matters(tmp_path: Path) -> None:
    """A file with one adapter tensor changed is another model, and the parity finds it."""
    theirs = model_of(TINY)
    state = theirs.state_dict()
    parts = [n for n in state if ".layers.1.text_linear_q." in n or ".multimodal_layers.2." in n]
    assert len(parts) == 10 + 12
    boxes = expected(theirs)
    for name in parts:
        changed = {**state, name: state[name].flip(0) + 0.1}
        assert (found(converted(write(tmp_path / "a.pth", changed))) - boxes).abs().max() > 1e-9, (
            name
        )


def test_without_its_adapters_it_is_another_model(tmp_path: Path) -> None:
    theirs = model_of(TINY)
    model = converted(write(tmp_path / "a.pth", theirs.state_dict()))
    adapter = model.adapters["mmca"]
    assert isinstance(adapter, Mmca)
    with adapter.neutral():
        assert (found(model) - expected(theirs)).abs().max() > 1e-4


@BOTH
def test_a_release_of_a_file(tmp_path: Path, vocab: Path, sizes: Sizes) -> None:
    theirs = model_of(sizes)
    path = write(tmp_path / "best.pth", theirs.state_dict())
    report = import_transvg(path, tmp_path / "r", vocab=vocab, image_size=64, text_heads=3)
    model, _, info = load_release(tmp_path / "r")
    close(found(model), expected(theirs))
    assert info.extras["max_tokens"] == 6
    assert info.extras["imported_from"]["layout"] == (MMCA if sizes.mmca else TRANSVG)
    told = str(report)
    assert "FRESH    box_head.quality (17 parameters)" in told
    assert "dropped  textmodel.bert.pooler.dense.weight, textmodel.bert.pooler.dense.bias" in told
    assert (
        sum(report.parameters.values())
        == sum(
            value.numel()
            for name, value in model.state_dict().items()
            if name.startswith(("vision.", "text.", "fusion.", "adapters.", "box_head."))
        )
        - report.fresh["box_head.quality"]
    )
    card = (tmp_path / "r" / "README.md").read_text()
    assert "texts have no [SEP]" in card and "Fusion | reg" in card
    with pytest.raises(ReleaseError, match="the output folder exists"):
        import_transvg(path, tmp_path / "r", vocab=vocab, image_size=64, text_heads=3)


def test_one_file_always_gives_one_model(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", model_of(TINY).state_dict())
    left, right = (converted(path).state_dict() for _ in range(2))
    assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_half_precision_is_cast_and_told(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in model_of(PLAIN).state_dict().items()}
    file = read_weights(write(tmp_path / "a.pth", state))
    model, report = convert_transvg(file, transvg_config(file, image_size=64, text_heads=3))
    assert f"cast     {len(state)} tensors of float16 to float32" in str(report)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())


# --- the published sizes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        (Sizes(), "resnet50"),
        (Sizes(blocks=(3, 4, 23, 3), max_text=40), "resnet101"),
        (Sizes(mmca=False), "resnet50"),
    ],
    ids=["mmca", "mmca_r101", "transvg"],
)
def test_published_sizes(sizes: Sizes, name: str) -> None:
    """Names and shapes of a whole model, without values."""
    with torch.device("meta"):
        state = Transvg(sizes).state_dict()
    file = WeightFile(Path("published.pth"), state)
    config = transvg_config(file)
    mmca = MmcaConfig(blocks=6, stages=3, text_dim=256, convolution="release", form="composed")
    assert config == ModelConfig(
        vision=DetrVision(name=name),
        text=TextConfig(fusion_layer=12),
        fusion=RegFusion(max_text=sizes.max_text),
        box_head=MlpBoxHead(layers=3, width=256),
        adapters=(mmca,) if sizes.mmca else (),
    )
    mapped = from_transvg(file, MMCA if sizes.mmca else TRANSVG, 12)
    with torch.device("meta"):
        model = MultiGrainModel(config)
    prefixes = ("vision.", "text.", "fusion.", "adapters.", "box_head.")
    wanted = {
        key: value.shape for key, value in model.state_dict().items() if key.startswith(prefixes)
    }
    shapes = {key: value.shape for key, value in mapped.tensors.items()}
    fresh = {"box_head.quality.weight", "box_head.quality.bias"}
    assert wanted.keys() - shapes.keys() == fresh
    assert shapes == {key: shape for key, shape in wanted.items() if key not in fresh}
    assert mapped.dropped == [f"textmodel.bert.pooler.dense.{kind}" for kind in ("weight", "bias")]


# --- what does not fit --------------------------------------------------------------------------

LAYER = "visumodel.transformer.encoder.layers.1"
STAGE = "visumodel.backbone.0.multimodal_layers.0"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("reg_token.weight"), "no TransVG .'reg_token.weight'"),
        (lambda s: s.pop("vl_transformer.encoder.layers.1.norm2.bias"), "lacks fusion.layers.1"),
        (lambda s: s.pop("bbox_embed.layers.1.bias"), "lacks box_head.hidden.1.bias"),
        (lambda s: s.pop("visu_proj.bias"), "lacks fusion.image_projection.bias"),
        (lambda s: s.pop(f"{LAYER}.linear1.weight"), "lacks vision.layers.1.up.weight"),
        (
            lambda s: s.pop(f"{LAYER}.text_linear_k.text_linear_b"),
            r"lacks adapters\.mmca\.updates\.vision_block_2_key\.coefficients\.weights\.bias",
        ),
        (
            lambda s: s.pop(f"{STAGE}.visual_conv_static_up.bias"),
            r"lacks adapters\.mmca\.updates\.vision_stage_2\.up\.bias",
        ),
        (
            lambda s: s.pop("textmodel.bert.encoder.layer.2.output.dense.bias"),
            "lacks text.layers.2.feed_forward.down.bias",
        ),
        (
            lambda s: s.pop("textmodel.bert.embeddings.word_embeddings.weight"),
            "lacks tensor 'textmodel.bert.embeddings.word_embeddings.weight'",
        ),
        (
            lambda s: s.update({f"{LAYER}.text_linear_v.text_linear_b": torch.ones(4)}),
            "text_linear_v.text_linear_b' is not part of",
        ),
        (
            lambda s: s.update({f"{STAGE}.scale.weight": torch.ones(4)}),
            "scale.weight' is not part of",
        ),
        (lambda s: s.update({"head.weight": torch.ones(4)}), "'head.weight' is not part of"),
        (
            lambda s: s.update({"vl_transformer.pooler.weight": torch.ones(4)}),
            "pooler.weight' is not part of",
        ),
        (
            lambda s: s.update({"textmodel.bert.encoder.layer.0.adapter.weight": torch.ones(4)}),
            "adapter.weight' is not part of BERT",
        ),
        (
            lambda s: s.update({"visu_proj.weight": torch.ones(16, 15)}),
            r"fusion.image_projection.weight is \(16, 15\) in the file, \(16, 16\) in the model",
        ),
        (lambda s: s["text_proj.bias"].fill_(float("nan")), "NaN or infinity in .*text_projection"),
        (
            lambda s: s.update({"reg_token.weight": torch.ones(16)}),
            r"'reg_token.weight' is \(16,\), expected a matrix",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[State], object], match: str
) -> None:
    state = {name: value.clone() for name, value in model_of(TINY).state_dict().items()}
    change(state)
    with pytest.raises(CheckpointError, match=match):
        converted(write(tmp_path / "a.pth", state))


def test_adapters_that_are_asked_for_and_not_there(tmp_path: Path) -> None:
    with_them, without = (
        read_weights(write(tmp_path / f"{sizes.mmca}.pth", model_of(sizes).state_dict()))
        for sizes in (TINY, PLAIN)
    )
    asking, plain = (
        transvg_config(file, image_size=64, text_heads=3) for file in (with_them, without)
    )
    with pytest.raises(CheckpointError, match="holds TransVG, but the configuration asks for"):
        convert_transvg(without, asking)
    with pytest.raises(CheckpointError, match="MMCA's adapters, but the configuration has no"):
        convert_transvg(with_them, plain)


def test_layouts_are_told_apart() -> None:
    assert transvg_layout(["reg_token.weight"]) is None
    assert transvg_layout(model_of(PLAIN).state_dict()) == TRANSVG
    assert transvg_layout(model_of(TINY).state_dict()) == MMCA


@pytest.mark.parametrize("size", [128, 640])
def test_an_image_size_that_leaves_no_words(tmp_path: Path, size: int) -> None:
    path = write(tmp_path / "a.pth", model_of(PLAIN).state_dict())
    with pytest.raises(ConfigError, match=rf"of its 11 positions .* image size {size}"):
        transvg_config(read_weights(path), image_size=size)


def test_no_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pass --vocab"):
        import_transvg(tmp_path / "none.pth", tmp_path / "r", vocab=None)


def test_the_command(tmp_path: Path, vocab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wholegrain.__main__ import main

    path = write(tmp_path / "a.pth", model_of(TINY).state_dict())
    sizes = ["--image-size", "64", "--text-heads", "3"]
    command = ["import-transvg", str(path), "--out", str(tmp_path / "r"), "--vocab", str(vocab)]
    assert main([*command, *sizes]) == 0
    told = capsys.readouterr().out
    assert f"kind     {MMCA}" in told and "adapters" in told
    assert told.endswith("a release; wholegrain.load reads it\n")
