import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, is_blank, running_chromium
from wholegrain.data.corpus import Corpus
from wholegrain.data.record import Record, Region
from wholegrain.data.shard import ShardWriter
from wholegrain.text import Tokenizer

Run = Callable[..., Any]
HOSTILE = "</style><script>alert(1)</script> & \"quotes\" 'n' {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, photo: Any) -> Path:
    """60 records of three splits and two sources; every third has boxes."""
    out = tmp_path_factory.mktemp("stats") / "corpus"
    box = (2.0, 2.0, 10.0, 20.0)
    with ShardWriter(out, source={"name": HOSTILE}, max_samples=25) as writer:
        for n in range(60):
            regions = (
                Region("region", box, (f"dog number {n % 5}", "The Dog"), ("animals",)),
                Region("object", (0.0, 0.0, 32.0, 48.0), ("dog", HOSTILE)),
            )
            record = Record(
                id=f"a/{n}",
                source="first" if n < 45 else "second <b>",
                split=("train", "val", 'odd" <i>')[0 if n < 40 else 1 if n < 58 else 2],
                width=64,
                height=48,
                captions=(f"caption {n} of it", "a cat" if n % 2 else "a horse " + "word " * 50),
                regions=regions if n % 3 == 0 else (),
            )
            writer.write(record, photo(n % 4), "jpg")
    return out


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "cap", "##tion", "word", "a"]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n")
    return path


def damage(corpus: Path, tmp_path: Path, *numbers: int) -> Path:
    """A copy of the corpus in which the JSON of some samples is no JSON."""
    opened = Corpus.open(corpus)
    copy = tmp_path / "damaged"
    copy.mkdir()
    for file in corpus.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    for number in numbers:
        row = opened.index[number]
        with (copy / opened.shards.file(int(row["shard"]))).open("r+b") as file:
            file.seek(int(row["meta"]))
            file.write(b"?")
    return copy


def told(data_tools: Run, *arguments: object) -> dict[str, Any]:
    ran = data_tools("stats", *arguments, "--json")
    assert ran.status == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out)
    return found


def test_figures_of_the_whole(corpus: Path, data_tools: Run) -> None:
    ran = data_tools("stats", corpus)
    assert ran.status == 0 and "all 60 records read, figures are exact" in ran.out
    found = told(data_tools, corpus, "--top", "2")
    assert found["reading"] == {
        "seed": 0,
        "total": 60,
        "read": 60,
        "matched": 60,
        "bad": {},
        "complete": True,
    }
    assert found["splits"]["val"] == {
        "images": 18,
        "captions": 36,
        "regions": 6,
        "phrases": 12,
        "objects": 6,
    }
    assert found["sources"]["first"]["images"] == 45
    assert found["quantities"]["image width px"]["mean"] == 64
    assert found["quantities"]["region % of image"]["max"] == pytest.approx(100 * 200 / 3072, 1e-4)
    assert found["quantities_by_split"]["train"]["boxes in an image"]["max"] == 2
    assert found["top"]["captions"]["a cat"] == 30
    assert found["top"]["phrases"] == {"the dog": 20, "dog number 0": 4}
    assert found["top"]["objects"] == {"dog": 20, HOSTILE.lower(): 20}
    texts = found["texts"]["captions"]
    assert (texts["count"], texts["different"], texts["repeated_share"]) == (120, 62, 0.5)
    assert texts["too_long_share"] is None


def test_a_split_a_source_a_grain_and_a_text(corpus: Path, data_tools: Run) -> None:
    found = told(data_tools, corpus, "--split", "val")
    assert list(found["splits"]) == ["val"] and found["reading"]["total"] == 18
    found = told(data_tools, corpus, "--source", "second <b>")
    assert found["reading"]["matched"] == 15 and list(found["sources"]) == ["second <b>"]
    found = told(data_tools, corpus, "--grain", "object")
    assert found["splits"]["train"] == {"images": 14, "objects": 14}
    found = told(data_tools, corpus, "--grain", "region", "--text", "number 3")
    assert found["reading"]["matched"] == 4
    assert found["top"]["phrases"] == {"dog number 3": 4, "the dog": 4}
    ran = data_tools("stats", corpus, "--split", "test")
    assert ran.status == 2 and "val (18)" in ran.err
    ran = data_tools("stats", corpus, "--source", "third")
    assert ran.status == 2 and "first (45)" in ran.err and "change the filter" in ran.err


def test_a_sample_is_an_estimate_and_says_so(corpus: Path, data_tools: Run) -> None:
    command = [corpus, "--sample", "20"]
    found = told(data_tools, *command)
    assert (found["reading"]["read"], found["reading"]["complete"]) == (20, False)
    assert found["quantities"]["caption words"]["count"] == 40
    assert found["corpus"]["counts"]["captions"] == 120
    assert found == told(data_tools, *command)
    assert found["splits"] != told(data_tools, *command, "--seed", "1")["splits"]
    ran = data_tools("stats", *command)
    assert "20 of 60 records read (seed 0), figures are of these" in ran.out
    assert told(data_tools, corpus, "--sample", "all")["reading"]["complete"]


