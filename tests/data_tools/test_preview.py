import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from PIL import Image

from data_tools.looking.filters import GRAINS, RecordFilter, TextQuery
from tests.browser import Browser, dump_dom, is_blank, running_chromium
from tests.browser import Page as Tab
from wholegrain.data.corpus import Corpus
from wholegrain.data.record import Absent, Record, Reference, Region
from wholegrain.data.shard import ShardWriter

Run = Callable[..., Any]
HOSTILE = (
    "<script>alert(1)</script> & 'quotes'",
    "\"'><img src=x onerror=alert(2)>",
    "</style></title></script>{{ 7 * 7 }}{% raw %}",
    "\u202ereversed\u202c كلب أسود يركض",
    "👩\u200d👩\u200d👧 a 🐕 runs",
    "x" * 5000,
    "many words " * 450,
)


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of the script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.script = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.script += data
        else:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def lines(self) -> list[dict[str, str | None]]:
        return [rect for rect in self.of("rect") if rect["class"] == "line"]


@pytest.fixture
def corpus(coco_layout: Any, tmp_path: Path, data_tools: Run) -> Path:
    out = tmp_path / "corpus"
    assert data_tools("convert", "coco", *coco_layout.flags, "--out", out).status == 0
    return out


def zoo_records() -> list[Record]:
    """Records of three sources and two splits, of every grain, and with hostile texts."""
    box, small = (4.0, 4.0, 40.0, 40.0), (10.0, 10.0, 8.0, 8.0)
    red = Region("object", box, ("dog",), ("red", "wet"))
    phrase = Region("region", box, ("the red dog", "a wet one"))
    nose = Region("region", small, ("its nose",))
    ref = Reference("refcoco-unc", 7, (1,), "val")
    said = Region("region", small, ("dog on left",), ref=ref)
    cat = Region("object", small, ("cat",))
    bodies: list[tuple[tuple[str, ...], tuple[Region, ...]]] = [
        (("Two dogs run.", "a hotdog"), ()),
        ((), (red, phrase, nose)),
        (("a woman",), (cat,)),
        ((), (said,)),
        (("黒い犬が走る", "C++ and dogs"), (cat, red)),
        ((HOSTILE[0], HOSTILE[5]), (Region("region", box, HOSTILE[1:]),)),
        (("the last man",), (nose, cat)),
    ]
    return [
        Record(
            id=f"zoo/{n}",
            source=("coco", 'o"p<e>n', "vg")[n % 3],
            split="val" if n < 4 else "train",
            width=64,
            height=48,
            captions=captions,
            regions=regions,
            absent=(Absent(("no dog here",)),) if n == 6 else (),
        )
        for n, (captions, regions) in enumerate(bodies)
    ]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, photo: Any) -> Path:
    out = tmp_path_factory.mktemp("zoo") / "corpus"
    with ShardWriter(out, source={"name": "zoo"}) as writer:
        for n, record in enumerate(zoo_records()):
            writer.write(record, photo(n), "jpg")
    return out


@pytest.fixture
def zoo_page(zoo: Path, tmp_path: Path, data_tools: Run) -> Path:
    assert data_tools("preview", zoo, "--out", tmp_path / "zoo.html").status == 0
    return tmp_path / "zoo.html"


def test_a_page_holds_everything(corpus: Path, tmp_path: Path, data_tools: Run) -> None:
    file = tmp_path / "new" / "page.html"
    ran = data_tools("preview", corpus, "--out", file)
    assert ran.status == 0, ran.err
    page = Page(file.read_text())
    assert len(page.of("img")) == 3
    assert all(str(img["src"]).startswith("data:image/jpeg;base64,") for img in page.of("img"))
    box = {"class": "line", "x": "1.5", "y": "2.25", "width": "20.0", "height": "30.0"}
    assert box in page.lines() and len(page.lines()) == 3
    assert not re.search(r"https?://|url\(|@import", file.read_text())


def test_without_the_script_everything_is_shown(zoo_page: Path) -> None:
    page = Page(zoo_page.read_text())
    hidden = [
        (tag, attrs.get("id", attrs.get("class"))) for tag, attrs in page.tags if "hidden" in attrs
    ]
    assert hidden == [("form", "filters"), ("p", "none")]


