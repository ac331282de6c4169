"""Files with any number of boxes a line: one box, many, none; and what is wrong with others."""

import json
from pathlib import Path

import pytest

from finetune.grec_answers import SetPrediction, read_set_predictions, write_set_predictions
from finetune.grec_samples import SetExpression, set_expressions
from finetune.reading import Reading
from wholegrain.data.corpus import Corpus
from wholegrain.errors import DataError, RecordError

CUP = SetExpression("a/0/0", "a", "cups", "val", 200, 100, ((0.0, 0.0, 50.0, 50.0),))
BUS = SetExpression("a/absent0/0", "a", "a bus", "val", 200, 100, (), 7, 8)


def _write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def _read(path: Path, convention: str = "xyxy_pixels") -> list[SetPrediction]:
    return read_set_predictions(path, [CUP, BUS], Reading(convention))


def test_any_number_of_boxes_in_any_order(tmp_path: Path) -> None:
    lines = (
        {"id": BUS.id, "boxes": []},
        {"id": CUP.id, "boxes": [[0, 0, 0.5, 1], [0.5, 0, 1, 1]], "scores": [0.9, 0.2]},
    )
    cup, bus = _read(_write(tmp_path / "p.jsonl", *lines), "xyxy_unit")
    assert cup == SetPrediction(CUP, ((0, 0, 100, 100), (100, 0, 200, 100)), (0.9, 0.2))
    assert cup.kept(0.7) == ((0, 0, 100, 100),)
    assert cup.kept(0.9) == ((0, 0, 100, 100),)  # as much as is asked for is enough
    assert cup.kept(0.91) == ()
    assert bus == SetPrediction(BUS, ())


def test_one_box_as_in_plain_grounding(tmp_path: Path) -> None:
    lines = (
        {"id": CUP.id, "box": [0, 0, 9, 9], "score": 0.3},
        {"id": BUS.id, "box": None},
    )
    cup, bus = _read(_write(tmp_path / "p.jsonl", *lines))
    assert (cup.boxes, cup.scores) == (((0, 0, 9, 9),), (0.3,))
    assert cup.kept(0.7) == ()
    assert bus.boxes == ()
    unscored = SetPrediction(CUP, ((0, 0, 9, 9),))
    assert unscored.kept(0.7) == ((0, 0, 9, 9),)


def test_written_and_read_again(tmp_path: Path) -> None:
    given = [
        SetPrediction(CUP, ((0.1, 0.2, 1 / 3, 9.0), (1.0, 2.0, 3.0, 4.0)), (0.75, 0.5)),
        SetPrediction(BUS, ()),
    ]
    path = write_set_predictions(tmp_path / "p.jsonl", given)
    assert read_set_predictions(path, None, Reading()) == given
    row = json.loads(path.read_text().splitlines()[1])
    assert (row["truths"], row["boxes"], row["ref_id"], row["sent_id"]) == ([], [], 7, 8)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({}, "boxes is None; the field is missing"),
        ({"boxes": None}, "boxes is None; must be a list"),
        ({"boxes": [0, 0, 1, 1]}, "boxes[0] is 0; must be a list of four numbers"),
        ({"boxes": [[0, 0, 1, 1], [0, 0, 1]]}, "boxes[1] is [0, 0, 1]; must be a list of four"),
        ({"boxes": [[0, 0, 1, 1]], "scores": []}, "scores is []; give one for each of 1 boxes"),
        ({"boxes": [[0, 0, 1, 1]], "scores": ["x"]}, "scores[0] is 'x'; must be a number"),
        ({"boxes": [[0, 0, 1, 1]], "scores": 0.5}, "scores is 0.5; must be a list"),
        ({"boxes": [], "text": "a cup"}, "text is 'a cup'; the corpus says 'a bus'"),
        ({"boxes": [[0, 0, 1, 1], [0, 0, 900, 9]]}, "box is [0.0, 0.0, 900.0, 9.0]; as xyxy_pix"),
    ],
)
def test_a_bad_line_is_named(line: dict[str, object], message: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "p.jsonl", {"id": CUP.id, "boxes": []}, {"id": BUS.id, **line})
    with pytest.raises(RecordError) as caught:
        _read(path)
    assert str(caught.value).startswith(f"{path}:2: {message}")


def test_every_expression_once(tmp_path: Path) -> None:
    lines = [{"id": CUP.id, "boxes": []}, {"id": CUP.id, "boxes": []}, {"id": "x", "boxes": []}]
    with pytest.raises(DataError) as caught:
        _read(_write(tmp_path / "p.jsonl", *lines))
    for part in ("1 missing (a/absent0/0)", "(a/0/0 in lines 1 and 2)", "(x in line 3)"):
        assert part in str(caught.value)


def test_a_line_without_truth_needs_a_corpus(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.jsonl", {"id": CUP.id, "boxes": []})
    with pytest.raises(RecordError, match="truths is None; the field is missing"):
        read_set_predictions(path, None, Reading())


def test_a_wrong_convention_is_noticed(grec_folder: Path, tmp_path: Path) -> None:
    asked = set_expressions(Corpus.open(grec_folder))
    lines = [
        {
            "id": one.id,
            "boxes": [[x1 / 64, y1 / 96, x2 / 64, y2 / 96] for x1, y1, x2, y2 in one.truths],
        }
        for one in asked
    ]
    path = _write(tmp_path / "p.jsonl", *lines)
    with pytest.raises(DataError, match=r"its boxes are not xyxy_pixels.*they fit xyxy_unit"):
        read_set_predictions(path, asked, Reading())
    found = read_set_predictions(path, asked, Reading("xyxy_unit"))
    for one in found:
        for box, truth in zip(one.boxes, one.expression.truths, strict=True):
            assert box == pytest.approx(truth)
