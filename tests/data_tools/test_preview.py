import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from data_tools.preview import marks
from wholegrain.data.record import Record, Reference, Region

Run = Callable[..., Any]


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def corpus(coco_layout: Any, tmp_path: Path, data_tools: Run) -> Path:
    hostile = "<script>alert(1)</script> & 'quotes'"
    coco_layout.change(
        coco_layout.captions, lambda layout: layout["annotations"][0].update(caption=hostile)
    )
    out = tmp_path / "corpus"
    assert data_tools("convert", "coco", *coco_layout.flags, "--out", out).status == 0
    return out


def test_a_page_holds_everything(corpus: Path, tmp_path: Path, data_tools: Run) -> None:
    file = tmp_path / "new" / "page.html"
    ran = data_tools("preview", corpus, "--out", file)
    assert ran.status == 0, ran.err
    page = Page(file.read_text())
    assert len(page.of("img")) == 3
    assert all(str(img["src"]).startswith("data:image/jpeg;base64,") for img in page.of("img"))
    lines = [rect for rect in page.of("rect") if rect["class"] == "line"]
    assert {"class": "line", "x": "1.5", "y": "2.25", "width": "20.0", "height": "30.0"} in lines
    assert len(lines) == 3
    assert not re.search(r"https?://|url\(|@import", file.read_text())


def test_texts_are_escaped(corpus: Path, tmp_path: Path, data_tools: Run) -> None:
    data_tools("preview", corpus, "--out", tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert not page.of("script")
    assert "<script>alert(1)</script> & 'quotes'" in page.text


def test_a_folder_holds_page_and_photos(corpus: Path, tmp_path: Path, data_tools: Run) -> None:
    out = tmp_path / "folder"
    assert data_tools("preview", corpus, "--out", out, "--count", "2").status == 0
    page = Page((out / "index.html").read_text())
    assert len(page.of("img")) == 2
    for img in page.of("img"):
        assert (out / str(img["src"])).read_bytes().startswith(b"\xff\xd8")


@pytest.mark.parametrize("name", ["page.html", "folder"])
def test_what_exists_is_kept(corpus: Path, tmp_path: Path, data_tools: Run, name: str) -> None:
    command = ["preview", corpus, "--out", tmp_path / name]
    assert data_tools(*command).status == 0
    ran = data_tools(*command)
    assert ran.status == 2 and name in ran.err
    assert data_tools(*command, "--overwrite").status == 0


def test_boxes_beyond_the_limit_are_counted(corpus: Path, tmp_path: Path, data_tools: Run) -> None:
    data_tools("preview", corpus, "--out", tmp_path / "page.html", "--boxes", "1")
    page = Page((tmp_path / "page.html").read_text())
    assert len([rect for rect in page.of("rect") if rect["class"] == "line"]) == 2
    assert "and 1 more, not drawn" in page.text


def test_the_seed_decides_which_samples(corpus: Path, tmp_path: Path, data_tools: Run) -> None:
    def shown(seed: int) -> str:
        out = tmp_path / f"{seed}.html"
        flags = ["--count", "1", "--seed", seed, "--overwrite"]
        assert data_tools("preview", corpus, "--out", out, *flags).status == 0
        found = re.search(r"coco/\d+", Page(out.read_text()).text)
        assert found is not None
        return found[0]

    assert shown(3) == shown(3)
    assert len({shown(seed) for seed in range(8)}) == 3


def test_an_unknown_split_leaves_nothing(corpus: Path, tmp_path: Path, data_tools: Run) -> None:
    ran = data_tools("preview", corpus, "--out", tmp_path / "page.html", "--split", "test")
    assert ran.status == 2 and "'test'" in ran.err
    assert not (tmp_path / "page.html").exists()


def test_marks_draw_every_box_of_a_phrase() -> None:
    ref = Reference("refcoco-unc", 7, (1, 2, 3), "val")
    boxes = ((0.0, 0.0, 10.0, 10.0), (50.0, 20.0, 50.0, 20.0))
    both = Region("region", (0.0, 0.0, 100.0, 40.0), ("men", "two", "men"), ("people",), ref, boxes)
    one = Region("object", (25.0, 10.0, 5.0, 5.0), ("dog",), ("red",))
    first, second = marks(Record("i", "s", "val", 100, 40, regions=(both, one)))
    assert first.boxes == boxes
    assert first.corners == ((0, 0), (50, 50))
    assert (first.texts, first.note) == ("men ×2 · two", "(people, refcoco-unc 7)")
    assert (second.number, second.grain, second.corners) == (2, "object", ((25, 25),))
    assert first.colour != second.colour


def test_an_object_and_its_phrases_share_a_mark() -> None:
    box = (25.0, 10.0, 5.0, 5.0)
    dog = Region("object", box, ("dog",), ("red",))
    phrase = Region("region", box, ("the dog", "a red dog"), ("red",))
    (mark,) = marks(Record("i", "s", "val", 100, 40, regions=(dog, phrase)))
    assert (mark.grain, mark.texts, mark.note) == ("region", "dog · the dog · a red dog", "(red)")
    assert mark.boxes == (box,)
