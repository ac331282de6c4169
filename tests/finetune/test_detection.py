"""COCO's figures: the published ones, a case by hand, and files that are wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as masks

from finetune import detection
from finetune.detection import METRICS, detection_scores
from wholegrain.errors import DataError

TRUTH = {
    "images": [{"id": 1, "width": 100, "height": 80}],
    "categories": [{"id": 5, "name": "cup"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 5, "bbox": [10, 10, 40, 40], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 5, "bbox": [60, 10, 20, 20], "iscrowd": 0},
    ],
}
for _one in TRUTH["annotations"]:
    _x, _y, _w, _h = _one["bbox"]
    _one["area"] = _w * _h
    _one["segmentation"] = [[_x, _y, _x + _w, _y, _x + _w, _y + _h, _x, _y + _h]]
RIGHT = {"image_id": 1, "category_id": 5, "bbox": [10, 10, 40, 40], "score": 0.9}
WRONG = {"image_id": 1, "category_id": 5, "bbox": [0, 60, 10, 10], "score": 0.8}
MASK = {"image_id": 1, "category_id": 5, "score": 0.5}
BARS = [1000, 20, 60, 20, 6900]
"""Run lengths of two bars, 40 pixels."""


def _masked(segmentation: object) -> dict[str, Any]:
    return {**TRUTH, "annotations": [TRUTH["annotations"][0] | {"segmentation": segmentation}]}


def _detected(runs: list[int]) -> list[dict[str, Any]]:
    return [MASK | {"segmentation": {"size": [80, 100], "counts": _compressed(runs)}}]


def _with_image(**changes: object) -> dict[str, Any]:
    return {**TRUTH, "images": [TRUTH["images"][0] | changes]}


def _with_annotation(**changes: object) -> dict[str, Any]:
    return {**TRUTH, "annotations": [TRUTH["annotations"][0] | changes]}


def _compressed(runs: list[int]) -> str:
    """pycocotools' own text of run lengths of an image of 80 x 100."""
    rle = masks.frPyObjects({"size": [80, 100], "counts": runs}, 80, 100)
    return str(rle["counts"], "ascii")


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_published_figures(kind: Any, real_data: Path) -> None:
    folder = real_data / "eval" / "coco_det"
    expected = json.loads((folder / "expected.json").read_text())["expected"][kind]
    results = folder / f"instances_val2014_fake{kind}100_results.json"
    found = detection_scores(folder / "instances_val2014_100.json", results, kind)
    assert found.values == pytest.approx(expected, abs=1e-12)
    assert list(found.values) == list(METRICS)
    assert found.images == 100
    published = {"bbox": (0.505, 0.697, 0.573), "segm": (0.320, 0.562, 0.299)}[kind]
    assert tuple(round(found.values[name], 3) for name in ("AP", "AP50", "AP75")) == published
    assert f"{100 * expected['AP']:.2f}" in found.table()


def _write(folder: Path, detections: object, truth: object = TRUTH) -> tuple[Path, Path]:
    paths = folder / "truth.json", folder / "results.json"
    for path, value in zip(paths, (truth, detections), strict=True):
        path.write_text(json.dumps(value))
    return paths


