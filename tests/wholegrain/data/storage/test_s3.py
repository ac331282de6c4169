"""A real S3 server on loopback: faults in front of it, its death, and its absence."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.wholegrain.data.storage.contents import content, digest, until
from tests.wholegrain.data.storage.faulty_proxy import FAULTS, FaultyProxy
from tests.wholegrain.data.storage.servers import BUCKET, S3Server
from wholegrain.data.corpus_files import ShardFiles
from wholegrain.data.storage import NodeCache, StorageConfig, StorageGone
from wholegrain.errors import ConfigError, DataError

LENGTH = 1_500_000
DATA = content(LENGTH)
URL = f"s3://{BUCKET}/coco/shard-000000.tar"
Make = Callable[..., NodeCache]


@pytest.fixture
def front(
    s3: S3Server, proxy: Callable[[int], FaultyProxy], monkeypatch: pytest.MonkeyPatch
) -> FaultyProxy:
    """The way to the server, with a shard behind it."""
    s3.put("coco/shard-000000.tar", DATA)
    made = proxy(s3.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.port}")
    return made


def test_a_shard_is_read_in_blocks(make_cache: Make, front: FaultyProxy) -> None:
    assert make_cache().local(URL, LENGTH, digest(DATA)).read() == DATA
    assert make_cache().local(URL).read() == DATA
    ranges = [seen.range for seen in front.reads()][:6]
    ends = [min(at + 2**18, LENGTH) - 1 for at in range(0, LENGTH, 2**18)]
    starts = range(0, LENGTH, 2**18)
    assert ranges == [f"bytes={start}-{end}" for start, end in zip(starts, ends, strict=True)]


def test_what_is_wrong_is_named_at_once(
    make_cache: Make, front: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache()
    with pytest.raises(DataError, match=f"s3://{BUCKET}/none.tar: there is no such file"):
        cache.local(f"s3://{BUCKET}/none.tar", LENGTH)
    with pytest.raises(DataError, match="there is no such file"):
        cache.local("s3://no-such-bucket/a.tar")
    with pytest.raises(DataError, match=r"cannot be read .*folder"):
        cache.local(f"s3://{BUCKET}/coco")
    wrong = make_cache(options={"s3": {"no_such_option": 1}})
    with pytest.raises(ConfigError, match="no_such_option"):
        wrong.local(URL, LENGTH)


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_is_survived(make_cache: Make, front: FaultyProxy, fault: str) -> None:
    front.faults.extend(["", "", fault])
    cache = make_cache(timeout_s=1.0)
    assert cache.local(URL, LENGTH, digest(DATA)).read() == DATA
    assert not front.faults


@pytest.mark.parametrize("fault", ["500", "503", "truncate"])
def test_a_driver_does_not_repeat_requests_on_its_own(
    make_cache: Make, front: FaultyProxy, fault: str
) -> None:
    front.faults.append(fault)
    with pytest.raises(StorageGone, match="1 attempts"):
        make_cache(attempts=1).local(URL, LENGTH, digest(DATA))
    until(lambda: len(front.reads()) > 0)
    assert [seen.fault for seen in front.reads()] == [fault]


@pytest.mark.slow
def test_the_server_is_killed_and_comes_back(
    make_cache: Make, front: FaultyProxy, s3: S3Server
) -> None:
    front.bytes_per_second = 3e6
    failures: list[BaseException] = []
    results: list[bytes] = []
    cache = make_cache(patience_s=60.0, attempts=1000)

    def read() -> None:
        try:
            results.append(cache.local(URL, LENGTH, digest(DATA)).read())
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: len(front.reads()) >= 2)
    s3.kill()
    until(lambda: any(seen.fault == "down" for seen in list(front.seen)))
    front.always = "reset"  # until it holds again what it held
    s3.start()
    s3.put("coco/shard-000000.tar", DATA)
    front.always = ""
    reader.join(60)
    assert not failures
    assert results == [DATA]
    until(lambda: len([seen for seen in front.reads() if not seen.fault]) >= 6)
    got = [seen.range for seen in front.reads() if not seen.fault]
    assert len(got) == len(set(got)) == 6  # no block was fetched twice


def test_the_server_is_gone_for_good(front: FaultyProxy, settings: StorageConfig) -> None:
    """In the middle of a shard; what is in the cache can be read all the same."""
    settings = replace(settings, attempts=4)
    front.faults.extend(["", "", *["reset"] * 100])
    shards = ShardFiles([URL], [LENGTH], [digest(DATA)], settings)
    with pytest.raises(StorageGone, match=rf"{URL}: the storage is gone: 4 attempts in .* again"):
        shards.read(0, 0, 10)
    front.faults.clear()
    assert shards.read(0, LENGTH - 10, 10) == DATA[-10:]
    until(lambda: len([seen for seen in front.reads() if not seen.fault]) >= 6)
    assert len([seen for seen in front.reads() if not seen.fault]) == 6  # it went on
    front.always = "reset"
    again = ShardFiles([URL], [LENGTH], [digest(DATA)], settings)
    assert again.read(0, 5, 10) == DATA[5:15]


def test_forked_workers_have_drivers_of_their_own(
    front: FaultyProxy, s3: S3Server, settings: StorageConfig
) -> None:
    other = content(LENGTH, 1)
    s3.put("coco/shard-000001.tar", other)
    urls = [URL, URL.replace("000000", "000001")]
    shards = ShardFiles(urls, [LENGTH] * 2, [digest(DATA), digest(other)], settings)
    assert shards.read(0, 0, 100) == DATA[:100]

    def work() -> None:
        os._exit(0 if shards.read(1, 5, 1000) == other[5:1005] else 1)

    workers = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert shards.read(1, 0, 10) == other[:10]
    assert len(front.reads("shard-000001.tar")) == 6
