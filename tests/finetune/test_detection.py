"""COCO's figures: the published ones, a case by hand, and files that are wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

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
    _one["area"] = _one["bbox"][2] * _one["bbox"][3]
RIGHT = {"image_id": 1, "category_id": 5, "bbox": [10, 10, 40, 40], "score": 0.9}
WRONG = {"image_id": 1, "category_id": 5, "bbox": [0, 60, 10, 10], "score": 0.8}
MASK = {"image_id": 1, "category_id": 5, "score": 0.5}


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
        ({"segmentation": {"size": [9, 9], "counts": "01"}}, "segm", "size [80, 100]"),
        ({"segmentation": {"size": [80, 100], "counts": [1, 2]}}, "segm", "must be compressed RLE"),
        # The last character promises that more follow: pycocotools would read on behind the text.
        ({"segmentation": {"size": [80, 100], "counts": "0P"}}, "segm", "must be compressed RLE"),
        ({"segmentation": {"size": [80, 100], "counts": "0é"}}, "segm", "must be compressed RLE"),
    ],
)
def test_a_bad_detection_is_named(
    change: dict[str, object], kind: Any, message: str, tmp_path: Path
) -> None:
    sound = RIGHT if kind == "bbox" else MASK | {"segmentation": {"size": [80, 100], "counts": "0"}}
    changed = RIGHT | change if kind == "bbox" else MASK | change
    truth, results = _write(tmp_path, [sound, changed])
    with pytest.raises(DataError) as caught:
        detection_scores(truth, results, kind)
    assert str(caught.value).startswith(f"{results}: detection 1: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("truth", "detections", "message"),
    [
        (TRUTH, [], "results.json: must be a list of detections, at least one"),
        (TRUTH, {"a": 1}, "results.json: must be a list of detections"),
        (TRUTH, [7], "results.json: detection 0 is no JSON object"),
        ([], [RIGHT], "truth.json: not COCO's layout"),
        ({**TRUTH, "images": [{"id": 1}]}, [RIGHT], "truth.json: KeyError('width')"),
        ({**TRUTH, "annotations": [{"id": 1}]}, [RIGHT], "truth.json: pycocotools cannot"),
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
