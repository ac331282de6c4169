"""``python -m wholegrain``: what it prints, draws and refuses."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wholegrain.__main__ import main
from wholegrain.errors import run_cli
from wholegrain.hub.additions import save_additions
from wholegrain.hub.card import Card
from wholegrain.hub.release import load_release, save_release
from wholegrain.model.config import MlpBoxHead, ModelConfig
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.predict import Grounder
from wholegrain.text import Tokenizer


@pytest.fixture(scope="module")
def release(
    tmp_path_factory: pytest.TempPathFactory,
    letters: Tokenizer,
    small_config: Callable[..., ModelConfig],
) -> str:
    folder = tmp_path_factory.mktemp("main") / "release"
    model = MultiGrainModel(small_config())
    return str(save_release(folder, model, letters, card=Card("T"), extras={"stage": "x"}))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    return str(tmp_path / "photo.jpg")


def test_ground_prints_json_and_draws(
    release: str, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "picture.png"
    command = ["ground", photo, "the dog", "left <b>", "--model", release, "--out", str(out)]
    assert main([*command, "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["text"] for one in found] == ["the dog", "left <b>"]
    left, top, right, bottom = found[0]["box"]
    assert 0 <= left < right <= 90 and 0 <= top < bottom <= 60
    drawn = Image.open(out)
    assert drawn.size[0] / drawn.size[1] == pytest.approx(90 / 60, rel=0.01)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.jpg", "picture.png"]


def test_ground_prints_a_line_an_expression(
    release: str, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ground", photo, "the dog", "cat", "--model", release, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].endswith("  the dog")


def test_ground_takes_what_finetuning_added(
    release: str, photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer, _ = load_release(release)
    model.new_box_head(MlpBoxHead(layers=2))
    torch.manual_seed(0)
    for parameter in model.box_head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    additions = save_additions(tmp_path / "additions", model, release)
    command = ["ground", photo, "the dog", "--model", release, "--device", "cpu", "--json"]

    def box(*more: str) -> list[float]:
        assert main([*command, *more]) == 0
        return json.loads(capsys.readouterr().out)[0]["box"]

    (expected,) = Grounder(model, tokenizer, device="cpu").ground(photo, ["the dog"])
    assert box("--additions", str(additions)) == pytest.approx(expected.box, abs=0.01)
    assert box() != pytest.approx(expected.box, abs=1)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("photo.jpg", "is a folder, or the photo itself"),
        ("a.txt", "a picture ends in .jpg"),
        ("none/a.png", "make it first"),
        ("", "is a folder"),
        ("folder.jpg", "is a folder"),
        ("photo.jpg/a.png", "cannot be written (Not a directory)"),
        ("/proc/x.jpg", "cannot be written ("),
        ("x" * 250 + ".jpg", "cannot be written (File name too long)"),
    ],
)
def test_a_bad_out_is_refused_before_any_work(
    photo: str, tmp_path: Path, out: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(photo).read_bytes()
    (tmp_path / "folder.jpg").mkdir()
    # The release does not exist: had any work begun, that would be the error.
    command = ["ground", photo, "dog", "--model", "nowhere", "--out", str(tmp_path / out)]
    assert run_cli(main, command) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: --out {tmp_path / out}: ") and message in shown
    assert Path(photo).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.jpg", "photo.jpg"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (ValueError("too wide for WebP"), "too wide for WebP"),
    ],
)
def test_a_picture_that_cannot_be_saved_is_one_line(
    release: str,
    photo: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    message: str,
) -> None:
    def save(self: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(Image.Image, "save", save)
    out = tmp_path / "picture.png"
    out.write_bytes(b"an earlier one")
    command = ["ground", photo, "dog", "--model", release, "--device", "cpu", "--out", str(out)]
    assert run_cli(main, command) == 2
    shown = capsys.readouterr()
    assert "  dog" in shown.out
    assert shown.err == f"error: --out {out}: cannot be written ({message}); choose another place\n"
    assert out.read_bytes() == b"an earlier one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.jpg", "picture.png"]


def test_a_path_that_is_no_utf8_is_told(
    release: str, tmp_path: Path, launch: Callable[..., str]
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shown = f"{tmp_path}/caf\\udce9"
    printed = launch("-m", "wholegrain", "info", folder, status=2)
    assert printed == f"error: {shown}: no such release folder; check the path\n"
    folder.symlink_to(release)  # which safetensors cannot read there
    refused = launch("-m", "wholegrain", "info", folder, status=2)
    assert refused.startswith(f"error: {shown}/model.safetensors: cannot be read as safetensors")
    assert refused.count("\n") == 1
    missing = launch("-m", "finetune.evaluate", f"{folder}.jsonl", status=2)
    assert missing.startswith(f"error: {shown}.jsonl: cannot be read") and missing.count("\n") == 1


def test_errors_are_one_line(release: str, photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(main, ["ground", photo, "", "--model", release]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: texts[0]") and shown.count("\n") == 1


def test_info_verifies_and_tells(release: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", release]) == 0
    told = capsys.readouterr().out
    assert "4 files verified" in told and "stage: x" in told and "image_size: 32" in told
    assert main(["info", release, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["extras"] == {"stage": "x"} and facts["model"]["embed_dim"] == 8
    assert set(facts["sha256"]) == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json"
    }  # fmt: skip
