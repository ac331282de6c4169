"""What training makes of an audit: it refuses, or lets the card say what was audited."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wholegrain.data.corpus import Corpus
from wholegrain.data.leak_audit import LeakAudit, check_audit, release_extras
from wholegrain.data.record import Record
from wholegrain.data.shard import ShardWriter
from wholegrain.errors import ConfigError, DataError


def _write(folder: Path, photos: list[tuple[str, str]], overwrite: bool = False) -> Corpus:
    name = folder.name
    with ShardWriter(folder, source={"name": name}, overwrite=overwrite) as writer:
        for number, (photo, split) in enumerate(photos):
            pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            record = Record(f"{name}/{number}", name, split, 32, 24, ("a thing",), photo=photo)
            writer.write(record, file.getvalue(), "png")
    return Corpus.open(folder)


@pytest.fixture
def corpora(tmp_path: Path) -> dict[str, Corpus]:
    """`clean` and `leaky` (one of val in train, one in its own val), and `sbu` without ids."""
    return {
        "clean": _write(tmp_path / "clean", [("coco/1", "train"), ("coco/30", "val")]),
        "leaky": _write(tmp_path / "leaky", [("coco/2", "train"), ("coco/25", "train")]),
        "sbu": _write(tmp_path / "sbu", [("sbu/1", "train"), ("sbu/2", "train")]),
    }


@pytest.fixture
def audit(tmp_path: Path) -> Callable[..., str]:
    """Audits corpora against `coco/25` and `coco/30`; the path of the file."""

    def run(*corpora: Corpus, flags: tuple[str, ...] = ()) -> str:
        from data_tools.__main__ import main

        (tmp_path / "ids.txt").write_text("25\n30\n")
        out = str(tmp_path / "audit.json")
        against = f"--against=refcoco={tmp_path}/ids.txt"
        paths = [str(corpus.path) for corpus in corpora]
        assert main(["audit", *paths, against, f"--out={out}", *flags]) in (0, 1)
        return out

    return run


def test_no_audit_says_nothing(corpora: dict[str, Corpus]) -> None:
    assert check_audit(None, [corpora["leaky"]], "data.audit") == ""
    assert release_extras("") == {}


def test_clean_corpora_pass_and_the_card_says_what_was_compared(
    corpora: dict[str, Corpus], audit: Callable[..., str]
) -> None:
    path = audit(*corpora.values())
    train = [corpora["clean"].select("train"), corpora["sbu"].select("train")]
    statement = check_audit(path, train, "data.audit")
    assert statement == (
        "Leak audit: none of the 2 photos of refcoco (listed 2) is among the training photos, "
        "compared by photo id. The photos of sbu carry no such id."
    )
    assert release_extras(statement) == {"leak_audit": statement}


def test_what_is_trained_on_is_what_counts(
    corpora: dict[str, Corpus], audit: Callable[..., str]
) -> None:
    """A split's view needs its split audited; the whole folder needs all of them."""
    clean = corpora["clean"]
    path = audit(clean)
    assert check_audit(path, [clean.select("train")], "data.audit")
    with pytest.raises(ConfigError) as raised:
        check_audit(path, [clean], "data.audit")
    message = str(raised.value)
    assert f"data.audit: {path} leaves split 'val' of {clean.path} out; run `python" in message
    assert f"audit {clean.path} --against refcoco --split all --out {path}" in message
    with pytest.raises(ConfigError, match="leaves split 'val'"):
        check_audit(path, [clean.select("val")], "data.audit")
    path = audit(clean, flags=("--split", "all"))
    assert check_audit(path, [clean.select("train")], "data.audit")
    for view in (clean, clean.select("val")):
        with pytest.raises(ConfigError, match=r"split 'val' of .* holds 1 evaluation photos"):
            check_audit(path, [view], "data.audit")


def test_a_leak_is_refused(corpora: dict[str, Corpus], audit: Callable[..., str]) -> None:
    path = audit(*corpora.values())
    train = [corpora["clean"].select("train"), corpora["leaky"].select("train")]
    with pytest.raises(ConfigError) as raised:
        check_audit(path, train, "data.audit")
    message = str(raised.value)
    assert f"split 'train' of {corpora['leaky'].path} holds 1 evaluation photos" in message
    assert f"(refcoco listed 1); convert it again with `--exclude {path}`" in message


def test_a_corpus_that_was_not_audited_is_refused(
    corpora: dict[str, Corpus], audit: Callable[..., str], tmp_path: Path
) -> None:
    path = audit(corpora["clean"])
    train = [corpora["clean"].select("train"), corpora["sbu"].select("train")]
    with pytest.raises(ConfigError) as raised:
        check_audit(path, train, "data.audit")
    message = str(raised.value)
    assert f"does not cover {corpora['sbu'].path} as it is now" in message
    command = f"audit {tmp_path}/clean {tmp_path}/sbu --against refcoco --out {path}"
    assert command in message
    # Nor one that changed since.
    changed = _write(tmp_path / "clean", [("coco/1", "train")] * 3, overwrite=True)
    with pytest.raises(ConfigError, match=r"does not cover .*clean as it is now"):
        check_audit(path, [changed.select("train")], "data.audit")


def test_a_corpus_that_moved_is_still_audited(
    corpora: dict[str, Corpus], audit: Callable[..., str], tmp_path: Path
) -> None:
    path = audit(corpora["clean"])
    moved = corpora["clean"].path.rename(tmp_path / "elsewhere")
    assert check_audit(path, [Corpus.open(moved).select("train")], "data.audit")


def test_a_missing_file_names_the_command(corpora: dict[str, Corpus], tmp_path: Path) -> None:
    views = [corpora["clean"].select("train"), corpora["clean"].select("val")]
    with pytest.raises(ConfigError) as raised:
        check_audit(f"{tmp_path}/none.json", views, "data.audit")
    message = str(raised.value)
    assert message.startswith(f"data.audit is '{tmp_path}/none.json', which does not exist; make")
    assert f"audit {tmp_path}/clean --against refcoco,refcoco+,refcocog,flickr30k," in message
    assert "or set data.audit to null" in message


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda audit: audit.update(audit=9), "audit is 9, this version reads 1; update wholegr"),
        (lambda audit: audit.pop("photos"), r"damaged \(KeyError\('photos'\)\)"),
        (lambda audit: audit.update(columns=[["refcoco", "<b>"]]), "damaged .*name '<b>'"),
        (lambda audit: audit["photos"][0].update(columns=[5]), "a column that is not listed"),
        (lambda audit: audit["corpora"][0].pop("splits"), r"damaged \(KeyError\('splits'\)\)"),
        (lambda audit: audit.update(corpora=3), "damaged"),
    ],
)
def test_a_damaged_audit_is_an_error_with_its_name(
    corpora: dict[str, Corpus],
    audit: Callable[..., str],
    edit: Callable[[dict[str, Any]], object],
    message: str,
) -> None:
    path = Path(audit(corpora["clean"]))
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        LeakAudit.load(path)
    with pytest.raises(ConfigError, match=rf"data\.audit: .*{message}"):
        check_audit(str(path), [corpora["clean"]], "data.audit")
    path.write_text("[1]")
    with pytest.raises(DataError, match="audit is None"):
        LeakAudit.load(path)
    path.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        LeakAudit.load(path)
