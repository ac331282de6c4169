"""The predictions file: exact, complete, and picky about what it is given."""

import json
from pathlib import Path

import numpy as np
import pytest

from finetune.evaluate import evaluate_file
from finetune.predictions import (
    Prediction,
    complete_prediction,
    match_answers,
    read_answers,
    write_predictions,
    write_questions,
)
from finetune.results import evaluate_predictions
from finetune.samples import corpus_expressions
from wholegrain.data.corpus import Corpus
from wholegrain.errors import DataError, RecordError


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


def _write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


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
    path = _write(tmp_path / "p.jsonl", "old")
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


def test_missing_repeated_and_unknown_ids_are_named(corpus: Corpus, tmp_path: Path) -> None:
    expressions = corpus_expressions(corpus)
    lines = [{"id": one.id, "box": [0, 0, 1, 1]} for one in expressions]
    path = _write(tmp_path / "p.jsonl", *lines[2:], lines[3], {"id": "elsewhere", "box": None})
    with pytest.raises(DataError) as caught:
        match_answers(read_answers(path), expressions)
    message = str(caught.value)
    assert f"2 missing ({expressions[0].id}, {expressions[1].id})" in message
    assert f"1 answered more than once ({expressions[3].id})" in message
    assert "1 unknown (elsewhere)" in message


def test_order_of_the_lines_does_not_matter(corpus: Corpus, tmp_path: Path) -> None:
    expressions = corpus_expressions(corpus)
    lines = [{"id": one.id, "box": [i, 0, i + 1, 1]} for i, one in enumerate(expressions)]
    matched = match_answers(read_answers(_write(tmp_path / "p", *lines[::-1])), expressions)
    assert [one.box for one in matched] == [(i, 0, i + 1, 1) for i in range(len(expressions))]


def test_text_of_another_corpus_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    expressions = corpus_expressions(corpus)
    lines = [{"id": one.id, "box": None, "text": "other"} for one in expressions]
    with pytest.raises(RecordError, match=r":1: text is 'other'; the corpus says 'thing 0"):
        match_answers(read_answers(_write(tmp_path / "p", *lines)), expressions)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "must be a JSON object"),
        ("{", "not readable as JSON"),
        ('{"id": "a"}', "box is None; the field is missing"),
        ('{"box": null}', "id is None; the field is missing"),
        ('{"id": "a", "box": [0, 0, 1]}', "list of four numbers"),
        ('{"id": "a", "box": [0, 0, 1, NaN]}', "NaN is not a number"),
        ('{"id": "a", "box": [0, 0, 1, 1e999]}', "must be finite"),
        ('{"id": "a", "box": [0, 0, 1, "2"]}', "must be a number"),
        ('{"id": "a", "box": [0, 0, 1, true]}', "must be a number"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "p.jsonl", {"id": "b", "box": None}, line)
    with pytest.raises(DataError, match=r"p\.jsonl:2: ") as caught:
        read_answers(path)
    assert message in str(caught.value)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_answers(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="no prediction in it"):
        read_answers(_write(tmp_path / "empty.jsonl", ""))


def test_a_line_without_truth_needs_a_corpus(tmp_path: Path) -> None:
    (answer,) = read_answers(_write(tmp_path / "p.jsonl", {"id": "a", "box": None}))
    with pytest.raises(RecordError, match="truth is None; the field is missing"):
        complete_prediction(answer)


def test_a_score_is_a_number(corpus: Corpus, tmp_path: Path) -> None:
    expressions = corpus_expressions(corpus)
    lines = [{"id": one.id, "box": None, "score": "high"} for one in expressions]
    answers = read_answers(_write(tmp_path / "p.jsonl", *lines))
    with pytest.raises(RecordError, match=r":1: score is 'high'; must be a number"):
        match_answers(answers, expressions)
