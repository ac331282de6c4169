"""Reading a corpus: by number, from any process, never silently wrong."""

import dataclasses
import gc
import io
import json
import multiprocessing
import os
import pickle
import shutil
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wholegrain.data import corpus_files
from wholegrain.data.corpus import Corpus
from wholegrain.data.index import index_tars, write_index
from wholegrain.data.index_file import INDEX_DTYPE, npy_header
from wholegrain.data.record import Record
from wholegrain.data.shard import ShardWriter
from wholegrain.data.shard_table import ShardTable
from wholegrain.errors import DataError

COUNT = 12
# Rows are grouped by split, and keep their order within one.
ORDER = [0, 2, 3, 4, 6, 7, 8, 10, 11, 1, 5, 9]


def shard(number: int) -> str:
    return "shard-000000.tar" if number == 0 else f"shard-000000_{number:04d}.tar"


def image(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20 + number, 10), (number, 5, 7)).save(buffer, "png")
    return buffer.getvalue()


def record(number: int) -> Record:
    split = "val" if number % 4 == 1 else "train"
    return Record(f"t/{number}", "t", split, 20 + number, 10, (f"picture {number}",))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpora") / "c"
    with ShardWriter(out, source={"converter": "test"}, max_samples=2) as writer:
        for number in range(COUNT):
            writer.write(record(number), image(number), "png")
    return out


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "c"))


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not ...}))


def test_every_sample_is_what_was_written(made: Path) -> None:
    corpus = Corpus.open(str(made))
    assert len(corpus) == COUNT
    for i in reversed(range(COUNT)):
        assert corpus.record(i) == record(ORDER[i])
        assert corpus.image_bytes(i) == image(ORDER[i])
        assert corpus.image_kind(i) == "png"
    assert corpus.record(np.int64(3)) == record(ORDER[3])
    for outside in (-1, COUNT):
        with pytest.raises(IndexError):
            corpus.record(outside)
        with pytest.raises(IndexError):
            corpus.image_bytes(outside)
    corpus.verify()


def test_a_split_is_a_view_with_its_own_length_and_fingerprint(made: Path) -> None:
    corpus = Corpus.open(made)
    assert corpus.splits == {"train": 9, "val": 3}
    val, train = corpus.select("val"), corpus.select("train")
    assert [val.record(i).id for i in range(len(val))] == ["t/1", "t/5", "t/9"]
    assert [train.record(i).split for i in range(len(train))] == ["train"] * 9
    assert val.image_bytes(2) == image(9)
    assert [len(view.index) for view in (corpus, val, train)] == [12, 3, 9]
    with pytest.raises(IndexError):
        val.record(3)
    assert len({corpus.fingerprint, val.fingerprint, train.fingerprint}) == 3
    assert Corpus.open(made).select("val").fingerprint == val.fingerprint
    assert corpus.select(None) is corpus
    assert val.select("val") is val
    with pytest.raises(DataError, match=r"no split 'test'; it has train \(9\), val \(3\)"):
        corpus.select("test")
    with pytest.raises(DataError, match="split 'val' only"):
        val.select("train")
    val.verify()


def test_opening_maps_the_index_and_reads_no_row(copied: Path) -> None:
    # 10^8 samples (5.6 GB of zeros that take no disk) behind the twelve real ones.
    rows = 10**8
    with open(copied / "index.npy", "r+b") as file:
        file.write(npy_header(rows))
        file.truncate(file.tell() + rows * INDEX_DTYPE.itemsize)
    shards = list(ShardTable.open(copied / "shards.npy"))
    shards[-1] = dataclasses.replace(shards[-1], samples=shards[-1].samples + rows - COUNT)
    ShardTable.of(shards).save(copied / "shards.npy")
    index = json.loads((copied / "manifest.json").read_text())["index"]
    change_manifest(copied, splits={"train": rows}, index=index | {"rows": rows})
    corpus = Corpus.open(copied)
    assert isinstance(corpus.index, np.memmap)
    assert len(corpus) == len(corpus.select("train")) == rows
    assert corpus.select("train").image_bytes(8) == image(ORDER[8])