def test_tokens_are_counted_as_training_counts_them(
    corpus: Path, vocabulary: Path, data_tools: Run
) -> None:
    found = told(data_tools, corpus, "--vocab", vocabulary)
    tokenizer = Tokenizer.from_vocab(vocabulary)
    captions = [c for n in range(60) for c in Corpus.open(corpus).record(n).captions]
    lengths = [len(tokenizer.encode(text, 10**6, 10**6)) for text in captions]
    row = found["quantities"]["caption tokens"]
    assert (row["min"], row["max"]) == (min(lengths), max(lengths))
    assert row["mean"] == pytest.approx(sum(lengths) / len(lengths), rel=1e-4)
    assert found["texts"]["captions"]["too_long_share"] == 0.25
    found = told(data_tools, corpus, "--vocab", vocabulary, "--max-tokens", "3")
    cut = sum(len(tokenizer.encode(text, 4)) > 3 for text in captions) / len(captions)
    assert found["texts"]["captions"]["too_long_share"] == pytest.approx(cut, abs=1e-6)
    ran = data_tools("stats", corpus, "--vocab", corpus / "manifest.json")
    assert ran.status == 2 and "manifest.json" in ran.err


def test_bad_records_are_counted_and_shown(corpus: Path, tmp_path: Path, data_tools: Run) -> None:
    copy, out = damage(corpus, tmp_path, 3, 50), tmp_path / "page.html"
    ran = data_tools("stats", copy, "--out", out)
    assert ran.status == 0 and "left out as bad: record: record (2)" in ran.out
    page = out.read_text()
    assert "Left out as bad: record: record (2)." in page and "sample 3" in page
    assert "the figures are exact" not in page
    (tmp_path / "all").mkdir()
    ran = data_tools("stats", damage(corpus, tmp_path / "all", *range(60)))
    assert ran.status == 2 and "none of the 60 records read is sound" in ran.err


def test_what_exists_is_kept(corpus: Path, tmp_path: Path, data_tools: Run) -> None:
    out = tmp_path / "new" / "stats.html"
    assert data_tools("stats", corpus, "--out", out).status == 0
    before = out.read_bytes()
    ran = data_tools("stats", corpus, "--sample", "9", "--out", out)
    assert ran.status == 2 and "stats.html" in ran.err and out.read_bytes() == before
    assert data_tools("stats", corpus, "--out", out, "--overwrite").status == 0
    assert list(out.parent.iterdir()) == [out]
    assert data_tools("stats", corpus, "--out", tmp_path).status == 2


class Tags(HTMLParser):
    """Tags of a page with their attributes, and all text outside of style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def page(corpus: Path, tmp_path: Path, data_tools: Run) -> Path:
    out = tmp_path / "stats.html"
    assert data_tools("stats", corpus, "--sample", "50", "--out", out).status == 0
    return out


def test_the_page_holds_everything(page: Path) -> None:
    tags = Tags(page.read_text())
    names = [name for name, _ in tags.tags]
    assert "script" not in names and "link" not in names and "img" not in names
    policy = next(a["content"] for n, a in tags.tags if n == "meta" and "http-equiv" in a)
    assert str(policy).startswith("default-src 'none'") and "script-src" not in str(policy)
    assert not re.search(r"https?://|url\(|@import", page.read_text())
    assert HOSTILE in tags.text and "second <b>" in tags.text
    # Four views of each histogram: all of them, and three splits.
    assert names.count("svg") >= 4 * 10


def test_the_page_says_what_is_exact(corpus: Path, page: Path, data_tools: Run) -> None:
    text = " ".join(Tags(page.read_text()).text.split())
    assert "50 of 60 records were read, drawn at random with seed 0" in text
    assert "Exact, from the corpus's manifest." in text and "In the 50 records read." in text
    assert "Tokens were not counted" in text
    data_tools("stats", corpus, "--out", page, "--overwrite", "--text", "cat", "--sample", "50")
    text = " ".join(Tags(page.read_text()).text.split())
    found = re.search(r"Of them (\d+) match text cat, so about (\d+) ± (\d+) of the whole", text)
    assert found is not None
    matched, about, error = map(int, found.groups())
    assert about == round(matched / 50 * 60) and abs(about - 30) <= 2 * error
    assert "Exact" not in text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


def shown(tab: Any) -> set[str]:
    return set(
        tab.value(
            "[...document.querySelectorAll('.view')].filter(e => e.checkVisibility())"
            ".map(e => e.className)"
        )
    )


def test_splits_are_chosen_by_mouse_and_keys(browser: Browser, page: Path) -> None:
    tab = browser.page()
    tab.goto(page.as_uri())
    assert tab.value("document.compatMode") == "CSS1Compat"
    assert shown(tab) == {"view v0"}
    assert tab.value("[...document.querySelectorAll('.pick bdi')].map(e => e.textContent)") == [
        *("train", "val", 'odd" <i>')
    ]
    tab.value("document.getElementById('v2').click()")
    assert shown(tab) == {"view v2"}
    assert tab.value("[...document.querySelectorAll('.v2 .outline')].length") > 10
    tab.value("document.getElementById('v0').focus()")
    tab.press("ArrowRight", 39)
    assert shown(tab) == {"view v1"}
    assert tab.seen.console == [] and tab.seen.requests == [page.as_uri()]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_window(browser: Browser, page: Path, width: int, scheme: str) -> None:
    tab = browser.page(width)
    tab.prefer(scheme)
    tab.goto(page.as_uri())
    for view in range(4):
        tab.value(f"document.getElementById('v{view}').click()")
        assert tab.too_wide() == []
    picture = tab.screenshot()
    assert picture.width == width and not is_blank(picture)
    assert (sum(picture.getpixel((1, 1))) > 384) is (scheme == "light")
