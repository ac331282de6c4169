"""What ``lint`` finds in a corpus: each kind of fault, named by file and sample, and counted."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_tools.lint import problems
from wholegrain.data.corpus import Corpus
from wholegrain.data.index import write_index
from wholegrain.data.record import Record, Region

Run = Callable[..., Any]
Photo = Callable[..., bytes]


def record(number: int, **changes: object) -> dict[str, Any]:
    region = Region("region", (1.0, 2.0, 20.0, 30.0), ("a thing",))
    plain = Record(f"set/{number}", "set", "train", 64, 48, (f"photo {number}",), (region,))
    return {**json.loads(plain.to_json()), **changes}


@pytest.fixture
def corpus_of(tmp_path: Path, write_tar: Any) -> Callable[..., Path]:
    """Makes a corpus of (record, photo) or (record, photo, name's ending)."""

    def make(*samples: tuple[Any, ...]) -> Path:
        members: list[tuple[str, bytes]] = []
        for number, (meta, photo, *ending) in enumerate(samples):
            members.append((f"{number:06d}.{ending[0] if ending else 'jpg'}", photo))
            members.append((f"{number:06d}.json", json.dumps(meta).encode()))
        write_tar(tmp_path / "corpus" / "a.tar", members)
        write_index(tmp_path / "corpus")
        return tmp_path / "corpus"

    return make


def encoded(kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind)
    return buffer.getvalue()


def test_a_sound_corpus_has_no_problem(corpus_of: Any, photo: Photo) -> None:
    corpus = corpus_of(*((record(number), photo(number)) for number in range(3)))
    assert list(problems(Corpus.open(corpus))) == []


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda data: data[: len(data) // 2], "image: truncated"),
        (lambda data: b"<html>404</html>", "image: not an image"),
        (lambda data: encoded("GIF"), "image: not an image"),
        (lambda data: encoded("PNG"), "image: wrong name"),
        (lambda data: encoded("JPEG", (48, 64)), "image: wrong size"),
        (lambda data: encoded("JPEG", (1, 1)), "image: too small"),
        (
            lambda data: data[:2] + data[2:].replace(b"\0\x30\0\x40", b"\xff\xff\xff\xff", 1),
            "image",
        ),
    ],
)
def test_each_fault_of_a_photo_is_named(
    corpus_of: Any, photo: Photo, spoil: Callable[[bytes], bytes], cause: str
) -> None:
    corpus = corpus_of((record(0), photo(0)), (record(1), spoil(photo(1))))
    (problem,) = problems(Corpus.open(corpus))
    assert problem.cause.startswith(cause)
    assert problem.detail.startswith(f"{corpus / 'a.tar'}: sample 1 (set/1): ")


def test_the_command_counts_by_cause(corpus_of: Any, photo: Photo, data_tools: Run) -> None:
    bad = encoded("JPEG", (4, 4))
    corpus = corpus_of((record(0), photo(0)), (record(1), bad), (record(2), bad), (record(3), b"x"))
    ran = data_tools("lint", corpus)
    assert ran.status == 1
    assert "3 problems (2 x image: too small, 1 x image: not an image)" in ran.out
    assert "4 x 4 px" in ran.out


def test_an_id_that_occurs_twice_is_found(corpus_of: Any, photo: Photo) -> None:
    corpus = corpus_of(
        (record(0), photo(0)), (record(0), photo(1)), (record(0, split="val"), photo(2))
    )
    (problem,) = problems(Corpus.open(corpus))
    assert problem.cause == "id twice" and "sample 1" in problem.detail


def test_records_are_judged_as_training_will(corpus_of: Any, photo: Photo) -> None:
    corpus = corpus_of((record(0), photo(0)), (record(1), photo(1)))
    tar = corpus / "a.tar"
    data = tar.read_bytes()
    spoilt = data.replace(b'"width": 64', b'"width": -4', 1)
    assert spoilt != data
    tar.write_bytes(spoilt)
    found = {problem.cause: problem.detail for problem in problems(Corpus.open(corpus))}
    assert found.keys() == {"checksum", "record"}
    assert "sample 0: width is -4" in found["record"]


def test_a_shard_cut_short_is_found_sample_by_sample(corpus_of: Any, photo: Photo) -> None:
    corpus = corpus_of((record(0), photo(0)), (record(1), photo(1)))
    tar = corpus / "a.tar"
    with tarfile.open(tar) as opened:
        second = opened.getmember("000001.jpg").offset_data
    tar.write_bytes(tar.read_bytes()[: second + 10])
    found = [problem.cause for problem in problems(Corpus.open(corpus))]
    assert found == ["checksum", "unreadable", "unreadable"]


def test_an_index_that_counts_otherwise_is_found(corpus_of: Any, photo: Photo) -> None:
    corpus = corpus_of((record(0), photo(0)), (record(1), photo(1)))
    rows = np.load(corpus / "index.npy")
    rows["captions"][1] += 1
    np.save(corpus / "index.npy", rows)
    assert [problem.cause for problem in problems(Corpus.open(corpus))] == ["checksum", "index"]
