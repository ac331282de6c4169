"""The program `python -m finetune.evaluate`."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pycocotools import mask as masks

from finetune.conventions import CONVENTIONS
from finetune.evaluate import evaluate_file, evaluate_set_file, main
from finetune.grec_samples import set_expressions
from finetune.reading import Reading
from finetune.samples import corpus_expressions
from wholegrain.data.corpus import Corpus
from wholegrain.errors import run_cli


def _in_convention(
    convention: str, box: tuple[float, float, float, float], width: int, height: int
) -> list[float]:
    """A box of a record (xywh pixels) as another system would write it."""
    order, unit = convention.split("_")
    x, y, w, h = box
    if unit == "square":
        side = max(width, height)
        x, y, w, h = (
            (x + (side - width) / 2) / side,
            (y + (side - height) / 2) / side,
            w / side,
            h / side,
        )
    elif unit != "pixels":
        units = {"unit": 1, "1000": 1000, "1000bins": 1000, "1024": 1024}
        across, down = (300, 200) if unit == "resized" else (units[unit],) * 2
        x, y, w, h = across * x / width, down * y / height, across * w / width, down * h / height
    if unit == "1000bins":
        x, y = x - 0.5, y - 0.5
    return {
        "xyxy": [x, y, x + w, y + h],
        "xywh": [x, y, w, h],
        "cxcywh": [x + w / 2, y + h / 2, w, h],
        "yxyx": [y, x, y + h, x + w],
    }[order]


@pytest.fixture
def truth_in(corpus_folder: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """Writes the true boxes in a convention; returns the arguments that evaluate them."""

    def write(convention: str) -> list[str]:
        answers = tmp_path / f"{convention}.jsonl"
        with answers.open("w") as stream:
            for one in corpus_expressions(Corpus.open(corpus_folder)):
                box = _in_convention(convention, one.box, one.width, one.height)
                row = {"id": one.id, "box": box, "resized": [300, 200]}
                stream.write(json.dumps(row) + "\n")
        return [str(answers), "--corpus", str(corpus_folder), "--split", "val", "--resamples=20"]

    return write


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_true_boxes_of_another_system_score_full(
    convention: str, truth_in: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    given = truth_in(convention)
    assert main([*given, "--boxes", convention, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["merged"]["all"]["acc@0.9"] == 1.0
    assert found["merged"]["all"]["mean_iou"] == pytest.approx(1.0)


# Bins of a thousandth lie half of one beside, and the boxes' middle hides which way axes go.
@pytest.mark.parametrize("convention", [name for name in CONVENTIONS if "1000bins" not in name])
@pytest.mark.parametrize("other", ["xyxy_pixels", "xyxy_unit", "xyxy_1000"])
def test_a_wrong_convention_ends_it_and_the_right_one_is_named(
    convention: str,
    other: str,
    truth_in: Callable[[str], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    alike = ("xyxy_1024", "xyxy_1000"), ("xyxy_square", "xyxy_unit")
    if convention == other or (convention, other) in alike:
        return  # they differ by a fortieth, or by the padding of photos that are all but square
    given = truth_in(convention)
    assert run_cli(main, [*given, "--boxes", other]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"they fit {convention}: mean IoU 1.00" in printed.err
    assert printed.err.count("\n") == 1
    assert main([*given, "--boxes", other, "--trust-boxes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["merged"]["all"]["acc@0.9"] < 0.8


def test_resized_size_for_all(
    truth_in: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    given = truth_in("xyxy_resized")
    answers = Path(given[0])
    answers.write_text(answers.read_text().replace(', "resized": [300, 200]', ""))
    assert run_cli(main, [*given, "--boxes", "xyxy_resized"]) == 2
    assert "xyxy_resized.jsonl:1: resized is None; add it as" in capsys.readouterr().err
    assert main([*given, "--boxes", "xyxy_resized", "--resized", "300x200", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["merged"]["all"]["acc@0.9"] == 1.0
    with pytest.raises(SystemExit):
        main([*given, "--resized", "300"])
    assert "'300' is no size; write 1000x600" in capsys.readouterr().err


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
    assert "1 answered more than once (a/0/0 in lines 1 and 2)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "nothing to do"),
        (["--write-questions", "q"], "add --corpus"),
        (["p", "--resamples", "0"], "--resamples is 0"),
        (
            ["p", "--resamples", "100000000000"],
            "--resamples is 100000000000; it must lie in 1..1,0",
        ),
        (["p", "--seed", "-1"], "--seed is -1; it must be 0 or more"),
        (["--corpus", "c", "--write-questions", "q", "--out", "o"], "--out writes the predictions"),
        (["p", "--out", "p"], "--out is p, which is the predictions file too; name another file"),
        (["p", "--against", "q", "--out", "q"], "--out is q, which is --against too"),
        (
            ["p", "--corpus", "c", "--write-questions", "./p"],
            "--write-questions is p, which is the",
        ),
        (["p", "--corpus", "c", "--write-questions", "q", "--out", "q"], "which is --write-questi"),
        (["p", "--out", "/proc/o.jsonl"], "--out is /proc/o.jsonl, which cannot be written ("),
        (["p", "--out", "."], "--out is ., a folder; name a file"),
        (["p", "--split", "val"], "--split val is of a corpus: add --corpus"),
        (["p", "--truth", "t"], "--truth is for --task coco"),
        (["p", "--task", "coco"], "needs a results file and --truth"),
        (["p", "--task", "coco", "--truth", "t", "--against", "q"], "--against is not for --task"),
        (["p", "--task", "grec", "--min-score", "nan"], "--min-score is nan"),
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


def test_difference_of_two_systems(
    truth_in: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One answers in pixels; the other in thousandths, and misses the first expression."""
    mine, theirs = truth_in("xyxy_pixels"), truth_in("xyxy_1000")
    other = Path(theirs[0])
    rows = [json.loads(line) for line in other.read_text().splitlines()]
    rows[0]["box"] = None
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [*mine, "--against", str(other), "--against-boxes", "xyxy_1000"]
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["merged"]["all"]["acc@0.5"] == 1.0
    difference = found["difference"]["merged"]
    assert (difference["won"], difference["lost"]) == (1, 0)
    assert difference["all"]["acc@0.5"] == pytest.approx(1 / len(rows))
    assert main(given) == 0
    assert "xyxy_pixels.jsonl less xyxy_1000.jsonl" in capsys.readouterr().out