def test_pickling_carries_the_path_and_the_view(made: Path) -> None:
    for corpus in (Corpus.open(made), Corpus.open(made).select("val")):
        corpus.record(0)
        data = pickle.dumps(corpus)
        assert len(data) < 1000
        other = pickle.loads(data)  # made two lines up: how a corpus reaches a loader process
        assert (other.split, other.fingerprint) == (corpus.split, corpus.fingerprint)
        assert [other.record(i) for i in range(len(other))] == [
            corpus.record(i) for i in range(len(corpus))
        ]


def test_unpickling_notices_that_the_corpus_changed(copied: Path) -> None:
    data = pickle.dumps(Corpus.open(copied))
    with ShardWriter(copied, source={}, overwrite=True) as writer:
        writer.write(record(0), image(0), "png")
    with pytest.raises(DataError, match="changed while in use"):
        pickle.loads(data)


def test_a_relative_path_survives_a_change_of_folder(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied.parent)
    corpus = Corpus.open("c")
    monkeypatch.chdir("/")
    assert corpus.record(5) == record(ORDER[5])


def _images(corpus: Corpus) -> list[bytes]:
    return [corpus.image_bytes(i) for i in range(len(corpus))]


def test_a_child_forked_while_a_thread_reads_does_not_hang(made: Path) -> None:
    corpus = Corpus.open(made)
    expected = _images(corpus)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with corpus._files._lock:
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, b"1" if _images(corpus) == expected else b"0")
        finally:
            os._exit(0)
    os.close(write)
    try:
        ready = multiprocessing.connection.wait([read], timeout=10)
        assert ready and os.read(read, 1) == b"1"
    finally:
        done.set()
        thread.join()
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(read)
    assert _images(corpus) == expected  # the child's closing did not close the parent's files


def _open_shards(folder: Path) -> int:
    links = Path("/proc/self/fd").iterdir()
    return sum(os.path.realpath(link).startswith(f"{folder}/shard-") for link in links)


def test_few_files_stay_open_and_threads_may_share_them(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_files, "MAX_OPEN", 2)
    corpus = Corpus.open(made)
    gc.collect()  # corpora of other tests, whose tracebacks hold them
    assert _open_shards(made) == 0  # opening opens none
    order = np.random.default_rng(0).integers(0, COUNT, 2000)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(corpus.image_bytes, order))
    assert found == [image(ORDER[i]) for i in order]
    assert _open_shards(made) <= 2
    del corpus
    assert _open_shards(made) == 0


def test_a_missing_shard_is_noticed_on_opening(copied: Path, tmp_path: Path) -> None:
    index_tars(copied.glob("*.tar"), tmp_path / "in-place", source="x")
    (copied / shard(3)).unlink()
    for folder in (copied, tmp_path / "in-place"):
        with pytest.raises(DataError, match=rf"{shard(3)}: the shard is missing"):
            Corpus.open(folder)


def test_a_cut_shard_is_named_when_it_is_read(copied: Path) -> None:
    cut = copied / shard(2)
    os.truncate(cut, cut.stat().st_size - 1)
    corpus = Corpus.open(copied)
    assert corpus.record(0) == record(0)
    with pytest.raises(DataError, match=rf"{shard(2)}: \d+ bytes where the manifest says"):
        corpus.record(ORDER.index(4))
    with pytest.raises(DataError, match=rf"{shard(2)} has sha256"):
        corpus.verify()


def test_a_shard_cut_while_open_is_named(copied: Path) -> None:
    corpus = Corpus.open(copied)
    corpus.record(ORDER.index(4))
    os.truncate(copied / shard(2), 700)
    with pytest.raises(DataError, match=rf"{shard(2)}: ends before byte"):
        corpus.record(ORDER.index(4))


