"""A report as one HTML file: no script, no network, opens from disk in ten years' time.

The page forbids itself everything but inline style and `data:` images by a content security
policy, so that text which comes from corpora could do no harm even if it slipped through the
template's escaping.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from wholegrain.report.charts import line_chart
from wholegrain.report.content import Box, Case, Report
from wholegrain.report.metrics import Curves, in_groups, read_curves
from wholegrain.report.numbers import figure
from wholegrain.report.tables import TableView

_HALF = 0.5 - 1e-9  # as figures count it: the last bits of an IoU decide no hit

MAX_PHOTO_SIDE = 480
"""Photos are shrunk to this: twice the width at which the page shows them."""
PHOTO_QUALITY = 80


def write_report(path: Path, report: Report) -> Path:
    """Write `report` to `path` (HTML) and return it; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        aside.write_text(render_report(report), encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def render_report(report: Report) -> str:
    """The HTML of `report`."""
    templates = Environment(
        loader=PackageLoader("wholegrain.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["breakable"] = breakable
    source, _, _ = templates.loader.get_source(templates, "report.css")  # type: ignore[union-attr]
    curves = read_curves(report.metrics_path)
    return templates.get_template("report.html.j2").render(
        report=report,
        style=Markup(source),
        created=report.created.strftime("%-d %B %Y, %H:%M %Z"),
        tables=[TableView.of(table) for table in report.results],
        charts=chart_views(curves),
        curves=curves,
        case_groups=[CaseGroup.of(name, cases) for name, cases in report.cases.items() if cases],
        environment={name: str(value) for name, value in report.environment.items()},
    )


@dataclass(frozen=True, slots=True)
class ChartView:
    """A chart with its heading: `group` and `name` are the metric's name cut at its first '/'."""

    group: str
    name: str
    svg: Markup
    last: Mapping[str, str]
    """Split to its last value, written."""


def chart_views(curves: Curves) -> list[ChartView]:
    """One chart a metric, those of a group side by side."""
    return [_chart_view(name, curves) for name in in_groups(curves.series)]


def _chart_view(full_name: str, curves: Curves) -> ChartView:
    splits = dict(sorted(curves.series[full_name].items(), key=lambda item: item[0] != "train"))
    group, slash, name = full_name.rpartition("/")
    return ChartView(
        group=group + slash,
        name=name,
        svg=line_chart(full_name, splits, curves.last_step),
        last={split: figure(series[max(series)]) for split, series in splits.items()},
    )


@dataclass(frozen=True, slots=True)
class CaseView:
    """A case ready for the template: photo as a data URI, boxes as x, y, width, height."""

    case: Case
    photo: str
    width: int
    height: int
    truth: tuple[str, ...] | None
    predicted: tuple[str, ...] | None
    verdict: str
    """'hit' from an IoU of 0.5, else 'miss'; empty without an IoU."""

    @staticmethod
    def of(case: Case) -> CaseView:
        height, width = case.image.shape[:2]
        return CaseView(
            case=case,
            photo=photo_uri(case.image),
            width=width,
            height=height,
            truth=_corner_and_size(case.truth),
            predicted=_corner_and_size(case.predicted),
            verdict="" if case.iou is None else "hit" if case.iou >= _HALF else "miss",
        )

    @property
    def alt(self) -> str:
        """The figure in words."""
        parts = [f"Photo for “{self.case.text}”"]
        for name, box in (("true", self.case.truth), ("predicted", self.case.predicted)):
            if box is not None:
                parts.append(f"{name} box {', '.join(f'{side:.0f}' for side in box)}")
        if self.case.iou is not None:
            parts.append(f"IoU {self.case.iou:.2f}")
        return "; ".join(parts)


def _corner_and_size(box: Box | None) -> tuple[str, ...] | None:
    if box is None:
        return None
    left, top, right, bottom = box
    return tuple(f"{v:.1f}" for v in (left, top, max(right - left, 0), max(bottom - top, 0)))


def photo_uri(image: np.ndarray) -> str:
    """`image` (H, W, 3) uint8, shrunk if large, as a WebP data URI."""
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_PHOTO_SIDE, MAX_PHOTO_SIDE), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    picture.save(packed, "WEBP", quality=PHOTO_QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}"


@dataclass(frozen=True, slots=True)
class CaseGroup:
    """Cases below one heading; `aspect` is the width over height of their tiles."""

    heading: str
    cases: list[CaseView]
    aspect: float

    @staticmethod
    def of(heading: str, cases: Sequence[Case]) -> CaseGroup:
        # The photos' median, so that most of them fill their tile.
        middle = median(case.image.shape[1] / case.image.shape[0] for case in cases)
        aspect = round(min(max(middle, 3 / 4), 3 / 2), 3)
        return CaseGroup(heading, [CaseView.of(case) for case in cases], aspect)


def breakable(name: str) -> Markup:
    """A metric's name that may break after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))
