from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_tools.augmentations import read_rules
from tests.browser import chromium, is_blank, running_chromium
from wholegrain.data.corpus import Corpus
from wholegrain.data.record import Record, Region
from wholegrain.data.sampling import ConceptSampling
from wholegrain.data.shard import ShardWriter
from wholegrain.errors import ConfigError

Run = Callable[..., Any]
HOSTILE = "</style><script>alert(1)</script> left"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Photos of train and val, each with a red square in its upper left corner."""
    import simplejpeg

    pixels = np.full((60, 80, 3), 50, np.uint8)
    pixels[5:25, 10:30] = (250, 10, 10)
    region = Region("region", (10.0, 5.0, 20.0, 20.0), ("the square on the left",))
    out = tmp_path / "corpus"
    with ShardWriter(out, source={"name": "squares", "key": "k"}) as writer:
        for number, (split, caption) in enumerate((("train", "a square"), ("val", HOSTILE))):
            record = Record(f"s/{number}", "squares", split, 80, 60, (caption,), (region,))
            writer.write(record, bytes(simplejpeg.encode_jpeg(pixels)), "jpg")
    return out


def test_the_page_shows_boxes_and_texts_as_a_batch_holds_them(
    corpus: Path, tmp_path: Path, data_tools: Run
) -> None:
    out = tmp_path / "page.html"
    rules = ("mode=none", "flip=swap", "flip_probability=1.0", "colour=0", "resolution=120")
    flags = [part for rule in rules for part in ("--set", rule)]
    done = data_tools("augmentations", corpus, "--out", out, "--draws", "2", *flags)
    assert done.status == 0 and "2 photos, 2 draws of each" in done.out
    page = out.read_text()
    boxes = re.findall(r'class="line" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height', page)
    stored = [box for box in boxes if float(box[0]) < 40]
    drawn = [box for box in boxes if float(box[0]) > 40]
    assert len(stored) == 2 and {tuple(map(float, box)) for box in stored} == {(10, 5, 20)}
    # Mirrored: 80 - 30 px of 80, on a square of 120.
    assert len(drawn) == 4 and {tuple(map(float, box)) for box in drawn} == {(75, 10, 30)}
    assert page.count("the square on the right") == 4
    assert "<script>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; right" in page
    assert data_tools("augmentations", corpus, "--out", out).status == 2
    assert data_tools("augmentations", corpus, "--out", out, "--overwrite").status == 0


def test_a_config_decides_and_a_split_or_a_count_is_enough(
    corpus: Path, tmp_path: Path, data_tools: Run
) -> None:
    config, out = tmp_path / "run.yaml", tmp_path / "page.html"
    augment = {"mode": "none", "flip": "never", "colour": 0, "resolution": 120}
    data = {"augment": augment, "sampling": {"captions_per_image": 0}}
    config.write_text(yaml.safe_dump({"data": data, "out": "runs/x"}))
    given = ("augmentations", corpus, "--config", config, "--out", out, "--draws", "2")
    done = data_tools(*given, "--split", "val")
    assert done.status == 0 and "1 photos, 2 draws of each" in done.out
    page = out.read_text()
    boxes = re.findall(r'class="line" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height', page)
    # As stored, and twice on a square of 120, where 80 x 60 px have become half as wide again.
    assert [tuple(map(float, box)) for box in boxes] == [(10, 5, 20), (15, 10, 30), (15, 10, 30)]
    assert page.count('class="caption"') == 1, "the stored photo's; draws take none"
    assert "alert(1)" in page and "a square<" not in page
    assert "1 photos" in data_tools(*given, "--count", "1", "--overwrite").out


def test_the_same_seed_gives_the_same_page(corpus: Path, tmp_path: Path, data_tools: Run) -> None:
    pages = []
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        out = tmp_path / f"{name}.html"
        assert data_tools("augmentations", corpus, "--out", out, "--seed", seed).status == 0
        pages.append(out.read_text())
    assert pages[0] == pages[1] != pages[2]


def test_rules_of_a_run_or_alone(repository: Path, tmp_path: Path) -> None:
    augment, sampling = read_rules(repository / "configs" / "pretrain" / "4m_xvlm.yaml", [])
    assert augment.mode == "xvlm" and augment.randaugment_ops == 2
    assert sampling == ConceptSampling(captions_per_image=1, max_regions=0, max_objects=0)
    alone = tmp_path / "augment.yaml"
    alone.write_text("mode: xvlm\nrandaugment_ops: 3\n")
    augment, _ = read_rules(alone, ["randaugment_ops=1", "flip=never"])
    assert (augment.mode, augment.randaugment_ops, augment.flip) == ("xvlm", 1, "never")
    alone.write_text("mod: xvlm\n")
    with pytest.raises(ConfigError, match=r"augment\.yaml.*mode"):
        read_rules(alone, [])
    with pytest.raises(ConfigError, match="flip"):
        read_rules(None, ["flip=sometimes"])


def test_all_photos_bad(corpus: Path, tmp_path: Path, data_tools: Run) -> None:
    shard = next(corpus.glob("*.tar"))
    data = shard.read_bytes()
    shard.write_bytes(data.replace(b"\xff\xd8\xff", b"\x00\x00\x00"))
    done = data_tools("augmentations", corpus, "--out", tmp_path / "page.html")
    assert done.status == 2 and "no photo could be shown" in done.err
    assert not (tmp_path / "page.html").exists()
    assert len(Corpus.open(corpus)) == 2


def test_it_can_be_looked_at(corpus: Path, tmp_path: Path, data_tools: Run) -> None:
    out = tmp_path / "page.html"
    assert data_tools("augmentations", corpus, "--out", out, "--draws", "3").status == 0
    with running_chromium(tmp_path / "profile") as browser:
        tab = browser.page(width=1400)
        tab.goto(out.as_uri())
        tab.wait("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert tab.value("document.images.length") == 8
        assert tab.value("document.documentElement.scrollWidth") <= 1400
        assert not tab.seen.console and not is_blank(tab.screenshot())


def test_what_must_run_is_not_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for must_run, outcome in (("slurm", pytest.skip), ("slurm,chromium", pytest.fail)):
        monkeypatch.setenv("WHOLEGRAIN_MUST_RUN", must_run)
        with pytest.raises(outcome.Exception, match="no Chromium here"):
            chromium()