def test_verify_lists_every_altered_file(copied: Path) -> None:
    for name in (shard(1), shard(4), "index.npy", "shards.npy"):
        with open(copied / name, "r+b") as file:
            at = 600 if name != "shards.npy" else 300  # a digest
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))
    corpus, seen = Corpus.open(copied), []
    with pytest.raises(DataError) as caught:
        corpus.verify(seen.append)
    for name in (shard(1), shard(4), "index.npy", "shards.npy"):
        assert name in str(caught.value)
    assert "shard-000000.tar" not in str(caught.value)
    assert len(seen) == 8


def test_a_damaged_record_names_the_shard_and_the_sample(copied: Path) -> None:
    corpus = Corpus.open(copied)
    with tarfile.open(copied / shard(2)) as tar:
        offset = tar.getmember("00000000005.json").offset_data
    with open(copied / shard(2), "r+b") as file:
        file.seek(offset)
        file.write(b"!")
    row = ORDER.index(5)
    with pytest.raises(DataError, match=rf"{shard(2)}: sample {row}: "):
        corpus.record(row)


def test_an_index_that_points_nowhere(copied: Path) -> None:
    index = np.lib.format.open_memmap(copied / "index.npy", mode="r+")
    index["shard"][3], index["meta"][4] = 99, 1 << 40
    index.flush()
    corpus = Corpus.open(copied)
    with pytest.raises(DataError, match="shard 99 of 6"):
        corpus.record(3)
    with pytest.raises(DataError, match="ends before byte"):
        corpus.record(4)


def test_an_index_of_another_corpus(copied: Path) -> None:
    np.save(copied / "index.npy", np.zeros(3, INDEX_DTYPE))
    message = f"3 rows of the index .* says {COUNT} and 6; .*data_tools index"
    with pytest.raises(DataError, match=message):
        Corpus.open(copied)
    write_index(copied)
    assert Corpus.open(copied).record(7) == record(ORDER[7])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 3}, "schema is 3, this version reads 2; update wholegrain"),
        ({"schema": 1}, "schema is 1, this version reads 2; run `python -m data_tools index`"),
        ({"schema": ...}, "schema is None"),
        ({"counts": 3}, "counts is 3, not a dict"),
        ({"fingerprint": ...}, "fingerprint is None, not a str"),
        ({"layout": "tfrecord"}, "layout is 'tfrecord'"),
        ({"layout": "plain"}, "plain is None"),
        ({"layout": "plain", "plain": {}}, r"plain\.source is None"),
        ({"shards": {"count": 0, "bytes": 0, "sha256": ""}}, "empty"),
        ({"shards": ["a.tar"]}, "shards is .*, not a dict"),
        ({"shards": {"count": 1}}, r"shards\.bytes"),
        ({"index": {"rows": 5, "sha256": ""}}, "splits add up to 12, index.rows is 5"),
        ({"splits": {"train": "12"}}, "splits is"),
    ],
    ids=range(13),
)
def test_a_manifest_that_cannot_be_right(copied: Path, changes: dict, message: str) -> None:
    change_manifest(copied, **changes)
    with pytest.raises(DataError, match=message) as caught:
        Corpus.open(copied)
    assert str(copied) in str(caught.value)


def test_a_shard_outside_the_folder_is_refused(copied: Path) -> None:
    shards = list(ShardTable.open(copied / "shards.npy"))
    shards[2] = dataclasses.replace(shards[2], file="../a.tar")
    ShardTable.of(shards).save(copied / "shards.npy")
    with pytest.raises(DataError, match="neither a name nor an absolute path"):
        Corpus.open(copied)


def test_indexing_mends_a_damaged_manifest(copied: Path) -> None:
    fingerprint = Corpus.open(copied).fingerprint
    (copied / "manifest.json").write_text("{")
    write_index(copied)
    assert Corpus.open(copied).fingerprint == fingerprint


def test_folders_that_are_no_corpus(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such corpus folder"):
        Corpus.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no corpus"):
        Corpus.open(tmp_path / "empty")
    with pytest.raises(DataError, match="no such corpus folder"):
        Corpus.open(copied / "index.npy")
    (copied / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        Corpus.open(copied)
    (copied / "manifest.json").unlink()
    with pytest.raises(DataError, match="data_tools index"):
        Corpus.open(copied)
