"""Processes of one node: one download for all, any of them killed at any moment, forked workers."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.wholegrain.data.storage.contents import content, digest, until
from tests.wholegrain.data.storage.faulty_proxy import FaultyProxy
from tests.wholegrain.data.storage.servers import RangeServer
from wholegrain.data.corpus_files import ShardFiles
from wholegrain.data.storage import NodeCache, StorageConfig
from wholegrain.data.storage.cache_folder import CacheFolder, Claim

LENGTH = 1_000_000  # four blocks
FORK = multiprocessing.get_context("fork")
READER = """
import hashlib, sys
from pathlib import Path
from wholegrain.data.storage import NodeCache, StorageConfig
folder, url, size, digest = sys.argv[1:]
settings = StorageConfig(cache=Path(folder), cache_gb=0.1, block_mb=0.25)
print("ready", flush=True)
sys.stdin.readline()
file = NodeCache.of(settings).local(url, int(size), digest)
print(hashlib.sha256(file.read()).hexdigest())
"""


@pytest.fixture
def front(web: RangeServer, proxy: Callable[[int], FaultyProxy]) -> FaultyProxy:
    return proxy(web.port)


def at(front: FaultyProxy, name: str) -> str:
    return f"http://127.0.0.1:{front.port}/{name}"


def read_one(settings: StorageConfig, url: str, data_digest: str) -> None:
    """What a forked process does: exits with 0 only with the right bytes in its hands."""
    with NodeCache.of(settings).local(url, LENGTH, data_digest) as file:
        os._exit(0 if digest(file.read()) == data_digest else 1)


def test_four_processes_make_one_download(
    web: RangeServer, front: FaultyProxy, tmp_path: Path, repository: Path
) -> None:
    data = web.files["a"] = content(LENGTH)
    front.bytes_per_second = 2e6
    arguments = [str(tmp_path / "cache"), at(front, "a"), str(LENGTH), digest(data)]
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, *arguments],
            cwd=repository,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
    for reader in readers:
        assert reader.stdin is not None
        reader.stdin.write("go\n")
        reader.stdin.flush()
    for reader in readers:
        assert reader.communicate(timeout=60)[0].strip() == digest(data)
        assert reader.returncode == 0
    assert len(front.reads()) == 4  # blocks, not processes times blocks
    assert front.served == LENGTH


@pytest.mark.slow
def test_the_downloader_is_killed_at_any_moment(
    web: RangeServer, front: FaultyProxy, settings: StorageConfig
) -> None:
    """Another one goes on from where the dead one was; no half file ever passes for a whole."""
    chance = random.Random(4)
    front.bytes_per_second = 4e6
    for number in range(15):
        data = web.files[str(number)] = content(LENGTH, number)
        arguments = settings, at(front, str(number)), digest(data)
        first, second = (FORK.Process(target=read_one, args=arguments) for _ in range(2))
        first.start()
        until(lambda: len(list((settings.folder()).glob("*.partial"))) > 0)
        second.start()
        time.sleep(chance.uniform(0.0, 0.4))
        first.kill()
        first.join(30)
        second.join(30)
        assert second.exitcode == 0
        # At most the block that the dead one was reading is read twice.
        assert len([seen for seen in front.reads(f"/{number}") if not seen.fault]) <= 5
    assert len(list(settings.folder().glob("*.whole"))) == 15
    assert not list(settings.folder().glob("*.partial"))


def read_many(settings: StorageConfig, urls: list[str], digests: list[str], seed: int) -> None:
    """Reads here and there until it is killed; exits with 1 as soon as bytes are wrong."""
    shards = ShardFiles(urls, [LENGTH] * len(urls), digests, settings)
    chance = random.Random(seed)
    try:
        while True:
            shard = chance.randrange(len(urls))
            shards.prefetch([(shard + 1) % len(urls)])
            if digest(shards.read(shard, 0, LENGTH)) != digests[shard]:
                os._exit(1)
    except BaseException:
        os._exit(2)


@pytest.mark.slow
def test_under_pressure_the_bound_holds_and_readers_read_on(
    web: RangeServer, front: FaultyProxy, settings: StorageConfig
) -> None:
    chance, bound = random.Random(5), 4 * LENGTH + 10
    settings = replace(settings, cache_gb=bound / 1e9, patience_s=60.0)
    contents = [content(LENGTH, seed) for seed in range(8)]
    web.files.update({str(number): data for number, data in enumerate(contents)})
    urls, digests = [at(front, str(n)) for n in range(8)], [digest(data) for data in contents]

    def start(seed: int) -> multiprocessing.process.BaseProcess:
        process = FORK.Process(target=read_many, args=(settings, urls, digests, seed))
        process.start()
        return process

    # Loaded once, here: else a slow machine kills each reader before it has loaded its driver.
    importlib.import_module("fsspec.implementations.http")
    readers = [start(seed) for seed in range(3)]
    folder = CacheFolder(settings.folder(), bound)
    largest, seed = 0, 3
    start_s = time.monotonic()
    least = 4 * 8  # reads: more than each file once, so there is pressure
    while time.monotonic() < start_s + 4.0 or len(front.reads()) <= least:
        assert time.monotonic() < start_s + 120.0, "the readers read nothing"
        with folder.locked():
            largest = max(largest, sum(entry.bytes for entry in folder._entries()))
        assert all(reader.exitcode is None for reader in readers)
        if chance.random() < 0.02:
            victim = readers.pop(0)
            victim.kill()
            victim.join(30)
            readers.append(start(seed := seed + 1))
        time.sleep(0.01)
    for reader in readers:
        assert reader.exitcode is None
        reader.kill()
        reader.join(30)
    assert 3 * LENGTH <= largest <= bound


def test_forked_workers_read_on_their_own(
    web: RangeServer, front: FaultyProxy, settings: StorageConfig
) -> None:
    """The parent has used the driver, has files open and is downloading when it forks."""
    contents = [content(LENGTH, seed) for seed in range(3)]
    web.files.update({str(number): data for number, data in enumerate(contents)})
    shards = ShardFiles(
        [at(front, str(number)) for number in range(3)],
        [LENGTH] * 3,
        [digest(data) for data in contents],
        settings,
    )
    assert shards.read(0, 0, 100) == contents[0][:100]
    front.bytes_per_second = 1e6
    shards.prefetch([1])
    until(lambda: list(settings.folder().glob("*.partial")))

    def work() -> None:
        right = all(shards.read(n, 7, 50_000) == contents[n][7:50_007] for n in (1, 2, 0))
        os._exit(0 if right else 1)

    workers = [FORK.Process(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert shards.read(2, 1, 10) == contents[2][1:11]
    assert len(front.reads()) == 12  # each of three files once


def test_a_fork_does_not_inherit_the_right_to_download(tmp_path: Path) -> None:
    """A loader's worker must not block the node with the lock of a parent that was killed."""
    folder = CacheFolder(tmp_path / "cache", 1000)
    come, told = FORK.Pipe()

    def claim_and_fork() -> None:
        claim = folder.claim("0" * 64, 100, "a")
        assert isinstance(claim, Claim)
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
            os._exit(0)
        told.send(worker)
        time.sleep(60)

    parent = FORK.Process(target=claim_and_fork)
    parent.start()
    worker = come.recv()
    try:
        assert not isinstance(folder.claim("0" * 64, 100, "a"), Claim)
        parent.kill()
        until(lambda: parent.exitcode is not None)
        claim = folder.claim("0" * 64, 100, "a")
        assert isinstance(claim, Claim)
        claim.release()
    finally:
        os.kill(worker, 9)
