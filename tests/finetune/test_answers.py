"""Files of predictions: picky about what they are given, and never held as a whole."""

import json
import tracemalloc
from pathlib import Path

import pytest

from finetune.answers import match_answers, read_lines, read_predictions
from finetune.samples import corpus_expressions
from wholegrain.data.corpus import Corpus
from wholegrain.errors import DataError, RecordError

COMPLETE = {
    "id": "a/0/0",
    "image": "a",
    "text": "cup",
    "split": "val",
    "width": 10,
    "height": 10,
    "box": [0, 0, 5, 10],
    "truth": [0, 0, 10, 10],
}


def _write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def test_missing_repeated_and_unknown_ids_are_named(corpus: Corpus, tmp_path: Path) -> None:
    expressions = corpus_expressions(corpus)
    lines = [{"id": one.id, "box": [0, 0, 1, 1]} for one in expressions]
    path = _write(tmp_path / "p.jsonl", *lines[2:], lines[3], {"id": "elsewhere", "box": None})
    with pytest.raises(DataError) as caught:
        match_answers(path, expressions)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert f"2 missing ({expressions[0].id}, {expressions[1].id})" in message
    again = len(lines) - 1
    assert f"1 answered more than once ({expressions[3].id} in lines 2 and {again})" in message
    assert f"1 unknown (elsewhere in line {again + 1})" in message


def test_order_of_the_lines_does_not_matter(corpus: Corpus, tmp_path: Path) -> None:
    expressions = corpus_expressions(corpus)
    lines = [{"id": one.id, "box": [i, 0, i + 1, 1]} for i, one in enumerate(expressions)]
    path = _write(tmp_path / "p", *lines[::-1])
    matched = match_answers(path, expressions)
    assert [one.box for one in matched.predictions] == [
        (i, 0, i + 1, 1) for i in range(len(expressions))
    ]
    assert matched.where(0) == f"{path}:{len(expressions)}"


def test_text_of_another_corpus_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    expressions = corpus_expressions(corpus)
    lines = [{"id": one.id, "box": None, "text": "other"} for one in expressions]
    with pytest.raises(RecordError, match=r":1: text is 'other'; the corpus says 'thing 0"):
        match_answers(_write(tmp_path / "p", *lines), expressions)


def test_fields_of_others_are_left_alone(corpus: Corpus, tmp_path: Path) -> None:
    """Another system may have an `iou` or `truth` of its own; only what is read is judged."""
    expressions = corpus_expressions(corpus)
    own = {"iou": "high", "truth": "left", "kinds": 7, "raw": {"box": []}}
    lines = [{"id": one.id, "box": None, **own} for one in expressions]
    assert not match_answers(_write(tmp_path / "p", *lines), expressions).stored


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "must be a JSON object"),
        ("{", "not readable as JSON"),
        ("\x00", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ('{"box": null}', "id is None; the field is missing"),
        ('{"id": "a"}', "box is None; the field is missing"),
        ('{"id": 7, "box": null}', "id is 7; must be a text"),
        ('{"id": "a", "box": [0, 0, 1]}', "list of four numbers"),
        ('{"id": "a", "box": [0, 0, 1, NaN]}', "NaN is not a number"),
        ('{"id": "a", "box": [0, 0, 1, -Infinity]}', "-Infinity is not a number"),
        ('{"id": "a", "box": [0, 0, 1, 1e999]}', "must be finite"),
        ('{"id": "a", "box": [0, 0, 1, 1' + "0" * 400 + "]}", "must be finite"),
        ('{"id": "a", "box": [0, 0, 1, "2"]}', "must be a number"),
        ('{"id": "a", "box": [0, 0, 1, true]}', "must be a number"),
        ('{"id": "a", "box": null, "score": "high"}', "score is 'high'; must be a number"),
        (
            '{"id": "a", "box": null, "resized": [0, 3]}',
            "resized is [0, 3]; must be [width, height",
        ),
        ('{"id": "a", "box": null, "resized": 640}', "resized is 640; must be [width, height]"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path, corpus: Corpus) -> None:
    expressions = corpus_expressions(corpus)
    line = line.replace('"a"', json.dumps(expressions[0].id))
    path = _write(tmp_path / "p.jsonl", {"id": expressions[1].id, "box": None}, line)
    with pytest.raises(DataError, match=r"p\.jsonl:2: ") as caught:
        match_answers(path, expressions)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truth": None}, "truth is None; must be a list of four numbers"),
        ({"truth": [5, 5, 5, 9]}, "truth is [5.0, 5.0, 5.0, 9.0]; must be left, top, right"),
        ({"truths": [[0, 0, 1, 1], [3, 3, 2, 4]]}, "truths[1] is [3.0, 3.0, 2.0, 4.0]; must be"),
        ({"width": 0}, "width is 0; must be between 1"),
        ({"height": 2.5}, "height is 2.5; must be an integer"),
        ({"kinds": ["folk"]}, "kinds is 'folk'; use some of people, clothing"),
        ({"ref_id": -1}, "ref_id is -1; must be between 0"),
        ({"iou": "0.5"}, "iou is '0.5'; must be a number"),
    ],
)
def test_a_bad_truth_is_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "p.jsonl", COMPLETE | change)
    with pytest.raises(RecordError) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path}:1: {message}")


def test_a_line_without_truth_needs_a_corpus(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.jsonl", {"id": "a", "box": None})
    with pytest.raises(RecordError, match="truth is None; the field is missing"):
        read_predictions(path)


def test_repetitions_in_a_file_of_ours(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.jsonl", COMPLETE, COMPLETE | {"id": "b"}, COMPLETE)
    with pytest.raises(DataError, match=r"\(a/0/0 in lines 1 and 3\); remove the repetitions"):
        read_predictions(path)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        list(read_lines(tmp_path / "absent.jsonl"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_lines(tmp_path))
    with pytest.raises(DataError, match="no prediction in it"):
        list(read_lines(_write(tmp_path / "empty.jsonl", "", "  ")))


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    """64 MB without a line break, as an archive that was taken for predictions."""
    path = tmp_path / "p.jsonl"
    with path.open("wb") as stream:
        stream.truncate(64 << 20)
        stream.write(b"x")
    tracemalloc.start()
    with pytest.raises(DataError, match=r"p\.jsonl:1: size in bytes is 4194305"):
        list(read_lines(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_what_is_not_evaluated_is_not_kept(corpus: Corpus, tmp_path: Path) -> None:
    """Lines of others carry whole conversations; these 20 MB of them leave next to nothing."""
    expressions = corpus_expressions(corpus)
    path = tmp_path / "p.jsonl"
    with path.open("w") as stream:
        for one in expressions:
            stream.write(json.dumps({"id": one.id, "box": None, "talk": "x" * 1_000_000}) + "\n")
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    kept = match_answers(path, expressions)
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept.predictions) == len(expressions)
    assert now < 200_000
    assert peak < 10_000_000
