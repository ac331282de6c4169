"""COCO detection and segmentation: average precision, as pycocotools computes it.

Its figures are the published protocol, so nothing is computed here: files are checked, then given
to it in its own formats. Masks need it most: their run lengths are read by C code that trusts them,
and never ends where those of two masks do not fill the same image.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pycocotools import mask as masks
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
_MAX_SIDE_PX = 65_535  # pycocotools counts the pixels of a mask in 32 bits
_REACH = 1.5  # detectors answer a little beyond the image, not by half of it
_RUN_CHARACTERS = 7  # of a run length, at most: each holds five bits of what has 33 with its sign

Size = tuple[int, int]
"""Width and height in pixels."""


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
        DataError: a file is missing or malformed, a detection is of an unknown image or category,
            or a mask does not fill its image; names the detection or the annotation and the field.
    """
    dataset = _load(truth)
    if not isinstance(dataset, dict) or not all(
        isinstance(dataset.get(name), list) for name in _TRUTH_LISTS
    ):
        raise DataError(f"{truth}: not COCO's layout; it needs the lists {', '.join(_TRUTH_LISTS)}")
    detections = _load(results)
    if not isinstance(detections, list) or not detections:
        raise DataError(f"{results}: must be a list of detections, at least one")
    images = _sizes(dataset["images"], str(truth))
    try:
        categories = {category["id"] for category in dataset["categories"]}
    except (TypeError, KeyError) as error:
        raise DataError(f"{truth}: {error!r}; each of its categories needs an id") from None
    annotations = [
        _checked_truth(one, f"{truth}: annotations[{place}]", images, kind)
        for place, one in enumerate(dataset["annotations"])
    ]
    checked = [
        _checked(detection, f"{results}: detection {place}", images, categories, kind)
        for place, detection in enumerate(detections)
    ]
    objects = sum(not one.get("iscrowd", 0) for one in annotations)
    try:
        values = _evaluate({**dataset, "annotations": annotations}, checked, kind)
    except Exception as error:  # pycocotools raises bare Exception for values of another type
        raise DataError(
            f"{truth}: pycocotools cannot evaluate it ({error!r}); annotations need id, image_id, "
            "category_id, area, iscrowd, bbox and segmentation"
        ) from error
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


def _sizes(listed: Sequence[object], file: str) -> dict[Hashable, Size]:
    """Id -> size of the images of the truth."""
    found: dict[Hashable, Size] = {}
    for place, image in enumerate(listed):
        fields = _fields(image, f"{file}: images[{place}]")
        name = fields.required("id")
        if not isinstance(name, int | str):
            raise fields.error("id", name, "must be a number or a text")
        width, height = (fields.integer(side, 1, _MAX_SIDE_PX) for side in ("width", "height"))
        found[name] = width, height
    return found


def _checked_truth(
    annotation: Any, where: str, images: dict[Hashable, Size], kind: Kind
) -> dict[str, Any]:
    """An annotation of the truth, its run lengths as `_mask` returns them."""
    fields = _fields(annotation, where)
    name = annotation.get("image_id")
    size = images.get(name) if isinstance(name, int | str) else None
    if size is None:
        return annotation  # pycocotools passes over annotations of images that are not listed
    if kind == "bbox":
        corners_field(fields, "bbox", fields.required("bbox"))
        return annotation
    value = fields.required("segmentation")
    if isinstance(value, list):
        _check_polygons(fields, value, size)
        return annotation
    if not isinstance(value, dict):
        raise fields.error("segmentation", value, "must be a list of polygons, or RLE")
    return {**annotation, "segmentation": _mask(fields, value, size)}


def _checked(
    detection: object,
    where: str,
    images: dict[Hashable, Size],
    categories: set[Hashable],
    kind: Kind,
) -> dict[str, Any]:
    """What pycocotools needs of a detection; it asserts little and reads masks without a guard."""
    fields = _fields(detection, where)
    found = {}
    for key, known in (("image_id", images), ("category_id", categories)):
        value = found[key] = fields.required(key)
        if not isinstance(value, int | str) or value not in known:
            raise fields.error(key, value, "the truth has none with this id")
    found["score"] = number_field(fields, "score", fields.required("score"))
    width, height = size = images[found["image_id"]]
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
    if not isinstance(value, dict) or not isinstance(value.get("counts"), str):
        remedy = f"must be compressed RLE, counts being a text and size [{height}, {width}]"
        raise fields.error("segmentation", value, remedy)
    return {**found, "segmentation": _mask(fields, value, size)}


