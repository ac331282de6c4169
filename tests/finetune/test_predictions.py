"""The predictions file: exact and complete."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune.evaluate import evaluate_file
from finetune.predictions import (
    Prediction,
    check_outputs,
    write_lines,
    write_predictions,
    write_questions,
)
from finetune.results import evaluate_predictions
from finetune.samples import corpus_expressions
from wholegrain.data.corpus import Corpus
from wholegrain.errors import ConfigError, DataError


@pytest.fixture
def predictions(corpus: Corpus) -> list[Prediction]:
    """Answers near the truth; the first is missing."""
    rng = np.random.default_rng(0)
    found = []
    for one in corpus_expressions(corpus):
        x, y, w, h = np.array(one.box) * rng.uniform(0.7, 1.3, 4)
        box = (float(x), float(y), float(x + w), float(y + h))
        found.append(Prediction.of(one, box if found else None, float(rng.random())))
    return found


def test_file_gives_identical_figures(predictions: list[Prediction], tmp_path: Path) -> None:
    before = evaluate_predictions(predictions, resamples=200)
    path = before.write(tmp_path / "new" / "predictions.jsonl")
    after = evaluate_file(path, resamples=200)
    assert after.to_dict() == before.to_dict()
    assert after.unusable == 1
    again = after.write(tmp_path / "again.jsonl")
    assert again.read_bytes() == path.read_bytes()


def test_one_line_an_expression(predictions: list[Prediction], tmp_path: Path) -> None:
    path = evaluate_predictions(predictions, resamples=10).write(tmp_path / "p.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in rows] == [one.id for one in predictions]
    (cups,) = [row for row in rows if row["text"] == "two cups"]
    assert cups["truth"] == [0, 0, 30, 10]
    assert cups["truths"] == [[0, 0, 10, 10], [20, 0, 30, 10]]
    assert rows[0]["box"] is None
    assert rows[0]["iou"] == 0.0


def test_interrupted_write_leaves_the_old_file(
    predictions: list[Prediction], tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        write_predictions(path, predictions[:1], [float("nan")], [0.0])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_questions_hold_no_truth(corpus: Corpus, tmp_path: Path) -> None:
    expressions = corpus_expressions(corpus)
    path = write_questions(tmp_path / "q.jsonl", expressions)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in rows] == [one.id for one in expressions]
    assert set(rows[0]) == {"id", "image", "text", "width", "height"}


def test_kinds_and_references_are_written_where_there_are_any(tmp_path: Path) -> None:
    box = (0.0, 0.0, 5.0, 5.0)
    one = Prediction("a", "i", "man", "val", 9, 9, box, (box,), box, kinds=("people",), ref_id=3)
    plain = replace(one, id="b", kinds=(), ref_id=None)
    path = write_predictions(tmp_path / "p.jsonl", [one, plain], [1.0, 1.0], [1.0, 1.0])
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["kinds"] == ["people"]
    assert (first["ref_id"], first["sent_id"]) == (3, None)
    assert not {"kinds", "ref_id", "sent_id", "truths"} & set(second)
    again = evaluate_file(path, resamples=10)
    assert again.predictions == [one, plain]
    assert again.summary(group="kind: people").expressions == 1


def test_outputs_that_can_be_written_leave_nothing_behind(tmp_path: Path) -> None:
    old, new, deep = (tmp_path / name for name in ("old.jsonl", "new.jsonl", "a/b/c.jsonl"))
    old.write_text("old")
    check_outputs(
        {"--a": old, "--b": new, "--c": deep, "--d": None}, {"--in": tmp_path, "--e": None}
    )
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_text() == "old"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", ", a folder; name a file, for instance "),
        ("file/x.jsonl", "which cannot be written (Not a directory); name a file in a folder"),
        ("file/sub/x.jsonl", "which cannot be written (Not a directory)"),
        ("gone/x.jsonl", "which cannot be written (No such file or directory)"),
        ("x" * 300, "which cannot be written (File name too long)"),
        ("x" * 250, "which cannot be written (File name too long)"),
        ("/proc/x.jsonl", "--out is /proc/x.jsonl, which cannot be written ("),
        ("/proc/a/x.jsonl", "--out is /proc/a/x.jsonl, which cannot be written ("),
        ("/dev/null", "--out is /dev/null, no regular file"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused(
    name: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError) as caught:
        check_outputs({"--out": tmp_path / name}, {})
    assert str(caught.value).startswith(f"--out is {tmp_path / name}, ")
    assert message in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_an_output_is_no_input_and_no_other_output(tmp_path: Path) -> None:
    read, linked, new = (tmp_path / name for name in ("read.jsonl", "linked.jsonl", "new.jsonl"))
    read.touch()
    linked.symlink_to(read)
    round_about = tmp_path / "a" / ".." / "new.jsonl"
    for path in (read, linked):
        with pytest.raises(ConfigError, match=r"--out is .*, which is --against too; name another"):
            check_outputs({"--out": path}, {"--against": read})
    with pytest.raises(ConfigError, match=r"--b is .*, which is --a too; name another"):
        check_outputs({"--a": new, "--b": round_about}, {})


def test_a_write_that_fails_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "p.jsonl"
    with pytest.raises(DataError) as caught:
        write_lines(path, [{"id": "a"}])
    assert str(caught.value).startswith(f"{path}: cannot be written (")
    assert "name a file in a folder that you may write to" in str(caught.value)


def test_a_failing_disk_is_not_the_users_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_lines(tmp_path / "p.jsonl", [{"id": "a"}])
    assert list(tmp_path.iterdir()) == []
