"""Parts of a corpus, written apart and in any order, make the same corpus."""

import io
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wholegrain.data import assemble as assemble_module
from wholegrain.data import repeated
from wholegrain.data.corpus import Corpus
from wholegrain.data.index import write_index
from wholegrain.data.part import PartWriter, assemble, read_part
from wholegrain.data.record import Record
from wholegrain.errors import DataError, RecordError

PARTS, EACH = 5, 7


def image(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20 + number, 10), (number, 5, 7)).save(buffer, "png")
    return buffer.getvalue()


def record(number: int, split: str | None = None, photo: str | None = None) -> Record:
    split = split or ("train", "val", "test")[number * number % 3]
    return Record(f"t/{number}", "t", split, 20 + number, 10, (f"picture {number}",), photo=photo)


def write_part(folder: Path, part: int, each: int = EACH, **options: int) -> None:
    with PartWriter(folder, part, **options) as writer:
        for number in range(part * each, (part + 1) * each):
            writer.write(record(number), image(number), "png")
        writer.notes["skipped"] = [part]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    folder = tmp_path / "whole"
    folder.mkdir()
    for part in range(PARTS):
        write_part(folder, part, max_samples=3)
    assemble(folder, PARTS, name="c", source={"converter": "test"})
    return folder


def test_the_order_of_work_leaves_no_trace(whole: Path, tmp_path: Path) -> None:
    expected = contents(whole)
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        order = [*range(PARTS), seed]  # one of them twice
        random.Random(seed).shuffle(order)
        for part in order:
            write_part(folder, part, max_samples=3)
        assemble(folder, PARTS, name="c", source={"converter": "test"})
        assert contents(folder) == expected


def test_rows_are_grouped_by_split_in_the_order_of_their_first_record(whole: Path) -> None:
    corpus = Corpus.open(whole)
    corpus.verify()
    numbers = range(PARTS * EACH)
    splits = list(dict.fromkeys(record(n).split for n in numbers))
    assert list(corpus.splits) == splits == ["train", "val"]
    expected = [n for split in splits for n in numbers if record(n).split == split]
    assert [corpus.record(i) for i in range(len(corpus))] == [record(n) for n in expected]
    assert [corpus.image_bytes(i) for i in range(len(corpus))] == [image(n) for n in expected]
    counts = corpus.manifest["split_counts"]
    assert {split: counts[split]["images"] for split in splits} == corpus.splits
    assert sum(counts[split]["captions"] for split in splits) == PARTS * EACH
    index = (whole / "index.npy").read_bytes()
    write_index(whole)  # scanning the tars gives the very same index
    assert (whole / "index.npy").read_bytes() == index


def test_rows_beyond_one_chunk(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble_module, "_CHUNK_ROWS", 2)
    folder = tmp_path / "chunks"
    folder.mkdir()
    for part in range(PARTS):
        write_part(folder, part, max_samples=3)
    assemble(folder, PARTS, name="c", source={"converter": "test"})
    assert contents(folder) == contents(whole)


def test_a_part_exists_when_its_marker_does(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), PartWriter(tmp_path, 3, max_samples=2) as writer:
        for number in range(5):
            writer.write(record(number), image(number), "png")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    assert read_part(tmp_path, 3) is None
    write_part(tmp_path, 3, max_samples=2)
    marker = read_part(tmp_path, 3)
    assert marker is not None
    assert (marker["samples"], marker["notes"]) == (EACH, {"skipped": [3]})
    assert [shard["samples"] for shard in marker["shards"]] == [2, 2, 2, 1]


def test_parts_without_samples_are_parts(tmp_path: Path) -> None:
    for part in (0, 2):
        with PartWriter(tmp_path, part):
            pass
    with pytest.raises(DataError, match="part 1 of 3 is not there"):
        assemble(tmp_path, 3, name="c", source={})
    write_part(tmp_path, 1)
    assert assemble(tmp_path, 3, name="c", source={})["counts"]["images"] == EACH
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.npy",
        "manifest.json",
        "shard-000001.tar",
        "shards.npy",
    ]


def test_no_sample_is_no_corpus(tmp_path: Path) -> None:
    with PartWriter(tmp_path, 0):
        pass
    with pytest.raises(DataError, match="no sample"):
        assemble(tmp_path, 1, name="c", source={})


@pytest.mark.parametrize("bucket", [1 << 22, 4])
def test_an_id_that_two_parts_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: int
) -> None:
    monkeypatch.setattr(repeated, "_BUCKET_IDS", bucket)
    for part in range(PARTS):
        write_part(tmp_path, part)
    keep = tmp_path / "keep"
    shutil.copytree(tmp_path, keep)
    with PartWriter(tmp_path, PARTS) as writer:
        writer.write(record(23), image(23), "png")
        with pytest.raises(RecordError, match="already in this split"):
            writer.write(record(23), image(23), "png")
    with pytest.raises(DataError, match=r"id 't/23' occurs twice in split 'val'.*000003.*000005"):
        assemble(tmp_path, PARTS + 1, name="c", source={})
    with PartWriter(keep, PARTS) as writer:  # the same id in another split is another record
        writer.write(record(23, "train"), image(23), "png")
    assert assemble(keep, PARTS + 1, name="c", source={})["counts"]["images"] == PARTS * EACH + 1


def test_a_killed_assembly_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for part in range(PARTS):
        write_part(tmp_path, part, max_samples=3)
    for name in ("_write_index", "write_manifest"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(assemble_module, name, killed)
            assemble(tmp_path, PARTS, name="c", source={})
        assert not (tmp_path / "manifest.json").exists()
    assemble(tmp_path, PARTS, name="c", source={})
    assert len(Corpus.open(tmp_path)) == PARTS * EACH


def test_the_index_names_photos(tmp_path: Path) -> None:
    from wholegrain.data.index_file import id_hash

    with PartWriter(tmp_path, 0) as writer:
        writer.write(record(1, "train", photo="coco/7"), image(1), "png")
        writer.write(record(2, "train"), image(2), "png")
    assemble(tmp_path, 1, name="c", source={})
    corpus = Corpus.open(tmp_path)
    assert [corpus.record(i).photo_id for i in range(2)] == ["coco/7", "t/2"]
    assert np.array_equal(corpus.index["id"], [id_hash("coco/7"), id_hash("t/2")])