def test_texts_are_escaped(zoo_page: Path) -> None:
    page = Page(zoo_page.read_text())
    assert len(page.of("script")) == 1 and "alert" not in page.script
    assert len(page.of("img")) == 7 and not any("onerror" in img for img in page.of("img"))
    for text in HOSTILE:
        assert text in page.text
    assert {figure["data-source"] for figure in page.of("figure")} == {"coco", 'o"p<e>n', "vg"}


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
    assert len(page.lines()) == 2
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


def test_a_filter_chooses_the_sample(zoo: Path, tmp_path: Path, data_tools: Run) -> None:
    out = tmp_path / "page.html"
    ran = data_tools("preview", zoo, "--out", out, "--grain", "object", "--text", "cat")
    assert ran.status == 0 and "3 of 7 records read match grain object, text cat" in ran.out
    page = Page(out.read_text())
    assert len(page.of("figure")) == 3
    told = " ".join(page.text.split())
    assert "3 of 7 records read matched grain object, text cat; at most 20,000 are read." in told
    ran = data_tools("preview", zoo, "--out", out, "--overwrite", "--source", 'o"p<e>n')
    assert ran.status == 0 and len(Page(out.read_text()).of("figure")) == 2


def test_no_more_is_read_than_allowed(zoo: Path, tmp_path: Path, data_tools: Run) -> None:
    out = tmp_path / "page.html"
    ran = data_tools("preview", zoo, "--out", out, "--text", "unicorn", "--read", "4")
    assert ran.status == 2 and not out.exists()
    assert "none of the 4 records read (of 7) matches text unicorn" in ran.err
    assert ran.err.rstrip().endswith("raise --read")
    ran = data_tools("preview", zoo, "--out", out, "--text", "unicorn")
    assert ran.status == 2 and ran.err.rstrip().endswith("change the filter")
    with pytest.raises(SystemExit):
        data_tools("preview", zoo, "--out", out, "--text", "/(/")


@pytest.mark.parametrize("name", ["page.html", "folder"])
def test_bad_samples_are_counted_and_shown(
    zoo: Path, tmp_path: Path, data_tools: Run, name: str
) -> None:
    opened, copy = Corpus.open(zoo), tmp_path / "damaged"
    copy.mkdir()
    for file in zoo.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    with (copy / opened.shards.file(0)).open("r+b") as shard:
        shard.seek(int(opened.index[2]["meta"]))
        shard.write(b"?")
        shard.seek(int(opened.index[4]["image"]))
        shard.write(b"<html>")
    ran = data_tools("preview", copy, "--out", tmp_path / name)
    assert ran.status == 0 and "6 samples" in ran.out and "left out as bad" in ran.out
    out = tmp_path / name
    page = Page((out if out.is_file() else out / "index.html").read_text())
    assert (len(page.of("figure")), len(page.of("img"))) == (6, 5)
    assert "This photo cannot be decoded." in page.text
    assert "sample 2" in page.text and "sample 4" in page.text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


VISIBLE_IDS = (
    "[...document.querySelectorAll('.card')].filter(e => e.checkVisibility())"
    ".map(e => e.querySelector('.id bdi').textContent)"
)


def visible_ids(tab: Tab) -> list[str]:
    found: list[str] = tab.value(VISIBLE_IDS)
    return found


def opacity(tab: Tab, selector: str) -> float:
    return float(tab.value(f"getComputedStyle(document.querySelector('{selector}')).opacity"))


def test_a_link_filters(zoo_page: Path, tmp_path: Path) -> None:
    dom = dump_dom(f"{zoo_page.as_uri()}#grain=object&text=dog", tmp_path / "profile")
    figures = [attrs for tag, attrs in Page(dom).tags if tag == "figure"]
    assert [n for n, attrs in enumerate(figures) if "hidden" not in attrs] == [1, 4]
    assert "2 of 7 shown" in dom


