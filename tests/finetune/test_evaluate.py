"""The program `python -m finetune.evaluate`."""

import json
from pathlib import Path

import pytest

from finetune.evaluate import main
from finetune.protocols import CONVENTIONS
from finetune.samples import corpus_expressions
from wholegrain.data.corpus import Corpus
from wholegrain.errors import run_cli


def _in_convention(
    convention: str, box: tuple[float, float, float, float], width: int, height: int
) -> list[float]:
    x, y, w, h = box
    return {
        "xyxy_pixels": [x, y, x + w, y + h],
        "xywh_pixels": [x, y, w, h],
        "cxcywh_unit": [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height],
        "xyxy_unit": [x / width, y / height, (x + w) / width, (y + h) / height],
        "xyxy_1000": [
            1000 * x / width,
            1000 * y / height,
            1000 * (x + w) / width,
            1000 * (y + h) / height,
        ],
    }[convention]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_true_boxes_of_another_system_score_full(
    convention: str, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.jsonl"
    with answers.open("w") as stream:
        for one in corpus_expressions(Corpus.open(corpus_folder)):
            box = _in_convention(convention, one.box, one.width, one.height)
            stream.write(json.dumps({"id": one.id, "box": box}) + "\n")
    given = [str(answers), "--corpus", str(corpus_folder), "--split", "val", "--resamples", "20"]
    assert main([*given, "--boxes", convention, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["merged"]["all"]["acc@0.9"] == 1.0
    assert found["merged"]["all"]["mean_iou"] == pytest.approx(1.0)
    # The wrong convention shows.
    other = "xyxy_unit" if convention != "xyxy_unit" else "xyxy_pixels"
    assert main([*given, "--boxes", other, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["merged"]["all"]["acc@0.9"] < 0.5


def test_questions_answered_and_written_in_our_format(
    corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, answers, ours = (tmp_path / name for name in ("q.jsonl", "a.jsonl", "p.jsonl"))
    assert main(["--corpus", str(corpus_folder), "--write-questions", str(questions)]) == 0
    asked = [json.loads(line) for line in questions.read_text().splitlines()]
    answers.write_text("".join(json.dumps(one | {"box": [0, 0, 1, 1]}) + "\n" for one in asked))
    given = [str(answers), "--corpus", str(corpus_folder), "--boxes", "xyxy_unit", "--json"]
    capsys.readouterr()
    assert main([*given, "--out", str(ours)]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main([str(ours), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert first["any"]["all"]["expressions"] == len(asked)


def test_an_edited_file_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "id": "a/0/0",
        "image": "a",
        "text": "cup",
        "split": "val",
        "width": 10,
        "height": 10,
        "box": [0, 0, 5, 10],
        "iou": 0.9,
        "truth": [0, 0, 10, 10],
    }
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row))
    assert run_cli(main, [str(path)]) == 2
    message = capsys.readouterr().err
    assert "p.jsonl:1: iou is 0.9; its boxes give 0.5" in message
    path.write_text(json.dumps(row | {"iou": 0.5}) + "\n" + json.dumps(row | {"iou": 0.5}))
    assert run_cli(main, [str(path)]) == 2
    assert "1 answered more than once (a/0/0)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "nothing to do"),
        (["--write-questions", "q"], "add --corpus"),
        (["p", "--resamples", "0"], "--resamples is 0"),
        (["absent.jsonl"], "absent.jsonl: cannot be read"),
    ],
)
def test_wrong_use_says_what_to_do(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(main, given) == 2
    assert message in capsys.readouterr().err


def test_unknown_split_lists_the_splits(
    corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p").write_text('{"id": "a", "box": null}')
    assert run_cli(main, [str(tmp_path / "p"), "--corpus", str(corpus_folder), "--split", "x"]) == 2
    message = capsys.readouterr().err
    assert "'x'" in message
    assert "val" in message
