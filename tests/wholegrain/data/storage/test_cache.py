"""The cache over storage that does not fail: what is fetched, kept, shared and evicted."""

from __future__ import annotations

import errno
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.wholegrain.data.storage.contents import cached_bytes, content, digest
from wholegrain.data.storage import NodeCache, RemoteFile, StorageConfig, configure, default_cache
from wholegrain.data.storage import current as current_settings
from wholegrain.data.storage import download as downloading
from wholegrain.data.storage.cache_folder import Busy, Claim
from wholegrain.errors import ConfigError, DataError

MB = 1_000_000
Make = Callable[..., NodeCache]
Store = Callable[[str, bytes], str]


@pytest.fixture
def store() -> Iterator[Store]:
    """Puts a file into fsspec's memory; returns its URL."""
    system = fsspec.filesystem("memory")

    def put(name: str, data: bytes) -> str:
        system.pipe_file(f"/c/{name}", data)
        return f"memory://c/{name}"

    yield put
    system.store.clear()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(URL, first byte, end) of each ranged read."""
    reads: list[tuple[str, int, int]] = []
    real = downloading.read_range

    def read(url: str, start: int, stop: int, *rest: Any) -> bytes:
        reads.append((url, start, stop))
        return real(url, start, stop, *rest)

    monkeypatch.setattr(downloading, "read_range", read)
    return reads


def wholes(folder: Path) -> set[str]:
    return {path.name.partition(".")[0] for path in folder.glob("*.whole")}


def test_a_file_is_fetched_once_in_sequential_blocks(
    make_cache: Make, store: Store, fetched: list[tuple[str, int, int]]
) -> None:
    data = content(MB)
    url, cache = store("a", data), make_cache()
    for _ in range(3):
        with cache.local(url, len(data), digest(data)) as file:
            assert file.read() == data
    block = 2**18
    assert fetched == [(url, at, min(at + block, MB)) for at in range(0, MB, block)]
    assert wholes(cache.folder) == {digest(data)}
    assert not list(cache.folder.glob("*.partial"))


def test_content_is_shared_whatever_its_address(
    make_cache: Make, store: Store, fetched: list[tuple[str, int, int]]
) -> None:
    data = content(1000)
    make_cache().local(store("a", data), 1000, digest(data)).close()
    make_cache().local("memory://c/elsewhere", 1000, digest(data).upper()).close()
    assert len(fetched) == 1


def test_a_file_of_unknown_content_is_fetched_again_when_it_changes(
    make_cache: Make, store: Store, fetched: list[tuple[str, int, int]]
) -> None:
    cache, url = make_cache(), store("manifest.json", b"{}")
    assert cache.local(url).read() == cache.local(url).read() == b"{}"
    assert len(fetched) == 1
    store("manifest.json", b"[]")
    assert cache.local(url).read() == b"[]"


def test_an_empty_file_is_a_file(make_cache: Make, store: Store) -> None:
    assert make_cache().local(store("a", b""), 0, digest(b"")).read() == b""


def test_wrong_content_is_fetched_three_times_and_named(
    make_cache: Make, store: Store, fetched: list[tuple[str, int, int]]
) -> None:
    cache, url, wanted = make_cache(), store("a", b"altered"), digest(b"content")
    for _ in range(4):  # a bad shard is not fetched anew for each of its samples
        with pytest.raises(DataError) as error:
            cache.local(url, 7, wanted)
        for part in (url, wanted, digest(b"altered"), "again"):
            assert part in str(error.value)
    assert len(fetched) == 3
    assert cached_bytes(cache.folder) == 0


@pytest.mark.parametrize("sha256", [None, digest(b"content")])
def test_a_wrong_length_is_named(make_cache: Make, store: Store, sha256: str | None) -> None:
    with pytest.raises(DataError, match=r"memory://c/a: 7 bytes where the manifest says 9"):
        make_cache().local(store("a", b"content"), 9, sha256)


def test_a_missing_file_is_named_at_once(make_cache: Make, store: Store) -> None:
    with pytest.raises(DataError, match="memory://c/b: there is no such file"):
        make_cache().local("memory://c/b", 9)
    with pytest.raises(DataError, match="sha256 is 'abc'"):
        make_cache().local(store("a", b"x"), 1, "abc")


def test_least_recently_used_files_go_and_the_bound_holds(make_cache: Make, store: Store) -> None:
    cache = make_cache(3 * MB)
    data = [content(MB, seed) for seed in range(5)]
    urls = [store(str(seed), each) for seed, each in enumerate(data)]
    for age, seed in enumerate((2, 0, 1)):
        cache.local(urls[seed], MB, digest(data[seed])).close()
        then = time.time() - 1000 + age
        os.utime(cache.folder / f"{digest(data[seed])}.whole", (then, then))
    cache.local(urls[2], MB, digest(data[2])).close()  # used again
    for seed, kept in ((3, {1, 2, 3}), (4, {2, 3, 4})):
        cache.local(urls[seed], MB, digest(data[seed])).close()
        assert wholes(cache.folder) == {digest(data[each]) for each in kept}
        assert cached_bytes(cache.folder) <= 3 * MB


def test_a_reader_outlives_the_eviction_of_its_file(make_cache: Make, store: Store) -> None:
    cache, data = make_cache(1500), [content(1000, seed) for seed in range(2)]
    old = cache.local(store("a", data[0]), 1000, digest(data[0]))
    assert not old.evicted
    cache.local(store("b", data[1]), 1000, digest(data[1])).close()
    assert old.evicted
    with old.reader() as reader:
        old.close()
        assert reader.read() == data[0]


def test_a_held_file_is_not_evicted(make_cache: Make, store: Store) -> None:
    cache, data = make_cache(2500, patience_s=0.3), [content(1000, seed) for seed in range(4)]
    urls = [store(str(seed), each) for seed, each in enumerate(data)]
    for _ in range(2):  # a fresh one, and one found there
        held = cache.local(urls[0], 1000, digest(data[0]), hold=True)
        for seed in (1, 2, 3):
            cache.local(urls[seed], 1000, digest(data[seed])).close()
            assert digest(data[0]) in wholes(cache.folder)
        held.close()
    held = [cache.local(urls[seed], 1000, digest(data[seed]), hold=True) for seed in (0, 1)]
    with pytest.raises(DataError, match=r"full of files in use .*raise storage.cache_gb"):
        cache.local(urls[2], 1000, digest(data[2]))
    for each in held:
        each.close()
    cache.local(urls[2], 1000, digest(data[2])).close()


def test_a_file_larger_than_the_cache_is_refused(make_cache: Make, store: Store) -> None:
    with pytest.raises(ConfigError, match=r"c/a: 2000 bytes .* 1500 bytes; set .*cache_gb"):
        make_cache(1500).local(store("a", bytes(2000)), 2000)


def test_a_download_goes_on_from_what_a_dead_process_left(
    make_cache: Make, store: Store, fetched: list[tuple[str, int, int]]
) -> None:
    data, cache = content(MB), make_cache()
    url = store("a", data)
    cache.folder.mkdir()
    left = cache.folder / f"{digest(data)}.{MB}.partial"
    left.write_bytes(data[:700_000])
    assert cache.local(url, MB, digest(data)).read() == data
    assert fetched[0][1] == 700_000
    assert not left.exists()


def test_wrong_leftovers_do_no_harm(make_cache: Make, store: Store) -> None:
    data, cache = content(MB), make_cache()
    cache.folder.mkdir()
    for length in (300_000, MB, MB + 5):
        left = cache.folder / f"{digest(data)}.{MB}.partial"
        left.write_bytes(bytes(length))
        assert cache.local(store("a", data), MB, digest(data)).read() == data
        (cache.folder / f"{digest(data)}.whole").unlink()


def test_without_a_digest_nothing_is_gone_on_from(make_cache: Make, store: Store) -> None:
    cache, url = make_cache(), store("a", content(1000, 1))
    cache.local(url, 1000).close()
    (whole,) = cache.folder.glob("*.whole")
    whole.rename(whole.with_name(f"{whole.name.partition('.')[0]}.1000.partial"))
    store("a", content(1000, 2))
    assert cache.local(url, 1000).read() == content(1000, 2)


def test_a_truncated_copy_is_fetched_again(make_cache: Make, store: Store) -> None:
    data, cache = content(1000), make_cache()
    url = store("a", data)
    cache.local(url, 1000, digest(data)).close()
    os.truncate(cache.folder / f"{digest(data)}.whole", 10)
    assert cache.local(url, 1000, digest(data)).read() == data


def test_leftovers_are_swept_and_strangers_are_not(make_cache: Make, store: Store) -> None:
    cache = make_cache(5000)
    cache.folder.mkdir()
    old, young = (cache.folder / f"{digest(name)}.1000.partial" for name in (b"old", b"young"))
    stranger = cache.folder / "thesis.tex"
    for path in (old, young, stranger):
        path.write_bytes(b"x")
    for path in (old, stranger):
        os.utime(path, (1e9, 1e9))
    cache.local(store("a", bytes(3000)), 3000).close()
    assert not old.exists() and young.exists()
    cache.local(store("b", bytes(4500)), 4500).close()  # what nobody goes on with goes first
    assert not young.exists() and stranger.exists()


def test_a_reservation_counts_from_the_first_byte(make_cache: Make, store: Store) -> None:
    """Two downloads at once must not together exceed what each alone keeps."""
    cache, other = make_cache(1500), make_cache(1500, patience_s=0.2)
    data = [content(1000, seed) for seed in range(2)]
    claim = cache._files.claim(digest(data[0]), 1000, "a")
    url = store("b", data[1])
    with pytest.raises(DataError, match="full of files in use"):
        other.local(url, 1000, digest(data[1]))
    assert isinstance(claim, Claim)
    claim.release()
    other.local(url, 1000, digest(data[1])).close()


def test_who_comes_late_finds_the_file_whole(make_cache: Make, store: Store) -> None:
    """Between looking for a file and asking to download it, another process may have done so."""
    cache, data = make_cache(), content(1000)
    first = cache._files.claim(digest(data), 1000, "a")
    assert isinstance(first, Claim)
    assert isinstance(cache._files.claim(digest(data), 1000, "a"), Busy)
    os.pwrite(first.descriptor, data, 0)
    with cache._files.locked():  # as long as somebody else looks around, nothing is renamed
        keeping = threading.Thread(target=first.keep)
        keeping.start()
        keeping.join(0.2)
        assert not wholes(cache.folder)
    keeping.join()
    first.release()
    assert cache._files.claim(digest(data), 1000, "a") is None
    assert cache.local("memory://nowhere", 1000, digest(data)).read() == data


def test_nothing_is_evicted_in_vain(make_cache: Make, store: Store) -> None:
    cache, data = make_cache(2500, patience_s=0.2), content(1000)
    cache.local(store("a", data), 1000, digest(data)).close()
    claim = cache._files.claim(digest(b"b"), 1000, "b")
    assert isinstance(claim, Claim)
    with pytest.raises(DataError, match="full of files in use"):
        cache.local(store("c", bytes(2000)), 2000)
    assert wholes(cache.folder) == {digest(data)}
    claim.release()


def test_a_full_disk_makes_room_first_and_says_so_when_there_is_none(
    make_cache: Make, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, real = make_cache(), os.pwrite
    data = [content(MB, seed) for seed in range(3)]
    urls = [store(str(seed), each) for seed, each in enumerate(data)]

    def pwrite(descriptor: int, block: memoryview, offset: int) -> int:
        if cached_bytes(cache.folder) + len(block) > 2 * MB:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, block, offset)

    monkeypatch.setattr(downloading.os, "pwrite", pwrite)
    for seed in range(3):
        with cache.local(urls[seed], MB, digest(data[seed])) as file:
            assert file.read() == data[seed]
    large = store("large", content(3 * MB))
    with pytest.raises(DataError, match=r"large: .*No space left.*bytes left.*storage\.cache"):
        cache.local(large, 3 * MB)
    assert cached_bytes(cache.folder) <= 2 * MB


def test_an_unusable_folder_is_named(make_cache: Make, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/cache: .*WHOLEGRAIN_CACHE"):
        make_cache(cache=tmp_path / "file" / "cache").local(store("a", b"x"), 1)


def test_files_are_opened_in_place(make_cache: Make, tmp_path: Path) -> None:
    (tmp_path / "a b.tar").write_bytes(b"content")
    cache = make_cache()
    assert cache.local(f"file://{tmp_path}/a%20b.tar", 7).read() == b"content"
    with pytest.raises(DataError, match="7 bytes where the manifest says 8"):
        cache.local(f"file://{tmp_path}/a%20b.tar", 8)
    with pytest.raises(DataError, match=r"none\.tar: cannot be opened"):
        cache.local(f"file://{tmp_path}/none.tar")
    assert not cache.folder.exists()


def test_it_travels_by_pickle(make_cache: Make, store: Store) -> None:
    cache = make_cache()
    copy = pickle.loads(pickle.dumps(cache))
    assert (copy.folder, copy.max_bytes) == (cache.folder, cache.max_bytes)
    assert copy.local(store("a", b"x"), 1).read() == b"x"


def test_files_come_ahead_of_their_use(make_cache: Make, store: Store) -> None:
    data = [content(1000, seed) for seed in range(6)]
    files = [RemoteFile(store(str(n), each), 1000, digest(each)) for n, each in enumerate(data)]
    missing = RemoteFile("memory://c/missing", 5, digest(b"?"))
    cache = make_cache(prefetch=4)
    cache.prefetch([missing, *files])
    for _ in range(500):
        if len(wholes(cache.folder) if cache.folder.exists() else ()) == 3:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert wholes(cache.folder) == {digest(each) for each in data[:3]}  # four may wait
    with pytest.raises(DataError, match="missing: there is no such file"):
        cache.local(*missing)
    idle = make_cache(prefetch=0, cache=cache.folder / "idle")
    idle.prefetch(files)
    assert not idle.folder.exists()


def test_settings_come_from_code_and_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = current_settings()
    monkeypatch.setenv("WHOLEGRAIN_CACHE", str(tmp_path / "fast"))
    monkeypatch.setenv("WHOLEGRAIN_CACHE_GB", "2.5")
    cache = default_cache()
    assert (cache.folder, cache.max_bytes) == (tmp_path / "fast", 2_500_000_000)
    try:
        configure(StorageConfig(cache=tmp_path / "own", cache_gb=1.0))
        assert (default_cache().folder, default_cache().max_bytes) == (tmp_path / "own", 10**9)
        assert default_cache() is default_cache()
    finally:
        configure(before)
    monkeypatch.setenv("WHOLEGRAIN_CACHE_GB", "lots")
    with pytest.raises(ConfigError, match="WHOLEGRAIN_CACHE_GB is 'lots'"):
        default_cache()