@pytest.mark.slow
def test_the_page_filters_as_the_command_does(browser: Browser, zoo: Path, zoo_page: Path) -> None:
    corpus, tab = Corpus.open(zoo), browser.page()
    records = [corpus.record(n) for n in range(len(corpus))]
    texts = [
        *("dog", "two dogs", "man", "the one", "/^a .*/", "/dogs?$/", "red wet", "c++", "DOG"),
        *("犬", "كلب", "🐕", "alert(1)", "nose)", "/", "unicorn", "no here"),
    ]
    states = [{"grain": grain, "text": text} for grain in (None, *GRAINS) for text in texts]
    for grain in (None, *GRAINS):
        for text in (None, "dog"):
            for source, split in ((None, "val"), ('o"p<e>n', None), ("vg", "val"), ("x", None)):
                states.append({"grain": grain, "text": text, "source": source, "split": split})
    tab.goto(zoo_page.as_uri())
    shown = tab.value(
        f"""{json.dumps([urlencode({k: v for k, v in s.items() if v}) for s in states])}
        .map(state => {{
          history.replaceState(null, "", "#" + state);
          dispatchEvent(new Event("hashchange"));
          return {{ids: {VISIBLE_IDS}, none: !document.querySelector(".none").hidden}};
        }})"""
    )
    for state, found in zip(states, shown, strict=True):
        query = TextQuery(state["text"]) if state["text"] else None
        wanted, split = RecordFilter(state.get("source"), state["grain"], query), state.get("split")
        right = [r.id for r in records if wanted.matches(r) and split in (None, r.split)]
        assert found == {"ids": right, "none": not right}, state
    assert tab.seen.console == []


def test_a_filter_leaves_what_it_means(browser: Browser, zoo_page: Path) -> None:
    tab = browser.page()
    tab.goto(f"{zoo_page.as_uri()}#grain=object")
    seen = (
        "[...document.querySelectorAll('.card .t')].filter(e => e.checkVisibility())"
        ".map(e => e.textContent.trim())"
    )
    assert sorted(set(tab.value(seen))) == ["cat", "dog", "red, wet"]
    # Chromium calls what is inside a hidden <g> visible.
    drawn = (
        "[...document.querySelectorAll('.card:not([hidden]) g')]"
        ".filter(e => getComputedStyle(e).display != 'none').length"
    )
    assert tab.value(drawn) == 5
    tab.goto(f"{zoo_page.as_uri()}#boxes=region")
    # Where an object and a phrase have one box, it is drawn for the phrase's sake.
    assert tab.value(drawn) == 5
    tab.goto(f"{zoo_page.as_uri()}#text=nose")
    assert tab.value("document.querySelectorAll('.found').length") == 2
    assert tab.value("[...document.querySelectorAll('.picture .tag.aside')].length") == 1


def test_the_form_writes_the_link(browser: Browser, zoo_page: Path) -> None:
    tab = browser.page()
    tab.goto(zoo_page.as_uri())
    tab.press("/", 191, "/")
    tab.type("red dog")
    assert tab.value("document.activeElement.name") == "text"
    assert tab.value("location.hash") == "#text=red+dog"
    assert visible_ids(tab) == ["zoo/1"]
    tab.value("document.querySelector('input[value=object][name=grain]').click()")
    assert visible_ids(tab) == []
    assert tab.value("location.hash") == "#grain=object&text=red+dog"
    tab.value("document.querySelector('button[type=reset]').click()")
    assert len(visible_ids(tab)) == 7 and tab.value("location.hash") in ("", "#")
    tab.value("document.querySelector('[name=boxes][value=region]').click()")
    assert tab.value("location.hash") == "#boxes=object"
    tab.value("document.querySelector('[name=text]').focus()")
    tab.type("/(/")
    assert tab.value("document.querySelector('output').textContent") == "no regular expression"
    assert len(visible_ids(tab)) == 7


def test_a_text_singles_out_its_box(browser: Browser, zoo_page: Path) -> None:
    tab = browser.page()
    tab.goto(f"{zoo_page.as_uri()}#source=o%22p%3Ce%3En&split=val")
    assert visible_ids(tab) == ["zoo/1"]
    card = '.card[data-split="val"][data-source^="o"] '
    one, two = card + ".tag.b1", card + ".tag.b2"
    tab.point_at(card + ".r1 .t")
    tab.wait(f"getComputedStyle(document.querySelector('{two}')).opacity < 0.2")
    assert opacity(tab, one) == 1
    tab.point_at("h1")
    tab.wait(f"getComputedStyle(document.querySelector('{two}')).opacity == 1")
    # By keys: the list takes the focus, arrows go through it.
    tab.value(f"document.querySelector('{card} .regions').focus()")
    tab.press("ArrowDown", 40)
    tab.press("ArrowDown", 40)
    tab.wait(f"getComputedStyle(document.querySelector('{one}')).opacity < 0.2")
    assert opacity(tab, two) == 1
    tab.press("Escape", 27)
    tab.wait(f"getComputedStyle(document.querySelector('{one}')).opacity == 1")
    # The other way round: a box singles out its text.
    tab.point_at(card + "g.b2 rect.line")
    tab.wait(f"getComputedStyle(document.querySelector('{one}')).opacity < 0.2")
    assert tab.value(
        f"getComputedStyle(document.querySelector('{card} .r2')).backgroundColor"
        f" != getComputedStyle(document.querySelector('{card} .r1')).backgroundColor"
    )


