"""A corpus at a URL is the same corpus as in its folder."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from wholegrain.data import storage
from wholegrain.data.augment import AugmentConfig
from wholegrain.data.corpus import Corpus
from wholegrain.data.index import index_tars
from wholegrain.data.record import Record
from wholegrain.data.sampling import ConceptSampling
from wholegrain.data.shard import ShardWriter
from wholegrain.data.storage import StorageConfig, StorageGone
from wholegrain.data.storage.prefetch import Prefetcher
from wholegrain.data.stream import EvalStream, Source, Stream
from wholegrain.errors import DataError
from wholegrain.text import Tokenizer

COUNT = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "c"
    with ShardWriter(out, source={"converter": "test"}, max_samples=6) as writer:
        for number in range(COUNT):
            split = "val" if number % 5 == 0 else "train"
            buffer = io.BytesIO()
            pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "png")
            record = Record(f"t/{number}", "t", split, 32, 24, (f"a photo {number}",))
            writer.write(record, buffer.getvalue(), "png")
    return out


@pytest.fixture
def url(folder: Path, tmp_path: Path) -> Iterator[str]:
    """The folder in fsspec's memory; the cache is one of the test's own."""
    files = fsspec.filesystem("memory")
    place = f"/{tmp_path.name}/c"
    for path in folder.iterdir():
        files.pipe_file(f"{place}/{path.name}", path.read_bytes())
    before = storage.current()
    storage.configure(StorageConfig(cache=tmp_path / "cache", attempts=2, patience_s=2.0))
    yield f"memory:/{place}"
    storage.configure(before)
    files.rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.train([f"a photo {n}" for n in range(COUNT)], vocab_size=60)


def make_stream(corpus: Corpus, tokenizer: Tokenizer, workers: int = 0) -> Stream:
    return Stream(
        [Source("c", corpus, 6, block=6, window=2)],
        seed=1,
        tokenizer=tokenizer,
        augment=AugmentConfig(resolution=16),
        sampling=ConceptSampling(),
        stop_step=8,
        workers=workers,
    )


def test_every_sample_and_split_is_the_same(folder: Path, url: str) -> None:
    local, remote = Corpus.open(folder), Corpus.open(url)
    assert remote.is_remote and not local.is_remote
    assert str(remote.path) == url and remote.shard_name(0) == f"{url}/shard-000000.tar"
    for split in (None, "train", "val"):
        one, other = local.select(split), remote.select(split)
        assert one.fingerprint == other.fingerprint
        assert len(one) == len(other)
        assert np.array_equal(one.index, other.index)
        for i in range(len(one)):
            assert one.record(i) == other.record(i)
            assert one.image_bytes(i) == other.image_bytes(i)
    remote.verify()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_are_the_same(
    folder: Path, url: str, tokenizer: Tokenizer, workers: int
) -> None:
    local = list(make_stream(Corpus.open(folder), tokenizer))
    remote = list(make_stream(Corpus.open(url), tokenizer, workers))
    assert [batch.sample_ids for batch in remote] == [batch.sample_ids for batch in local]
    assert all(torch.equal(a.images, b.images) for a, b in zip(local, remote, strict=True))


def test_storage_that_is_gone_ends_the_stream_and_blames_no_sample(
    url: str, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus.open(url)
    stream = make_stream(corpus, tokenizer)

    def gone(*_: object) -> bytes:
        raise StorageGone("memory://x: storage is gone")

    monkeypatch.setattr(corpus._files, "read", gone)
    with pytest.raises(DataError, match="storage is gone"):
        next(iter(stream))
    assert stream.ledger.skipped == 0
    evaluation = EvalStream(corpus, batch_size=4, tokenizer=tokenizer, resolution=16)
    with pytest.raises(DataError, match="storage is gone"):
        list(evaluation)
    assert evaluation.ledger.skipped == 0


def test_a_shard_that_storage_altered_is_named(url: str, folder: Path) -> None:
    files = fsspec.filesystem("memory")
    place = url.removeprefix("memory:/") + "/shard-000000_0002.tar"
    data = bytearray(files.cat_file(place))
    data[700] ^= 1
    files.pipe_file(place, bytes(data))
    with pytest.raises(DataError, match=r"shard-000000_0002\.tar.*sha256"):
        Corpus.open(url).verify()


def test_a_corpus_larger_than_the_cache_is_verified_file_by_file(
    url: str, folder: Path, tmp_path: Path
) -> None:
    tars = [path.stat().st_size for path in folder.glob("*.tar")]
    bound = (sum(tars) - max(tars)) / 1e9
    cache = tmp_path / "small"
    storage.configure(StorageConfig(cache=cache, cache_gb=bound, attempts=2, patience_s=2.0))
    remote = Corpus.open(url)
    before = len(os.listdir("/proc/self/fd"))
    most = 0

    def watch(_: str) -> None:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))

    remote.verify(watch)
    assert most <= before + 2  # the listing's own, and room for another thread's


def test_storage_that_is_gone_is_no_altered_file(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Corpus.open(url)

    def gone(*_: object, **__: object) -> None:
        raise StorageGone("memory://x: the storage is gone")

    monkeypatch.setattr(storage.NodeCache, "local", gone)
    with pytest.raises(StorageGone, match="the storage is gone"):
        remote.verify()


def test_corpora_are_fetched_ahead_side_by_side(
    url: str, folder: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of one corpus must not take the place of another's."""
    files = fsspec.filesystem("memory")
    urls = [f"{url}-{name}" for name in "ab"]
    for number, other in enumerate(urls):
        made = tmp_path / f"c{number}"
        with ShardWriter(made, source={"converter": f"test {number}"}, max_samples=6) as writer:
            local = Corpus.open(folder)
            for n in range(COUNT):
                record = replace(local.record(n), id=f"{number}/{n}")
                writer.write(record, local.image_bytes(n), "png")
        for path in made.iterdir():
            files.pipe_file(f"{other.removeprefix('memory:/')}/{path.name}", path.read_bytes())
    asked: list[list[str]] = []
    monkeypatch.setattr(Prefetcher, "want", lambda _, files: asked.append([f.url for f in files]))
    sources = [
        Source(name, Corpus.open(other), 6, block=6, window=2)
        for name, other in zip("ab", urls, strict=True)
    ]
    stream = Stream(
        sources,
        seed=1,
        tokenizer=tokenizer,
        augment=AugmentConfig(resolution=16),
        sampling=ConceptSampling(),
        stop_step=2,
    )
    stream.batch(0)
    (wanted,) = asked  # one call
    ours, theirs = ([name.startswith(f"{one}/") for name in wanted] for one in urls)
    assert wanted and ours[0] and theirs[1]
    assert sum(ours) + sum(theirs) == len(wanted) == len(set(wanted))
    here = {path.name.removesuffix(".whole") for path in (tmp_path / "cache").glob("*.whole")}
    stream.batch(1)  # what is here is not asked for again
    digests = {
        f"{source.corpus.path}/{shard.file}": shard.sha256
        for source in sources
        for shard in source.corpus.shards  # type: ignore[attr-defined]
    }
    assert not {digests[name] for name in asked[1]} & here


def test_no_corpus_there(url: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        Corpus.open(f"{url}/nowhere")


def test_tars_indexed_in_place_cannot_be_read_from_elsewhere(
    folder: Path, url: str, tmp_path: Path
) -> None:
    index_tars(folder.glob("*.tar"), tmp_path / "in-place", source="x")
    files = fsspec.filesystem("memory")
    place = url.removeprefix("memory:/") + "-in-place"
    for path in (tmp_path / "in-place").iterdir():
        files.pipe_file(f"{place}/{path.name}", path.read_bytes())
    corpus = Corpus.open(f"{url}-in-place")
    with pytest.raises(DataError, match="indexed in place cannot be moved"):
        corpus.record(0)
