"""``import-xvlm`` and ``export-xvlm`` as a user types them: what they print and refuse."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.wholegrain.hub.published_xvlm import published, write
from wholegrain.__main__ import main
from wholegrain.errors import run_cli
from wholegrain.hub.card import Card
from wholegrain.hub.release import load_release, save_release
from wholegrain.hub.xvlm_file import read_xvlm
from wholegrain.model.config import ModelConfig, TimmVision
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.text import Tokenizer

VIT = ["--text-heads", "3", "--vision-heads", "3", "--local-layers", "1"]
Output = pytest.CaptureFixture[str]


@pytest.fixture
def vocab(tmp_path: Path, letters: Tokenizer) -> list[str]:
    letters.save(tmp_path / "tokenizer.json")
    return ["--vocab", str(tmp_path / "tokenizer.json")]


def test_import_and_export(tmp_path: Path, vocab: list[str], capsys: Output) -> None:
    source, release, back = tmp_path / "a.th", tmp_path / "r", tmp_path / "b.th"
    state = published("vit", "retrieval")
    write(source, state)
    assert main(["import-xvlm", str(source), "--out", str(release), *vocab, *VIT]) == 0
    told = capsys.readouterr().out
    assert "kind      retrieval" in told and "FRESH" in told
    assert told.endswith(f"{release}: a release; wholegrain.load reads it\n")
    assert main(["info", str(release)]) == 0
    assert "layout': 'retrieval'" in capsys.readouterr().out
    assert main(["export-xvlm", str(release), "--out", str(back)]) == 0
    assert capsys.readouterr().out.startswith(f"{back}: retrieval layout, {len(state)} tensors")
    found = read_xvlm(back)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    whole = ["export-xvlm", str(release), "--out", str(back), "--layout", "pretrained"]
    assert run_cli(main, whole) == 2
    assert main([*whole, "--overwrite"]) == 0
    assert "pretrained layout, " in capsys.readouterr().out


def test_another_image_size(tmp_path: Path, vocab: list[str], capsys: Output) -> None:
    write(tmp_path / "a.th", published("swin"))
    command = ["import-xvlm", str(tmp_path / "a.th"), "--out", str(tmp_path / "r"), *vocab]
    assert main([*command, "--text-heads", "3", "--image-size", "96"]) == 0
    assert "resized     4 x relative positions of 13 x 13" in capsys.readouterr().out
    assert load_release(tmp_path / "r")[0].config.vision.image_size == 96


def html(path: Path) -> None:
    path.write_text("<html><body>quota exceeded</body></html>")


def captioning(path: Path) -> None:
    write(path, {"text_decoder.bert.embeddings.position_ids": torch.arange(3)[None]})


def half(path: Path) -> None:
    write(path, {name: value.half() for name, value in published("vit").items()})


def sound(path: Path) -> None:
    write(path, published("vit"))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda path: None, [], "No such file"),
        (html, [], "it is a web page"),
        (captioning, [], "belongs to a VQA or captioning file"),
        (half, VIT, "is float16"),
        (sound, [], "give vision_heads (--vision-heads)"),
        (sound, ["--text-heads", "7", *VIT[2:]], "text.heads 7"),
        (sound, [*VIT[:5], "3"], "vision.local_layers is 3, more than the 2 blocks"),
        (sound, [*VIT[:5], "-1"], "'vision.local_layers' is -1"),
        (sound, [*VIT, "--image-size", "33"], "vision.image_size is 33"),
        (sound, [*VIT, "--vocab", "nowhere.txt"], "nowhere.txt: cannot be read"),
    ],
)
def test_imports_that_fail_say_why_in_one_line(
    tmp_path: Path,
    vocab: list[str],
    capsys: Output,
    make: Callable[[Path], None],
    options: list[str],
    message: str,
) -> None:
    make(tmp_path / "a.th")
    command = ["import-xvlm", str(tmp_path / "a.th"), "--out", str(tmp_path / "r"), *vocab]
    assert run_cli(main, [*command, *options]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and message in shown and shown.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "a.th") == [
        "tokenizer.json"
    ]


def test_no_vocabulary(tmp_path: Path, capsys: Output) -> None:
    sound(tmp_path / "a.th")
    command = ["import-xvlm", str(tmp_path / "a.th"), "--out", str(tmp_path / "r")]
    assert run_cli(main, command) == 2
    assert "pass --vocab with the vocab.txt of bert-base-uncased" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["import-xvlm", "a.th"],
        ["import-xvlm", "a.th", "--out", "r", "--image-size", "0"],
        ["import-xvlm", "a.th", "--out", "r", "--text-heads", "many"],
        ["export-xvlm", "r"],
        ["export-xvlm", "r", "--out", "a.th", "--layout", "vqa"],
    ],
)
def test_usage(arguments: list[str], capsys: Output) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m wholegrain" in capsys.readouterr().err


def test_exports_that_fail_say_why_in_one_line(
    tmp_path: Path,
    letters: Tokenizer,
    small_config: Callable[..., ModelConfig],
    capsys: Output,
) -> None:
    vision = TimmVision(image_size=64, options={"channels": [8, 8, 8, 8]})
    model = MultiGrainModel(replace(small_config(), vision=vision))
    save_release(tmp_path / "r", model, letters, card=Card("T"))
    for release, message in (
        (tmp_path / "none", "no such release folder"),
        (tmp_path / "r", "X-VLM's are Swin, ViT and CLIP-ViT"),
    ):
        assert run_cli(main, ["export-xvlm", str(release), "--out", str(tmp_path / "a.th")]) == 2
        shown = capsys.readouterr().err
        assert message in shown and shown.count("\n") == 1
    assert not (tmp_path / "a.th").exists()