def _fields(value: object, where: str) -> Fields:
    if not isinstance(value, dict):
        raise DataError(f"{where} is no JSON object")
    return Fields(value, where, "")


def _check_polygons(fields: Fields, polygons: list[Any], size: Size) -> None:
    """Each is x, y, x, y, ... of three corners or more; an object in several parts has several."""
    if not polygons:
        raise fields.error("segmentation", polygons, "has no polygon; give one, or RLE")
    for place, polygon in enumerate(polygons):
        key = f"segmentation[{place}]"
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            remedy = "must be x, y, x, y, ... of at least three corners: six numbers, an even count"
            raise fields.error(key, polygon, remedy)
        for at, number in enumerate(polygon):
            side, limit = ("width", size[0]) if at % 2 == 0 else ("height", size[1])
            # It draws outlines at five times their length, whatever that is.
            if not -limit <= number_field(fields, f"{key}[{at}]", number) <= 2 * limit:
                remedy = f"lies far outside the image, whose {side} is {limit}; is it in pixels?"
                raise fields.error(f"{key}[{at}]", number, remedy)


def _mask(fields: Fields, value: dict[str, Any], size: Size) -> dict[str, Any]:
    """Compressed RLE of a mask, whose ``counts`` are a text (compressed) or a list.

    Args:
        fields: of what the mask belongs to, for errors.
        value: ``{"size": [height, width], "counts": ...}``.
        size: of the image.
    """
    width, height = size
    if value.get("size") != [height, width]:
        remedy = f"must be [{height}, {width}], height and width of the image"
        raise fields.error("segmentation.size", value.get("size"), remedy)
    runs = _run_lengths(fields, value.get("counts"), width * height)
    return dict(masks.frPyObjects({"size": [height, width], "counts": runs}, height, width))


def _run_lengths(fields: Fields, counts: object, pixels: int) -> list[int]:
    """Pixels without the mask and within it by turns, which together are all `pixels`."""
    key = "segmentation.counts"
    runs, total = [], 0
    try:
        for run in _runs(counts):
            if run < 0:
                raise ValueError(f"run length {len(runs)} is {run}; none may be negative")
            runs.append(run)
            total += run
            if total > pixels or len(runs) > pixels + 1:
                break
    except ValueError as error:
        raise fields.error(key, counts, str(error)) from None
    if total != pixels or len(runs) > pixels + 1:
        remedy = (
            f"its run lengths, {pixels + 1} at most, must sum to the {pixels} pixels of the image, "
            f"but the first {len(runs)} sum to {total}; encode the mask at the image's size"
        )
        raise fields.error(key, counts, remedy)
    return _without_empty(runs)


def _runs(counts: object) -> Iterator[int]:
    """The run lengths of RLE, in either of its forms.

    A compressed one is a text of numbers, each in characters of which the code less 48 holds five
    bits, the lowest first, and a sixth that says whether more follow; the highest bit of the last
    is the sign. From the fourth on they are differences to the number two before.

    Raises:
        ValueError: neither form; says what is wrong.
    """
    if isinstance(counts, list):
        for run in counts:
            if not isinstance(run, int) or isinstance(run, bool):
                raise ValueError(f"run length {run!r} is no whole number")
            yield run
        return
    if not isinstance(counts, str):
        raise ValueError("must be a text (compressed RLE) or a list of run lengths")
    found: list[int] = []
    number = shift = 0
    for place, letter in enumerate(counts):
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift >= 5 * _RUN_CHARACTERS:
            raise ValueError(
                f"must be compressed RLE; character {place} ({letter!r}) is none of it"
            )
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        found.append(number + (found[-2] if len(found) > 2 else 0))
        yield found[-1]
        number = shift = 0
    if shift:
        raise ValueError("must be compressed RLE; its last number is cut off")


def _without_empty(runs: list[int]) -> list[int]:
    """The same mask without runs of length 0 after the first, at which pycocotools stops reading
    where two masks have one at the same pixel: the overlap of a mask with itself could be 0.
    """
    kept = runs[:1]
    for place, run in enumerate(runs[1:], start=1):
        if run == 0:
            continue
        if (place - len(kept)) % 2:  # the kept one is of its kind
            kept[-1] += run
        else:
            kept.append(run)
    return kept


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.2f}"