def test_nothing_foreign_runs_or_loads(browser: Browser, zoo_page: Path) -> None:
    tab = browser.page()
    tab.goto(zoo_page.as_uri())
    assert tab.value("document.compatMode") == "CSS1Compat"
    assert tab.seen.console == [] and tab.seen.requests == [zoo_page.as_uri()]
    tab.value(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        " document.body.append(s); const i = new Image(); i.src = 'http://127.0.0.1:9/x.png';"
        " document.body.append(i) })()"
    )
    assert tab.value("window.ran === undefined")
    assert len([told for told in tab.seen.console if "Content Security Policy" in told]) == 2


def test_a_folder_shows_its_photos(
    browser: Browser, zoo: Path, tmp_path: Path, data_tools: Run
) -> None:
    out = tmp_path / "folder"
    assert data_tools("preview", zoo, "--out", out).status == 0
    tab = browser.page(height=5000)
    tab.goto((out / "index.html").as_uri())
    tab.wait("[...document.images].every(i => i.complete)")
    assert tab.value("[...document.images].every(i => i.naturalWidth === 64)")
    assert tab.seen.console == []
    assert all(url.startswith(out.as_uri()) for url in tab.seen.requests)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_window(
    browser: Browser, zoo_page: Path, width: int, scheme: str
) -> None:
    tab = browser.page(width)
    tab.prefer(scheme)
    tab.goto(zoo_page.as_uri())
    tab.value("document.querySelectorAll('details').forEach(e => { e.open = true })")
    assert tab.too_wide() == []
    picture = tab.screenshot()
    assert picture.width == width and not is_blank(picture)
    assert (sum(picture.getpixel((1, 1))) > 384) is (scheme == "light")


@pytest.mark.parametrize("name", ["page.html", "folder"])
def test_boxes_and_photo_share_their_frame(
    browser: Browser, tmp_path: Path, data_tools: Run, name: str
) -> None:
    # Left half red, right half blue as stored, with the note that it should be turned: boxes mean
    # the stored pixels, so the page must not turn it.
    photo = Image.new("RGB", (80, 40), "red")
    photo.paste("blue", (40, 0, 80, 40))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    photo.save(file, "JPEG", exif=exif, quality=95)
    box = (40.0, 0.0, 40.0, 40.0)
    record = Record("i/0", "s", "val", 80, 40, regions=(Region("region", box, ("the blue half",)),))
    with ShardWriter(tmp_path / "corpus", source={}) as writer:
        writer.write(record, file.getvalue(), "jpg")
    out = tmp_path / name
    assert data_tools("preview", tmp_path / "corpus", "--out", out).status == 0
    tab = browser.page()
    tab.goto((out if out.is_file() else out / "index.html").as_uri())
    tab.wait("[...document.images].every(i => i.complete)")
    x, y, width, height = tab.value(
        "(r => [r.x, r.y, r.width, r.height])"
        "(document.querySelector('.picture').getBoundingClientRect())"
    )
    picture = tab.screenshot()
    left = picture.getpixel((round(x + 0.25 * width), round(y + 0.5 * height)))
    right = picture.getpixel((round(x + 0.75 * width), round(y + 0.5 * height)))
    assert left[0] > 200 > 60 > left[2] and right[2] > 200 > 60 > right[0]


def test_large_photos_are_reduced_inside_a_page(
    tmp_path: Path, photo: Any, data_tools: Run
) -> None:
    record = Record("i/0", "s", "val", 1600, 800, ("words",))
    with ShardWriter(tmp_path / "corpus", source={}) as writer:
        writer.write(record, photo(1, 1600, 800), "jpg")
    out = tmp_path / "page.html"
    assert data_tools("preview", tmp_path / "corpus", "--out", out).status == 0
    (img,) = Page(out.read_text()).of("img")
    data = base64.b64decode(str(img["src"]).partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (640, 320)
    assert (img["width"], img["height"]) == ("1600", "800")
