"""The report page: whole, self-contained, and safe with any text."""

import base64
import io
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wholegrain.report import Case, Estimate, Report, ResultTable, render_report, write_report

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>"
PHOTO = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


class Page(HTMLParser):
    """Elements with their attributes, and all text outside of style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "wbr"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(key) == value for key, value in attributes.items())
        ]


def page(**fields: object) -> Page:
    values = {"title": "A stage", "command": "python -m pretrain", "config_yaml": "seed: 0"}
    return Page(render_report(Report(**{**values, **fields})))  # type: ignore[arg-type]


def test_text_is_never_markup() -> None:
    table = ResultTable(EVIL, [EVIL, EVIL], [[EVIL, EVIL]], note=EVIL, command=EVIL)
    seen = page(
        title=EVIL,
        command=EVIL,
        config_yaml=EVIL,
        summary=EVIL,
        results=[table],
        cases={EVIL: [Case(PHOTO, EVIL, caption=EVIL)]},
        environment={EVIL: EVIL},
    )
    assert seen.all("script") == [] and seen.all("img") == []
    # Title twice; the table's name, note, command, 2 heads and 2 cells; the case's heading, text
    # and caption; the environment's name and value; and the other three fields.
    assert seen.text.count("alert('x')") == 2 + 7 + 3 + 2 + 3
    assert all(not name.startswith("on") for _, found in seen.elements for name in found)


def test_metric_names_are_never_markup(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "<script>/a_<b>": 1.0}\n')
    seen = page(metrics_path=metrics)
    assert seen.all("script") == []
    assert "<script>/a_<b>" in seen.text


def test_nothing_is_fetched_and_nothing_may_run() -> None:
    seen = page(cases={"A sample": [Case(PHOTO, "dog", (1, 2, 30, 40), (0, 0, 20, 20), 0.4)]})
    (policy,) = seen.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in str(policy["content"])
    for _, found in seen.elements:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert found.get(name) is None or str(found[name]).startswith("data:image/webp")
    assert seen.all("link") == []


def test_photos_are_embedded_shrunk_and_boxes_are_in_their_pixels() -> None:
    large = np.zeros((1500, 3000, 3), np.uint8)
    case = Case(large, "dog", (100, 200, 400, 800), (0, 0, 3000, 1500), 0.04)
    seen = page(cases={"Worst": [case]})
    (image,) = seen.all("image")
    uri = str(image["href"])
    photo = Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))
    assert photo.size == (480, 240)
    (svg,) = seen.all("svg", **{"class": "photo"})
    assert svg["viewbox"] == "0 0 3000 1500"
    (box,) = seen.all("rect", **{"class": "box predicted", "x": "100.0"})
    assert (box["y"], box["width"], box["height"]) == ("200.0", "300.0", "600.0")
    assert "dog" in str(svg["aria-label"]) and "IoU 0.04" in str(svg["aria-label"])


def test_a_case_without_boxes_draws_none() -> None:
    seen = page(cases={"A sample": [Case(PHOTO, "dog")], "Best": []})
    figures = [found for found in seen.all("svg") if found.get("role") == "img"]
    assert len(figures) == 1 and "Best" not in seen.text
    assert seen.all("rect", **{"class": "box truth"})[1:] == []  # only the key's own


def test_baselines_stand_below_the_figures() -> None:
    table = ResultTable(
        "Val",
        ["model", "Acc@0.5", "n"],
        [["best constant box", 0.296, 3239], ["ours", Estimate(0.42, 0.4, 0.44), None]],
        baselines=[0],
    )
    seen = page(results=[table])
    assert [b["class"] for b in seen.all("tbody")] == ["figures", "baselines"]
    words = re.sub(r"\s+", " ", seen.text)
    assert "ours 0.420 0.400–0.440 – best constant box 0.296 3,239" in words
    assert seen.all("th", colspan="2"), "a column with intervals takes two"


def test_tables_refuse_rows_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="row 0: 1 cells under 2 columns"):
        ResultTable("T", ["a", "b"], [["x"]])
    with pytest.raises(ValueError, match=r"baselines \[3\] are not row indices"):
        ResultTable("T", ["a"], [["x"]], baselines=[3])


def test_cases_refuse_what_is_no_photo() -> None:
    with pytest.raises(ValueError, match=r"float64 \(4, 4, 3\); give uint8"):
        Case(np.zeros((4, 4, 3)), "dog")


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run" / "report.html"
    report = Report("A", "c", "y", created=datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
    assert write_report(out, report) == out
    before = out.read_text()
    assert "2 January 2026, 03:04 UTC" in before and before.endswith("</html>\n")
    with pytest.raises(AttributeError):
        write_report(out, Report("B", "c", "y", results=[object()]))  # type: ignore[list-item]
    assert out.read_text() == before
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_no_metrics_is_said(tmp_path: Path) -> None:
    assert "No metrics were written" in page(metrics_path=tmp_path / "none.jsonl").text
