"""The constant box: found where it is known, deterministic, and true to the published floors."""

import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from finetune.constant_box import best_constant_box, constant_baseline
from finetune.protocols import merged_iou
from finetune.samples import Expression


def test_identical_boxes_are_met() -> None:
    target = np.array([0.37, 0.61, 0.23, 0.41])
    found = best_constant_box(np.tile(target, (50, 1)))
    assert found.accuracy == 1.0
    answer = np.array([found.pixels(100, 100)])
    x, y, w, h = 100 * target
    assert merged_iou(answer, np.array([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]]))[0] >= 0.5


def test_the_larger_cluster_wins_and_its_share_is_told() -> None:
    rng = np.random.default_rng(0)
    many = np.array([0.3, 0.3, 0.4, 0.4]) + rng.normal(0, 0.01, (70, 4))
    few = np.array([0.8, 0.8, 0.3, 0.3]) + rng.normal(0, 0.01, (30, 4))
    found = best_constant_box(np.concatenate([few, many]))
    assert found.accuracy == 0.7
    assert found.box[0] < 0.5


def test_no_worse_than_an_exhaustive_grid() -> None:
    rng = np.random.default_rng(1)
    size = rng.beta(2, 2, (400, 2))
    boxes = np.concatenate([size / 2 + rng.random((400, 2)) * (1 - size), size], axis=1)
    corners = np.concatenate([boxes[:, :2] - size / 2, boxes[:, :2] + size / 2], axis=1)
    edges = np.linspace(0, 1, 13)
    spans = [(a, b) for a in edges for b in edges if a < b]
    grid = [(x1, y1, x2, y2) for x1, x2 in spans for y1, y2 in spans]
    best = max(np.mean(merged_iou(np.tile(box, (400, 1)), corners) >= 0.5) for box in grid)
    found = best_constant_box(boxes)
    assert found.accuracy >= best
    own = merged_iou(np.tile(found.pixels(1, 1), (400, 1)), corners)
    assert found.accuracy == np.mean(own >= 0.5)
    assert found == best_constant_box(boxes)


@pytest.mark.parametrize("place", [(0.3, 0.0), (0.0, 0.1), (0.2, 0.2), (0.4, 0.4), (0.3, 0.6)])
def test_the_only_box_that_meets_two_by_exactly_half_is_found(place: tuple[float, float]) -> None:
    """Rounding puts either IoU a last bit below 0.5, at one place or another."""
    heights = np.array([0.1, 0.4])  # one of 0.2 is twice the first, and half of the second
    x, y = place
    boxes = np.stack([[x + 0.2] * 2, y + heights / 2, [0.4] * 2, heights], axis=1)
    found = best_constant_box(boxes)
    assert found.accuracy == 1.0
    assert found.box[3] == pytest.approx(0.2)
    assert best_constant_box(boxes, threshold=0.5 + 1e-8).accuracy == 0.5


def _expression(name: str, size: tuple[int, int], share: float) -> Expression:
    """Its box is the left `share` of an image of this size."""
    box = (0.0, 0.0, share * size[0], float(size[1]))
    return Expression(f"{name}/0/0", 0, name, "x", box, (box,), *size, "val")


def test_baseline_is_chosen_on_train_and_scored_on_test() -> None:
    train = [_expression(f"a{i}", (100 + i, 50), 0.5) for i in range(9)]
    test = [_expression("b", (40, 80), 0.5), _expression("c", (40, 80), 0.05)]
    constant, evaluation = constant_baseline(train, test, resamples=10)
    assert constant.accuracy == 1.0
    assert evaluation.summary().accuracy == 0.5
    x1, y1, x2, y2 = evaluation.predictions[0].box or ()
    assert 0 <= x1 < x2 <= 40
    assert 40 < y2 - y1 <= 80


def test_needs_boxes() -> None:
    for bad in (np.zeros((0, 4)), np.zeros((3, 5)), np.full((2, 4), np.nan)):
        with pytest.raises(ValueError, match="best_constant_box needs"):
            best_constant_box(bad)


def _flickr_truth(folder: Path, split: str, every: int = 1) -> np.ndarray:
    """Merged boxes, xyxy as fractions, of all phrases with boxes, the numbers as in the XML."""
    rows = []
    with zipfile.ZipFile(folder / "annotations.zip") as archive:
        for image in (folder / f"{split}.txt").read_text().split()[::every]:
            tree = ElementTree.fromstring(archive.read(f"Annotations/{image}.xml"))
            size = [float(tree.findtext(f"size/{side}") or 0) for side in ("width", "height")]
            boxes: dict[str, list[list[float]]] = {}
            for thing in tree.iter("object"):
                if (bounds := thing.find("bndbox")) is not None:
                    box = [float(bounds.findtext(k) or 0) for k in ("xmin", "ymin", "xmax", "ymax")]
                    for name in thing.iter("name"):
                        boxes.setdefault(name.text or "", []).append(box)
            text = archive.read(f"Sentences/{image}.txt").decode()
            for entity in re.findall(r"\[/EN#(\d+)/", text):
                if entity in boxes:
                    own = np.array(boxes[entity])
                    hull = np.concatenate([own[:, :2].min(axis=0), own[:, 2:].max(axis=0)])
                    rows.append(hull / [*size, *size])
    return np.array(rows)


def test_floors_of_flickr30k_entities(real_data: Path) -> None:
    """The data's README: the whole image 24.1 %, the best constant box 29.6 % on val, merged."""
    folder = real_data / "flickr30k_entities_8k"
    val = _flickr_truth(folder, "val")
    assert len(val) == 3239
    whole = np.mean(merged_iou(np.tile([0.0, 0.0, 1.0, 1.0], (len(val), 1)), val) >= 0.5)
    assert round(100 * whole, 1) == 24.1
    train = _flickr_truth(folder, "train", every=8)
    sizes = train[:, 2:] - train[:, :2]
    found = best_constant_box(np.concatenate([train[:, :2] + sizes / 2, sizes], axis=1))
    on_val = np.mean(merged_iou(np.tile(found.pixels(1, 1), (len(val), 1)), val) >= 0.5)
    assert on_val >= 0.296, found
