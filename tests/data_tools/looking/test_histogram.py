import re
import xml.etree.ElementTree as ET

import pytest

from data_tools.looking.distribution import Distribution, Scale, bins_for
from data_tools.looking.histogram import Frame, histogram, shares

SVG = "{http://www.w3.org/2000/svg}"


def of(values: list[float], scale: Scale) -> Distribution:
    found = Distribution(scale)
    for value in values:
        found.add(value)
    return found


def drawn(
    found: Distribution, ratio: bool = False, behind: Distribution | None = None
) -> ET.Element:
    bins = bins_for(found, 40)
    frame = Frame(bins, 1.06 * float(shares(found, bins).max()), ratio)
    text = str(histogram("words & more", found, frame, behind))
    return ET.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def bars(svg: ET.Element) -> dict[str, float]:
    rects = svg.iter(f"{SVG}rect")
    return {rect[0].text or "": float(rect.get("height", "0")) for rect in rects}


def ticks(svg: ET.Element) -> list[str]:
    return [text.text or "" for text in svg.iter(f"{SVG}text") if "%" not in (text.text or "")]


def test_heights_are_as_the_shares() -> None:
    found = bars(drawn(of([1] * 10 + [2] * 20 + [4] * 10, "whole")))
    assert list(found) == ["1: 10 (25.0 %)", "2: 20 (50.0 %)", "4: 10 (25.0 %)"]
    one, two, four = found.values()
    assert two == pytest.approx(2 * one, rel=0.01) and one == four


def test_the_last_bar_says_that_it_is_open() -> None:
    found = bars(drawn(of([1, 2, 3, 4] * 250 + [1000], "whole")))
    assert any(re.fullmatch(r"\d+ and more: 1 \(0.0999 %\)", title) for title in found)


def test_ticks_are_round() -> None:
    assert ticks(drawn(of([float(n) for n in range(100)], "whole"))) == [
        "0",
        "20",
        "40",
        "60",
        "80",
    ]
    assert ticks(drawn(of([0.01, 0.1, 1, 10, 90], "log"))) == ["0.01", "0.1", "1", "10"]
    assert ticks(drawn(of([0.3, 1, 3.5], "log"), ratio=True)) == ["1:2", "1:1", "2:1"]


def test_it_is_told_in_words() -> None:
    label = drawn(of([3] * 9 + [8], "whole")).get("aria-label")
    assert label == ("words & more: 10 values from 3 to 8, median 3, nine in ten between 3 and 8")


def test_the_outline_of_all_lies_above_a_part() -> None:
    part = of([1, 2, 2], "whole")
    svg = drawn(part, behind=of([1, 2, 3], "whole"))
    (outline,) = [p for p in svg.iter(f"{SVG}path") if p.get("class") == "outline"]
    assert len(re.findall("H", outline.get("d", ""))) == len(bins_for(part, 40).edges) - 1


def test_nothing_leaves_the_plot() -> None:
    svg = drawn(of([0.001] + [1.0] * 2000 + [1e6], "log"))
    for rect in svg.iter(f"{SVG}rect"):
        x, width, y = (float(rect.get(key, "nan")) for key in ("x", "width", "y"))
        assert x >= 38 and x + width <= 272.01 and y >= 8
