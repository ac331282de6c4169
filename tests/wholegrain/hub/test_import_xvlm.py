"""Published files become releases, whole, or are refused with the tensor's name."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import wholegrain
from tests.wholegrain.hub.published_xvlm import (
    CONFIGS,
    HEADS,
    TOLD,
    VISIONS,
    State,
    published,
    write,
)
from wholegrain.errors import CheckpointError, ConfigError, DataError, ReleaseError
from wholegrain.hub.export_xvlm import export_xvlm
from wholegrain.hub.import_xvlm import convert_xvlm, import_xvlm, read_xvlm
from wholegrain.hub.release import load_release
from wholegrain.hub.resize import resize_bias_table, resize_positions
from wholegrain.hub.xvlm_file import XvlmFile, read_xvlm_file
from wholegrain.hub.xvlm_names import from_xvlm
from wholegrain.text import SPECIAL_TOKENS, Tokenizer

LAYOUTS = ("pretrained", *HEADS)
DEFAULT = Path(__file__).parents[4] / "shared" / "fixtures" / "xvlm" / "*"


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory, letters: Tokenizer) -> Path:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(letters.tokens(range(letters.vocab_size))) + "\n")
    return path


def same(left: State, right: State) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert right[name].dtype == value.dtype, name
        assert torch.equal(right[name], value), name  # which compares shapes as well


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", VISIONS)
def test_round_trip(tmp_path: Path, vocab: Path, kind: str, layout: str) -> None:
    source = published(kind, layout)
    path = write(tmp_path / "source.th", source)
    import_xvlm(path, tmp_path / "release", vocab=vocab, **TOLD[kind])
    told = export_xvlm(tmp_path / "release", tmp_path / "back.th")
    same(source, read_xvlm(tmp_path / "back.th"))
    assert told.layout == layout and told.tensors == len(source)
    # What the export stores tells the model without any help.
    import_xvlm(tmp_path / "back.th", tmp_path / "again", vocab=vocab)
    assert load_release(tmp_path / "again")[0].config == CONFIGS[kind]


def fixtures() -> list[Path]:
    found = []
    for pattern in os.environ.get("XVLM_FIXTURES", str(DEFAULT)).split(":"):
        found += sorted(Path("/").glob(str(Path(pattern).absolute()).lstrip("/")))
    return [path for path in found if (path / "checkpoint.th").is_file()]


@pytest.mark.parametrize("folder", fixtures() or [None], ids=lambda p: p.name if p else "none")
def test_round_trip_of_the_reference(tmp_path: Path, folder: Path | None) -> None:
    if folder is None:
        pytest.skip("no reference checkpoint: set XVLM_FIXTURES to folders with checkpoint.th")
    facts = json.loads((folder / "fixture.json").read_text())
    text, vision = facts["text_config"], facts["vision_config"]
    told = {"text_heads": text["num_attention_heads"]}
    if not facts["config"]["use_swin"]:
        told["vision_heads"] = vision.get("num_attention_heads", vision.get("num_heads", 12))
        told["local_layers"] = vision.get("local_attn_depth", 4)
    pieces = [*SPECIAL_TOKENS, *(f"word{n}" for n in range(text["vocab_size"] - 5))]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    source = read_xvlm(folder / "checkpoint.th")
    report = import_xvlm(
        folder / "checkpoint.th", tmp_path / "release", vocab=tmp_path / "vocab.txt", **told
    )
    assert report.parameters.total() == sum(
        value.numel() for value in from_xvlm(source, text["fusion_layer"]).values()
    )
    export_xvlm(tmp_path / "release", tmp_path / "back.th")
    same(source, read_xvlm(tmp_path / "back.th"))


def test_the_report_and_the_card(tmp_path: Path, vocab: Path) -> None:
    path = write(tmp_path / "4m`x`.th", published("swin", "retrieval"))
    report = import_xvlm(path, tmp_path / "r", vocab=vocab, text_heads=3, image_size=96)
    lines = str(report).splitlines()
    assert lines[0] == f"file      {path} (sha256 {report.sha256})"
    assert "Swin of 8 channels" in lines[2] and "window 12, 96 px" in lines[2]
    assert report.tensors == {
        "vision": 61, "text": 37, "cross": 52, "contrastive": 5, "matching": 6
    }  # fmt: skip
    assert report.resized == {
        "relative positions of 13 x 13 offsets to 23 x 23, geometric rule, q 1.240724": 4
    }
    assert report.recomputed == 6 and report.tied == []
    head = 24 * 24 + 24 + 24 + 24 + 57
    assert report.fresh == {"masked language": head, "box": 24 * 48 + 48 * 3 + 48 * 4 + 4}
    assert any(line.startswith("FRESH") and "box head (1,492 parameters)" in line for line in lines)
    card = (tmp_path / "r" / "README.md").read_text()
    assert report.sha256 in card and "`4m_x_.th`" in card and str(tmp_path) not in card
    assert "Its box head was not in the file and holds random values" in card
    assert "--image-size 96" in card
    _, _, info = load_release(tmp_path / "r")
    assert info.extras == {
        "max_tokens": 20,
        "imported_from": {"file": path.name, "sha256": report.sha256, "layout": "retrieval"},
        "leak_audit": "What the original training saw is told where the file was published.",
    }


def test_a_whole_file_reports_nothing_fresh(tmp_path: Path, vocab: Path) -> None:
    path = write(tmp_path / "a.th", published("clip"))
    report = import_xvlm(path, tmp_path / "r", vocab=vocab, **TOLD["clip"])
    assert report.fresh == {} and "FRESH" not in str(report)
    assert report.tied == [f"text_encoder.cls.predictions.decoder.{k}" for k in ("weight", "bias")]
    assert report.recomputed == 2 and report.sha256 in str(report)


def test_the_release_is_used_like_any(tmp_path: Path, vocab: Path) -> None:
    path = write(tmp_path / "a.th", published("swin"))
    import_xvlm(path, tmp_path / "r", vocab=vocab, text_heads=3)
    photo = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8).numpy()
    found = wholegrain.load(tmp_path / "r", device="cpu").ground(photo, ["a dog"])
    assert 0 <= found[0].score <= 1 and found[0].text == "a dog"


def test_fresh_heads_are_the_same_every_time() -> None:
    state = published("vit", "grounding")
    torch.manual_seed(5)
    models = [convert_xvlm(XvlmFile(state, {}), CONFIGS["vit"])[0] for _ in range(2)]
    same(*[model.state_dict() for model in models])
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn), "the caller's random state is left alone"
    assert models[0].match_head[0].weight.std() > 0


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_both_forms_of_vocabulary(
    tmp_path: Path, vocab: Path, letters: Tokenizer, name: str
) -> None:
    words = tmp_path / name
    if name.endswith("json"):
        letters.save(words)
    else:
        words.write_text(vocab.read_text())
    path = write(tmp_path / "a.th", published("vit"))
    import_xvlm(path, tmp_path / "r", vocab=words, **TOLD["vit"])
    assert load_release(tmp_path / "r")[1].encode("red dog") == letters.encode("red dog")


# --- image size ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "side"), [(96, 23), (48, 11), (56, 13)])
def test_a_swin_at_another_size(size: int, side: int) -> None:
    source = published("swin")
    model, report = convert_xvlm(XvlmFile(source, {}), CONFIGS["swin"], image_size=size)
    state, ours = model.state_dict(), from_xvlm(source, 2)
    assert model.config.vision.image_size == size == 8 * model.config.vision.window
    for name, value in ours.items():
        if name.endswith("bias_table"):
            value = resize_bias_table(value, side)
        assert torch.equal(state[name], value), name
    assert sum(report.resized.values()) == (0 if size == 56 else 4)
    assert ("inverse" in str(report)) == (size == 48)
    features = model.encode_images(torch.randn(1, 3, size, size))
    assert features.patches.shape[1] == (size // 8) ** 2 and features.patches.isfinite().all()


@pytest.mark.parametrize("kind", ["vit", "clip"])
@pytest.mark.parametrize("size", [48, 16])
def test_a_vit_at_another_size(kind: str, size: int) -> None:
    source = published(kind)
    model, report = convert_xvlm(XvlmFile(source, {}), CONFIGS[kind], image_size=size)
    state = model.state_dict()
    for name, value in from_xvlm(source, 2).items():
        if name.endswith("pos_embed"):
            value = resize_positions(value, size // 8)
        assert torch.equal(state[name], value), name
    assert "bicubic" in str(report)
    assert model.encode_images(torch.randn(1, 3, size, size)).patches.isfinite().all()


def test_a_resized_model_is_exported_at_its_size(tmp_path: Path, vocab: Path) -> None:
    path = write(tmp_path / "a.th", published("swin"), image_res=56)
    import_xvlm(path, tmp_path / "r", vocab=vocab, text_heads=3, image_size=96)
    export_xvlm(tmp_path / "r", tmp_path / "b.th")
    file = read_xvlm_file(tmp_path / "b.th")
    assert file.config["image_res"] == 96 and file.config["vision_config"]["window_size"] == 12
    block = "vision_encoder.layers.0.blocks.1"
    assert file.state[f"{block}.attn_mask"].shape == (4, 144, 144)
    assert file.state[f"{block}.attn.relative_position_index"].shape == (144, 144)
    import_xvlm(tmp_path / "b.th", tmp_path / "again", vocab=vocab)
    same(
        load_release(tmp_path / "r")[0].state_dict(),
        load_release(tmp_path / "again")[0].state_dict(),
    )


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("swin", 60, "vision.image_size is 60, which is no multiple of final patch 8"),
        ("swin", 176, "side 13 cannot be stretched to 43"),
        ("swin", 4000, "over 8 times the file's 56"),
        ("vit", 4000, "over 8 times the file's 32"),
        ("vit", 33, "vision.image_size is 33, which is no multiple of vision.patch_size 8"),
        ("clip", 3, "vision.image_size is 3, which is no multiple"),
    ],
)
def test_sizes_that_do_not_suit(kind: str, size: int, message: str) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=message):
        convert_xvlm(XvlmFile(published(kind), {}), CONFIGS[kind], image_size=size)


def test_windows_unlike_x_vlms_keep_their_size() -> None:
    """A Swin of windows smaller than its last map has no rule for another size."""
    config = CONFIGS["swin"]
    odd = replace(config, vision=replace(config.vision, image_size=112))
    state = {k: v for k, v in published("swin").items() if not k.endswith("attn_mask")}
    convert_xvlm(XvlmFile(state, {}), odd, image_size=112)
    with pytest.raises(ConfigError, match="import it at its own size"):
        convert_xvlm(XvlmFile(state, {}), odd, image_size=56)


# --- what is refused ----------------------------------------------------------------------------

WORDS = "text_encoder.bert.embeddings.word_embeddings.weight"
BLOCK = "vision_encoder.layers.0.blocks.1"
Change = Callable[[State], Any]


def put(name: str, value: Any) -> Change:
    return lambda state: state.update({name: value(state.get(name)) if callable(value) else value})


def drop(*starts: str) -> Change:
    return lambda state: [state.pop(name) for name in list(state) if name.startswith(starts)]


def spoil(name: str, number: float) -> Change:
    def change(state: State) -> None:
        state[name] = state[name].clone()
        state[name].view(-1)[0] = number

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("itm_head.1.bias"), "tensor 'itm_head.1.bias' is missing, expected in a pretrained"),
        (drop("bbox_head."), r"tensors 'bbox_head.0.weight', .* and 2 more are missing"),
        (drop("temp"), "tensor 'temp' is missing"),
        (drop(WORDS), f"tensor '{WORDS}' is missing, without which"),
        (drop("text_encoder."), "this is no checkpoint of X-VLM"),
        (drop("vision_encoder."), "this is no checkpoint of X-VLM"),
        (drop("vision_encoder.layers."), "relative_position_bias_table' is missing"),
        (drop(f"{BLOCK}.mlp.fc1"), f"tensors '{BLOCK}.mlp.fc1.weight', .* are missing"),
        (
            lambda state: [state.pop(name) for name in list(state) if "crossattention" in name],
            "this is a BERT alone",
        ),
        (put("queue", torch.zeros(3)), "tensor 'queue' is not part of a pretrained file"),
        (put("vision_encoder.head.weight", torch.zeros(3)), "'vision_encoder.head.weight' is not"),
        (put(f"{BLOCK}.attn.relative_position_bias_table", torch.zeros(168, 1)), "expected float"),
        (
            put(
                "vision_encoder.layers.0.blocks.0.attn.relative_position_bias_table",
                torch.zeros(168, 1),
            ),
            "168 rows, expected the square of an odd number",
        ),
        (
            put("itm_head.3.weight", torch.zeros(3, 48)),
            r"'itm_head.3.weight' is float32 \(3, 48\), expected float32 \(2, 48\)",
        ),
        (
            put("temp", torch.ones(1)),
            r"'temp' is float32 \(1,\), expected float32 \(\) .*fetch the file again",
        ),
        (put("text_proj.bias", lambda t: t.half()), "is float16 .8,., expected float32"),
        (put("text_proj.bias", lambda t: t.double()), "is float64 .8,., expected float32"),
        (put("text_proj.bias", torch.zeros(8).long()), "is int64 .8,., expected float32"),
        (put(WORDS, torch.zeros(57)), r"is of shape \(57,\), expected 2 axes"),
        (put(WORDS, torch.zeros(0, 24)), r"is of shape \(0, 24\), expected 2 axes"),
        (spoil("text_proj.bias", float("nan")), "holds NaN or infinity at 1 of 8 places"),
        (spoil(f"{BLOCK}.norm1.weight", float("inf")), "holds NaN or infinity at 1 of 8 places"),
        (spoil(f"{BLOCK}.attn.relative_position_index", 3), "is another table than follows"),
        (spoil(f"{BLOCK}.attn_mask", -1), "is another table than follows"),
        (
            put(f"{BLOCK}.attn_mask", torch.zeros(9, 49, 49)),
            "is of 84 px .windows of 7., but image_res of the stored configuration is 56",
        ),
        (
            put(
                "text_encoder.cls.predictions.decoder.weight",
                lambda weight: weight + 1,
            ),
            f"decoder.weight' differs from '{WORDS}', expected the same values",
        ),
        (put("text_decoder.bert.x", torch.zeros(1)), "a VQA or captioning file"),
        (put("cls_head.0.weight", torch.zeros(1)), "an NLVR file"),
        (put("text_encoder.roberta.x", torch.zeros(1)), "a RoBERTa file"),
        (put("vision_encoder_m.x", torch.zeros(1)), "an ALBEF file"),
        (put("text_encoder.encoder.layer.0.x", torch.zeros(1)), "two layouts in one file"),
        (
            put("text_encoder.bert.encoder.layer.1000000.output.dense.bias", torch.zeros(24)),
            "layer.1000000.output.dense.bias' is not part",
        ),
    ],
)
def test_gaps_and_strangers(tmp_path: Path, vocab: Path, change: Change, message: str) -> None:
    state = published("swin")
    change(state)
    path = write(tmp_path / "a.th", state, image_res=56)
    with pytest.raises(CheckpointError, match=message) as caught:
        import_xvlm(path, tmp_path / "r", vocab=vocab, text_heads=3)
    assert str(caught.value).startswith(f"{path}: ")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("retrieval", drop("itm_head."), "with the heads contrastive, which is no kind"),
        ("retrieval", drop("temp"), "tensor 'temp' is missing, expected in a retrieval file"),
        ("retrieval", put("bbox_head.0.bias", torch.zeros(1)), "is no kind that is known"),
        ("grounding", put("temp", torch.ones(())), "is no kind that is known"),
        ("grounding", drop("bbox_head."), r"with the heads \(none\)"),
        ("grounding", drop("bbox_head.3"), "are missing, expected in a grounding file"),
        ("grounding", put("text_encoder.pooler.dense.bias", torch.zeros(24)), "is not part of"),
    ],
)
def test_finetuned_files_have_their_own_heads(
    tmp_path: Path, vocab: Path, layout: str, change: Change, message: str
) -> None:
    state = published("vit", layout)
    change(state)
    with pytest.raises(CheckpointError, match=message):
        import_xvlm(write(tmp_path / "a.th", state), tmp_path / "r", vocab=vocab, **TOLD["vit"])


@pytest.mark.parametrize("kind", VISIONS)
def test_index_tables_may_be_absent(tmp_path: Path, vocab: Path, kind: str) -> None:
    """Newer libraries do not store them; the export does again."""
    source = published(kind)
    ends = ("relative_position_index", "attn_mask", "position_ids")
    bare = {name: value for name, value in source.items() if not name.endswith(ends)}
    told = import_xvlm(write(tmp_path / "a.th", bare), tmp_path / "r", vocab=vocab, **TOLD[kind])
    assert told.recomputed == 0
    export_xvlm(tmp_path / "r", tmp_path / "b.th")
    same(source, read_xvlm(tmp_path / "b.th"))


def test_bare_and_data_parallel_files(tmp_path: Path, vocab: Path) -> None:
    state = published("vit", "retrieval")
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "a.th")
    import_xvlm(tmp_path / "a.th", tmp_path / "r", vocab=vocab, **TOLD["vit"])
    export_xvlm(tmp_path / "r", tmp_path / "b.th")
    same(state, read_xvlm(tmp_path / "b.th"))


def test_the_vocabulary_must_be_the_files(tmp_path: Path, vocab: Path) -> None:
    path = write(tmp_path / "a.th", published("vit"))
    with pytest.raises(ConfigError, match=r"pass --vocab with the vocab\.txt of bert-base-uncased"):
        import_xvlm(path, tmp_path / "r", vocab=None)
    short = tmp_path / "vocab.txt"
    short.write_text("\n".join(vocab.read_text().split()[:-1]))
    with pytest.raises(CheckpointError, match=r"has 57 rows, but the vocabulary .* has 56 pieces"):
        import_xvlm(path, tmp_path / "r", vocab=short, **TOLD["vit"])
    with pytest.raises(DataError, match="cannot be read"):
        import_xvlm(path, tmp_path / "r", vocab=tmp_path / "none.txt")


def test_a_release_is_kept_unless_asked(tmp_path: Path, vocab: Path) -> None:
    path = write(tmp_path / "a.th", published("vit"))
    (tmp_path / "r").mkdir()
    with pytest.raises(ReleaseError, match="the output folder exists"):
        import_xvlm(path, tmp_path / "r", vocab=vocab, **TOLD["vit"])
    import_xvlm(path, tmp_path / "r", vocab=vocab, overwrite=True, **TOLD["vit"])
    import_xvlm(path, tmp_path / "r", vocab=vocab, overwrite=True, **TOLD["vit"])