def test_a_case_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of two is found before one false alarm: precision 1 up to recall 0.5, which is 51 of 101
    points; the large object is found, the small is not.
    """
    found = detection_scores(*_write(tmp_path, [RIGHT, WRONG]))
    assert found.values["AP"] == found.values["AP50"] == pytest.approx(51 / 101)
    assert found.values["AR100"] == 0.5
    assert found.values["APm"] == pytest.approx(1.0)
    assert found.values["APs"] == 0.0
    assert found.values["APl"] == -1
    assert (found.objects, found.detections) == (2, 2)
    assert found.table().splitlines()[2].split()[-1] == "-"
    assert found.to_dict()["kind"] == "bbox"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"image_id": 2}, "bbox", "image_id is 2; the truth has none with this id"),
        ({"image_id": [1]}, "bbox", "image_id is [1]; the truth has none"),
        ({"category_id": 6}, "bbox", "category_id is 6; the truth has none"),
        ({"score": None}, "bbox", "score is None; must be a number"),
        ({"score": "0.9"}, "bbox", "score is '0.9'; must be a number"),
        ({"bbox": [1, 2, 3]}, "bbox", "bbox is [1, 2, 3]; must be a list of four numbers"),
        ({"bbox": [50, 50, 20, -1]}, "bbox", "is it left, top, right, bottom"),
        ({"bbox": [90, 10, 95, 40]}, "bbox", "pixels of an image of 100 x 80; is it"),
        ({}, "segm", "segmentation is None; the field is missing"),
        ({"segmentation": [[0, 0, 1, 1]]}, "segm", "must be compressed RLE"),
        (
            {"segmentation": {"size": [9, 9], "counts": "01"}},
            "segm",
            "size is [9, 9]; must be [80,",
        ),
        ({"segmentation": {"size": [80, 100], "counts": [1, 2]}}, "segm", "must be compressed RLE"),
        # The last character promises that more follow: pycocotools would read on behind the text.
        ({"segmentation": {"size": [80, 100], "counts": "0P"}}, "segm", "its last number is cut"),
        ({"segmentation": {"size": [80, 100], "counts": "0é"}}, "segm", "character 1 ('é') is non"),
        ({"segmentation": {"size": [80, 100], "counts": "P" * 9}}, "segm", "character 7 ('P') is"),
        # It would wait for ever for the pixels that are missing, or too many.
        ({"segmentation": {"size": [80, 100], "counts": ""}}, "segm", "the first 0 sum to 0"),
        ({"segmentation": {"size": [80, 100], "counts": "0"}}, "segm", "the first 1 sum to 0"),
        ({"segmentation": {"size": [80, 100], "counts": "5N"}}, "segm", "run length 1 is -2; none"),
    ],
)
def test_a_bad_detection_is_named(
    change: dict[str, object], kind: Any, message: str, tmp_path: Path
) -> None:
    whole = {"size": [80, 100], "counts": _compressed([8000])}
    sound = RIGHT if kind == "bbox" else MASK | {"segmentation": whole}
    changed = RIGHT | change if kind == "bbox" else MASK | change
    truth, results = _write(tmp_path, [sound, changed])
    with pytest.raises(DataError) as caught:
        detection_scores(truth, results, kind)
    assert str(caught.value).startswith(f"{results}: detection 1: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([9, 40], "the first 2 sum to 49"),
        ([1000, 20, 7000], "the first 3 sum to 8020"),
        ([0, 2**32 - 1], "the first 2 sum to 4294967295"),
        ([8000, *[0] * 8001], "its run lengths, 8001 at most, must sum to the 8000 pixels"),
    ],
)
def test_run_lengths_that_do_not_fill_the_image(
    runs: list[int], message: str, tmp_path: Path
) -> None:
    """pycocotools would wait for the missing pixels for ever."""
    truth, results = _write(tmp_path, _detected(BARS) + _detected(runs))
    with pytest.raises(DataError) as caught:
        detection_scores(truth, results, "segm")
    assert str(caught.value).startswith(f"{results}: detection 1: segmentation.counts is ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("truth", "detections", "message"),
    [
        (TRUTH, [], "results.json: must be a list of detections, at least one"),
        (TRUTH, {"a": 1}, "results.json: must be a list of detections"),
        (TRUTH, [7], "results.json: detection 0 is no JSON object"),
        ([], [RIGHT], "truth.json: not COCO's layout"),
        ({**TRUTH, "images": [{"id": 1}]}, [RIGHT], "truth.json: images[0]: width is None"),
        ({**TRUTH, "images": [3]}, [RIGHT], "truth.json: images[0] is no JSON object"),
        ({**TRUTH, "images": [{"id": [1]}]}, [RIGHT], "images[0]: id is [1]; must be a number"),
        (_with_image(width="100"), [RIGHT], "images[0]: width is '100'; must be an integer"),
        (_with_image(height=0), [RIGHT], "images[0]: height is 0; must be between 1 and"),
        (_with_image(height=True), [RIGHT], "images[0]: height is True; must be an integer"),
        ({**TRUTH, "categories": [{"name": "cup"}]}, [RIGHT], "KeyError('id'); each of its cat"),
        ({**TRUTH, "annotations": [{"id": 1}]}, [RIGHT], "truth.json: pycocotools cannot"),
        ({**TRUTH, "annotations": [[]]}, [RIGHT], "truth.json: annotations[0] is no JSON object"),
        (_with_annotation(bbox=[1, 2]), [RIGHT], "annotations[0]: bbox is [1, 2]; must be a list"),
        (_with_annotation(area={}), [RIGHT], "truth.json: pycocotools cannot"),
    ],
)
def test_files_of_another_layout(
    truth: object, detections: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        detection_scores(*_write(tmp_path, detections, truth))
    assert message in str(caught.value)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    truth, results = _write(tmp_path, [RIGHT])
    with pytest.raises(DataError, match=r"absent\.json: cannot be read"):
        detection_scores(tmp_path / "absent.json", results)
    results.write_text('[{"score": NaN}]')
    with pytest.raises(DataError, match="not readable as JSON: NaN is not a number"):
        detection_scores(truth, results)


@pytest.mark.parametrize("form", [list, _compressed])
def test_masks_in_either_form(form: Callable[[list[int]], object], tmp_path: Path) -> None:
    truth = _masked({"size": [80, 100], "counts": form(BARS)})
    found = detection_scores(*_write(tmp_path, _detected(BARS), truth), "segm")
    assert found.values["AP"] == pytest.approx(1.0)
    half = [1000, 20, 6980]
    found = detection_scores(*_write(tmp_path, _detected(half), truth), "segm")
    assert found.values["AP50"] == pytest.approx(1.0)
    assert found.values["AP75"] == 0.0


def test_run_lengths_are_read_as_pycocotools_writes_them() -> None:
    draws = np.random.default_rng(0)
    for number in range(50):
        height, width = draws.integers(1, 400, 2).tolist()
        mask = draws.random((height, width)) < draws.random() ** 2
        mask[:, : number % 3 * width // 3] = number % 2  # long runs too, of either kind
        bits = mask.ravel(order="F").astype(int)
        bounds = np.flatnonzero(np.diff(bits, prepend=0)).tolist()
        expected = np.diff([0, *bounds, bits.size]).tolist()
        text = masks.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert list(detection._runs(text)) == expected


def test_empty_runs_change_nothing(tmp_path: Path) -> None:
    """pycocotools ends where two masks have an empty run at one pixel: IoU 0 of equal masks."""
    padded = [1000, 0, 0, 20, 60, 15, 0, 5, 6900, 0]
    truth = _masked({"size": [80, 100], "counts": padded})
    found = detection_scores(*_write(tmp_path, _detected(padded), truth), "segm")
    assert found.values["AP"] == pytest.approx(1.0)
    assert detection._without_empty(padded) == BARS
    assert detection._without_empty([0, 8000]) == [0, 8000]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "segmentation is None; must be a list of polygons, or RLE"),
        ("abc", "segmentation is 'abc'; must be a list of polygons, or RLE"),
        ([], "segmentation is []; has no polygon"),
        ([[1, 2]], "segmentation[0] is [1, 2]; must be x, y, x, y, ... of at least three corners"),
        ([[1, 2, 9, 2, 9, 9], [1, 2, 3, 4]], "segmentation[1] is [1, 2, 3, 4]; must be x, y"),
        ([[1, 2, 3, 4, 5, 6, 7]], "six numbers, an even count"),
        ([1, 2, 3, 4, 5, 6], "segmentation[0] is 1; must be x, y"),
        ([[1, 2, 9, 2, 9, "9"]], "segmentation[0][5] is '9'; must be a number"),
        ([[1, 2, 9, 2, 1e9, 9]], "segmentation[0][4] is 1000000000.0; lies far outside the image"),
        ({"size": [100, 80], "counts": [8000]}, "segmentation.size is [100, 80]; must be [80, 10"),
        ({"size": [80, 100]}, "segmentation.counts is None; must be a text (compressed RLE) or"),
        (
            {"size": [80, 100], "counts": [3, 4]},
            "must sum to the 8000 pixels of the image, but the",
        ),
        ({"size": [80, 100], "counts": [8000, 5, -5]}, "the first 2 sum to 8005"),
        ({"size": [80, 100], "counts": [8001, -1]}, "the first 1 sum to 8001"),
        ({"size": [80, 100], "counts": [9, -1, 7992]}, "run length 1 is -1; none may be negative"),
        ({"size": [80, 100], "counts": [8000.0]}, "run length 8000.0 is no whole number"),
        ({"size": [80, 100], "counts": "f064"}, "segmentation.counts is 'f064'; its run lengths"),
    ],
)
def test_a_bad_mask_of_the_truth_is_named(
    segmentation: object, message: str, tmp_path: Path
) -> None:
    truth, results = _write(tmp_path, _detected(BARS), _masked(segmentation))
    with pytest.raises(DataError) as caught:
        detection_scores(truth, results, "segm")
    assert str(caught.value).startswith(f"{truth}: annotations[0]: segmentation")
    assert message in str(caught.value)


def test_annotations_of_images_that_are_not_listed_are_passed_over(tmp_path: Path) -> None:
    other = TRUTH["annotations"][0] | {"id": 9, "image_id": 2, "segmentation": [[1, 2]]}
    truth = _masked({"size": [80, 100], "counts": BARS})
    truth["annotations"].append(other)
    found = detection_scores(*_write(tmp_path, _detected(BARS), truth), "segm")
    assert found.values["AP"] == pytest.approx(1.0)
