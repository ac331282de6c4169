"""COCO detection and segmentation: average precision, as pycocotools computes it.

Its figures are the published protocol, so nothing is computed here: files are checked, then given
to it in its own formats.
"""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from finetune.answers import corners_field, number_field
from wholegrain.data.record_parse import Fields, refuse_constant
from wholegrain.errors import DataError

Kind = Literal["bbox", "segm"]
KINDS: tuple[Kind, ...] = ("bbox", "segm")
METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
_TRUTH_LISTS = ("images", "annotations", "categories")
_MAX_BYTES = 4 << 30
_REACH = 1.5  # detectors answer a little beyond the image, not by half of it


@dataclass(frozen=True)
class DetectionScores:
    """The twelve figures of the COCO protocol."""

    values: dict[str, float]
    """`METRICS`, each in 0..1; -1 where no object is of that size."""
    kind: Kind
    images: int
    objects: int
    """True objects, crowds left out."""
    detections: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        counts = {"images": self.images, "objects": self.objects, "detections": self.detections}
        return {"kind": self.kind, **counts, **self.values}

    def table(self) -> str:
        """The figures as text, in percent."""
        about = f"{self.images} images, {self.objects} objects, {self.detections} detections"
        lines = [f"COCO {self.kind}: {about}"]
        for row in (METRICS[:6], METRICS[6:]):
            lines.append("".join(f"{name:>9}" for name in row))
            lines.append("".join(f"{_percent(self.values[name]):>9}" for name in row))
        return "\n".join(lines)


def detection_scores(truth: Path, results: Path, kind: Kind = "bbox") -> DetectionScores:
    """AP and AR of a results file over all images of the truth.

    Args:
        truth: ``instances_*.json``: images, annotations and categories.
        results: a list of detections, each with ``image_id``, ``category_id``, ``score`` and
            ``bbox`` (left, top, width, height in pixels) or ``segmentation`` (compressed RLE).
        kind: what is compared, boxes or masks.

    Raises:
        DataError: a file is missing or malformed, or a detection is of an unknown image or
            category; names the detection and the field.
    """
    dataset = _load(truth)
    if not isinstance(dataset, dict) or not all(
        isinstance(dataset.get(name), list) for name in _TRUTH_LISTS
    ):
        raise DataError(f"{truth}: not COCO's layout; it needs the lists {', '.join(_TRUTH_LISTS)}")
    detections = _load(results)
    if not isinstance(detections, list) or not detections:
        raise DataError(f"{results}: must be a list of detections, at least one")
    try:
        images = {image["id"]: (image["width"], image["height"]) for image in dataset["images"]}
        categories = {category["id"] for category in dataset["categories"]}
        objects = sum(not one.get("iscrowd", 0) for one in dataset["annotations"])
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{truth}: {error!r}; images need id, width and height") from None
    checked = [
        _checked(detection, f"{results}: detection {place}", images, categories, kind)
        for place, detection in enumerate(detections)
    ]
    try:
        values = _evaluate(dataset, checked, kind)
    except (KeyError, TypeError, ValueError, AssertionError, IndexError) as error:
        raise DataError(
            f"{truth}: pycocotools cannot evaluate it ({error!r}); annotations need id, image_id, "
            "category_id, area, iscrowd, bbox and segmentation"
        ) from None
    return DetectionScores(values, kind, len(images), objects, len(detections))


def _evaluate(dataset: dict[str, Any], detections: list[Any], kind: Kind) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):  # it narrates what it does
        true = COCO()
        true.dataset = dataset
        true.createIndex()
        scoring = COCOeval(true, true.loadRes(detections), kind)
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return dict(zip(METRICS, map(float, scoring.stats), strict=True))


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: over {_MAX_BYTES >> 30} GiB; evaluate one split at a time")
        return json.loads(path.read_bytes(), parse_constant=refuse_constant)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from None


def _checked(
    detection: object,
    where: str,
    images: dict[int, tuple[int, int]],
    categories: set[int],
    kind: Kind,
) -> dict[str, Any]:
    """What pycocotools needs of a detection; it asserts little and reads masks without a guard."""
    if not isinstance(detection, dict):
        raise DataError(f"{where} is no JSON object")
    fields = Fields(detection, where, "")
    for key, known in (("image_id", images), ("category_id", categories)):
        value = fields.required(key)
        if not isinstance(value, int | str) or value not in known:
            raise fields.error(key, value, "the truth has none with this id")
    found = {key: detection[key] for key in ("image_id", "category_id")}
    found["score"] = number_field(fields, "score", fields.required("score"))
    width, height = images[detection["image_id"]]
    value = fields.required("bbox" if kind == "bbox" else "segmentation")
    if kind == "bbox":
        x, y, w, h = box = corners_field(fields, "bbox", value)
        far = max(x + w - _REACH * width, y + h - _REACH * height) > 0
        if far or min(w, h) < 0:
            remedy = (
                f"must be left, top, width, height in pixels of an image of {width} x {height}; is "
                "it left, top, right, bottom, or in another unit?"
            )
            raise fields.error("bbox", list(box), remedy)
        return {**found, "bbox": list(box)}
    if (
        not isinstance(value, dict)
        or value.get("size") != [height, width]
        or not _is_compressed(value.get("counts"))
    ):
        remedy = f"must be compressed RLE, counts being a text and size [{height}, {width}]"
        raise fields.error("segmentation", value, remedy)
    return {**found, "segmentation": {"size": [height, width], "counts": value["counts"]}}


def _is_compressed(counts: object) -> bool:
    """Whether these are run lengths, six bits a character of which one says that more follow."""
    return (
        isinstance(counts, str)
        and counts != ""
        and all(48 <= ord(letter) < 112 for letter in counts)
        and not (ord(counts[-1]) - 48) & 32
    )


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.2f}"
