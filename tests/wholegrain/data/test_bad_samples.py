"""Each kind of bad sample in a foreign tar: what indexing says of it, and what training does."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from wholegrain.data.corpus import Corpus
from wholegrain.data.index import index_tars
from wholegrain.data.index_scan import scan_samples
from wholegrain.data.record_parse import MAX_TEXT_CHARS
from wholegrain.data.shard_tar import MAX_NAME_BYTES, scan_tar
from wholegrain.data.skips import SkipPolicy
from wholegrain.data.stream import EvalStream
from wholegrain.errors import DataError
from wholegrain.text import Tokenizer


def picture(kind: str = "JPEG", size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").convert(mode).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def meta(**values: object) -> bytes:
    return json.dumps(values).encode()


GOOD = {"jpg": picture(), "txt": b"a child on the stairs"}


def test_indexing_leaves_out_what_says_nothing_and_goes_on(tmp_path: Path) -> None:
    tar = write(
        tmp_path / "a.tar",
        {
            "a": GOOD,
            "blank": {"jpg": picture(), "txt": b" \n"},
            "silent": {"jpg": picture()},
            "pictureless": {"txt": b"a dog"},
            "latin": {"jpg": picture(), "txt": b"caf\xe9"},
            "broken": {"jpg": picture(), "json": b'{"caption": '},
            "halved": {"jpg": picture(), "json": rb'{"caption": "half \ud83d"}'},
            "endless": {"jpg": picture(), "txt": b"x" * (MAX_TEXT_CHARS + 1)},
            "deep": {"jpg": picture(), "json": b'{"caption": "x", "a": ' + b"[" * 100_000},
            "licence": {"jpg": picture(), "json": rb'{"caption": "a dog", "license": "\udc00"}'},
            "twice": {"jpg": picture(), "json": b'{"caption": "a cat", "caption": "a dog"}'},
            "odd_size": {"jpg": picture(), "json": meta(caption="a dog", width=-1, height=10**30)},
        },
    )
    manifest = index_tars([tar], tmp_path / "c", source="web")
    assert manifest["skipped"] == {"unreadable_text": 5, "without_image": 1, "without_text": 2}
    corpus = Corpus.open(tmp_path / "c")
    records = [corpus.record(number) for number in range(len(corpus))]
    assert [record.id for record in records] == ["a/a", "a/licence", "a/twice", "a/odd_size"]
    assert records[1].license is None
    assert records[2].captions == ("a dog",)
    assert (records[3].width, records[3].height) == (40, 30)


PHOTOS = {
    "truncated": (picture(size=(400, 300))[:900], "truncated"),
    "page": (b"<!DOCTYPE html><html>404</html>", "not an image"),
    "gif": (picture("GIF"), "not an image"),
    "pixel": (picture(size=(1, 1)), "too small"),
    "bomb": (picture().replace(b"\0\x1e\0\x28", b"\xff\xff\xff\xff", 1), "too large"),
    "lies": (picture(size=(30, 40)), "wrong size"),
    "png": (picture("PNG"), None),
    "cmyk": (picture(mode="CMYK"), None),
    "palette": (picture("PNG", mode="P"), None),
    "grey": (picture("PNG", mode="LA"), None),
}


def test_training_skips_each_bad_photo_by_its_cause(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    said = meta(caption="a child on the stairs", width=40, height=30)
    samples = {key: {"jpg": photo, "json": said} for key, (photo, _) in PHOTOS.items()}
    index_tars([write(tmp_path / "a.tar", samples)], tmp_path / "c", source="web")
    corpus, listed = Corpus.open(tmp_path / "c"), tmp_path / "bad.jsonl"
    policy = SkipPolicy(max_share=1, log_lines=1, listed_file=listed)
    stream = EvalStream(corpus, batch_size=4, tokenizer=tokenizer, resolution=32, skips=policy)
    shown = [name for batch in stream for name in batch.sample_ids]
    assert shown == [f"a/{key}" for key, (_, cause) in PHOTOS.items() if cause is None]
    causes = [cause for _, cause in PHOTOS.values() if cause is not None]
    assert stream.ledger.causes == {cause: causes.count(cause) for cause in causes}
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [line["cause"] for line in lines] == causes
    assert all(str(tmp_path) in line["message"] for line in lines)
    assert len(caplog.records) == len(set(causes))


def test_a_name_longer_than_a_path_is_refused(tmp_path: Path) -> None:
    long = "x" * (MAX_NAME_BYTES - 4)
    assert len(list(scan_tar(write(tmp_path / "a.tar", {long: {"jpg": b"x"}})))) == 1
    tar = write(tmp_path / "b.tar", {long + "x": {"jpg": b"x"}})
    with pytest.raises(DataError, match=f"a member name of {MAX_NAME_BYTES + 1} bytes") as caught:
        list(scan_samples(tar))
    assert len(str(caught.value)) < 500