def test_with_json_stdout_is_json(
    truth_in: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "q.jsonl"
    assert main([*truth_in("xyxy_pixels"), "--json", "--write-questions", str(questions)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["merged"]["all"]["acc@0.5"] == 1.0
    assert f"expressions written to {questions}" in printed.err
    assert questions.exists()


def test_figures_are_printed_though_the_file_cannot_be_written(
    truth_in: Callable[[str], list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    given, out = truth_in("xyxy_pixels"), tmp_path / "o.jsonl"
    monkeypatch.setattr("os.fsync", full)
    assert run_cli(main, [*given, "--json", "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["merged"]["all"]["acc@0.5"] == 1.0
    assert f"{out}: cannot be written (No space left on device)" in printed.err
    assert not out.exists()


def test_a_bad_input_is_met_before_anything_is_written(
    truth_in: Callable[[str], list[str]], tmp_path: Path
) -> None:
    given, questions, out = truth_in("xyxy_pixels"), tmp_path / "q.jsonl", tmp_path / "o.jsonl"
    outputs = ["--write-questions", str(questions), "--out", str(out)]
    assert run_cli(main, [*given, *outputs, "--against", str(tmp_path / "absent.jsonl")]) == 2
    assert not questions.exists()
    assert not out.exists()


def test_giou_is_asked_for(
    truth_in: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*truth_in("xyxy_pixels"), "--overlap", "giou", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["overlap"] == "giou"
    assert found["merged"]["all"]["mean_giou"] == pytest.approx(1.0)


def test_generalized_grounding_from_questions_to_figures(
    grec_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A system that finds everything and, of what is not there, sees one in three."""
    questions, answers, ours = (tmp_path / name for name in ("q.jsonl", "a.jsonl", "o.jsonl"))
    corpus = ["--corpus", str(grec_folder), "--split", "val", "--task", "grec"]
    assert main([*corpus, "--write-questions", str(questions)]) == 0
    printed = capsys.readouterr()
    assert (printed.out, "21 expressions written" in printed.err) == ("", True)
    asked = [json.loads(line) for line in questions.read_text().splitlines()]
    assert set(asked[0]) == {"id", "image", "text", "width", "height"}
    truths = {one.id: one.truths for one in set_expressions(Corpus.open(grec_folder))}
    with answers.open("w") as stream:
        for row in asked:
            boxes = [*truths[row["id"]], (1, 1, 9, 9)]
            scores = [0.9] * len(truths[row["id"]]) + [0.8 if row["text"] == "a bus" else 0.1]
            line = {"id": row["id"], "boxes": boxes, "scores": scores}
            stream.write(json.dumps(line) + "\n")
    given = [str(answers), *corpus, "--resamples=50"]
    assert main([*given, "--json", "--out", str(ours)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["set"]["all"]["expressions"] == 21
    assert found["set"]["all"]["pr@0.9"] == pytest.approx(18 / 21)
    assert found["n_acc"] == pytest.approx(2 / 3)
    assert found["t_acc"] == 1.0
    # The file that was written needs no corpus, and gives the same.
    assert main([str(ours), "--task", "grec", "--resamples=50", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert evaluate_set_file(ours, min_score=0.85, resamples=5).precision == 1.0
    assert main([*given, "--against", str(ours)]) == 0
    assert "won 0, lost 0 (pr@0.5)" in capsys.readouterr().out


def test_detection_from_the_command_line(
    real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = real_data / "eval" / "coco_det"
    truth = ["--task", "coco", "--truth", str(folder / "instances_val2014_100.json"), "--json"]
    assert main([str(folder / "instances_val2014_fakebbox100_results.json"), *truth]) == 0
    assert round(json.loads(capsys.readouterr().out)["AP"], 3) == 0.505


def test_masks_are_compared_in_place_of_boxes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A detection whose box is the true one, and whose mask is half of the true mask."""
    size = {"size": [8, 10]}
    half = masks.frPyObjects({**size, "counts": [0, 40, 40]}, 8, 10)["counts"].decode()
    one = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 8]}
    shape = {"area": 80, "iscrowd": 0, "segmentation": {**size, "counts": [0, 80]}}
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    images = [{"id": 1, "width": 10, "height": 8}]
    kinds = [{"id": 1, "name": "cup"}]
    layout = {"images": images, "categories": kinds, "annotations": [{"id": 1, **one, **shape}]}
    truth.write_text(json.dumps(layout))
    detection = {**one, "score": 0.9, "segmentation": {**size, "counts": half}}
    results.write_text(json.dumps([detection]))
    given = [str(results), "--task", "coco", "--truth", str(truth), "--json"]
    for kind, precise in (("bbox", 1.0), ("segm", 0.0)):
        assert main([*given, "--kind", kind]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["kind"], found["AP75"]) == (kind, pytest.approx(precise))
        assert found["AP50"] == pytest.approx(1.0)


def test_both_protocols_of_flickr30k_entities(real_data: Path, tmp_path: Path) -> None:
    """The whole image as every answer, from the official files to figures: 24 % (merged), as the
    data's README has it up to the reading of the XML's inclusive pixels; both against plain loops.
    """
    from data_tools.__main__ import main as data_tools

    source = ["--root", str(real_data / "flickr30k_entities_8k"), "--split", "val"]
    assert data_tools(["convert", "flickr30k_entities", *source, "--out", str(tmp_path / "c")]) == 0
    asked = corpus_expressions(Corpus.open(tmp_path / "c"))
    assert len(asked) == 3239
    assert round(100 * sum(len(one.boxes) == 1 for one in asked) / len(asked), 1) == 82.6
    path = tmp_path / "whole.jsonl"
    with path.open("w") as stream:
        for one in asked:
            stream.write(json.dumps({"id": one.id, "box": [0, 0, 1, 1]}) + "\n")
    found = evaluate_file(path, asked, reading=Reading("xyxy_unit"), resamples=100)
    area = 224 * 224  # of the whole image, which holds every box: IoU is the box's share of it
    merged = sum(one.box[2] * one.box[3] >= area / 2 for one in asked)
    best = sum(max(w * h for _, _, w, h in one.boxes) >= area / 2 for one in asked)
    assert found.summary("merged").accuracy == merged / len(asked)
    assert found.summary("any").accuracy == best / len(asked)
    assert 100 * found.summary("merged").accuracy == pytest.approx(24.1, abs=0.3)
    assert found.summary("any").accuracy < found.summary("merged").accuracy
    several = found.summaries["merged"]["boxes: several"]
    assert several.expressions == sum(len(one.boxes) > 1 for one in asked)
    people = found.summary(group="about: people")
    assert people.expressions == found.summary(group="kind: people").expressions > 1000


def test_refcoco_from_the_refer_layout(real_data: Path, tmp_path: Path) -> None:
    from data_tools.__main__ import main as data_tools

    native = real_data / "refcoco_native"
    source = ["--root", str(native / "refer_format"), "--images", str(native / "images")]
    assert data_tools(["convert", "refcoco", *source, "--out", str(tmp_path / "c")]) == 0
    corpus = Corpus.open(tmp_path / "c")
    total = 0
    for split in corpus.splits:
        asked = corpus_expressions(corpus.select(split))
        path = tmp_path / f"{split}.jsonl"
        path.write_text("".join(json.dumps({"id": x.id, "box": x.box}) + "\n" for x in asked))
        found = evaluate_file(path, asked, reading=Reading("xywh_pixels"), resamples=5)
        assert found.summary().values["mean_iou"] == 1.0
        assert {one.split for one in asked} == {split}
        total += len(asked)
    assert total == 83


def test_help_names_every_convention_and_task(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in CONVENTIONS:
        for part in name.split("_"):
            assert f"  {part} " in text
    for task in ("rec", "grec", "coco"):
        assert f"    {task} " in text
