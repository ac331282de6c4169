"""HTTP: servers with and without ranges, faults on the way, and servers that are not there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wholegrain.data.storage.contents import content, digest, until
from tests.wholegrain.data.storage.faulty_proxy import FAULTS, FaultyProxy
from tests.wholegrain.data.storage.servers import RangeServer
from wholegrain.data.corpus_files import ShardFiles
from wholegrain.data.storage import NodeCache, StorageConfig, StorageGone
from wholegrain.errors import DataError

LENGTH = 900_000
DATA = content(LENGTH)
Make = Callable[..., NodeCache]
Before = Callable[[int], FaultyProxy]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_is_read_with_and_without_ranges(
    make_cache: Make, web: RangeServer, ranges: bool
) -> None:
    web.files["a.tar"], web.ranges = DATA, ranges
    assert make_cache().local(web.url("a.tar"), LENGTH, digest(DATA)).read() == DATA
    assert make_cache().local(web.url("a.tar?signature=1")).read() == DATA


def test_a_plain_web_server_says_what_is_wrong(make_cache: Make, web: RangeServer) -> None:
    web.files["a"], web.refused = DATA, {"secret"}
    cache = make_cache()
    with pytest.raises(DataError, match=r"/none: there is no such file"):
        cache.local(web.url("none"))
    with pytest.raises(DataError, match=r"/secret: access is refused .* credentials"):
        cache.local(web.url("secret"), 5)
    with pytest.raises(DataError, match=f"{LENGTH} bytes where the manifest says 10"):
        cache.local(web.url("a"), 10)
    web.lengths = False
    with pytest.raises(DataError, match="does not say how long"):
        cache.local(web.url("a"))


def test_a_file_that_changes_while_it_is_read_is_read_anew(
    make_cache: Make, web: RangeServer, proxy: Before
) -> None:
    front, other = proxy(web.port), content(LENGTH, 1)
    web.files["a"] = DATA
    front.bytes_per_second = 4e6
    cache = make_cache()

    def change() -> None:
        until(lambda: len(front.reads()) >= 2)
        web.files["a"] = other

    thread = threading.Thread(target=change)
    thread.start()
    with cache.local(f"http://127.0.0.1:{front.port}/a", LENGTH) as file:
        assert file.read() == other
    thread.join()


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "stall"])
def test_one_fault_costs_one_request_or_one_fetch(
    make_cache: Make, web: RangeServer, proxy: Before, fault: str
) -> None:
    front = proxy(web.port)
    web.files["a"] = DATA
    front.faults.extend(["", fault])
    url = f"http://127.0.0.1:{front.port}/a"
    assert make_cache().local(url, LENGTH, digest(DATA)).read() == DATA
    assert len(front.reads()) == (8 if fault == "garbage" else 5)


def test_a_request_that_hangs_is_given_up(
    make_cache: Make, web: RangeServer, proxy: Before
) -> None:
    front = proxy(web.port)
    web.files["a"] = DATA
    front.faults.extend(["stall", "", "stall"])
    url = f"http://127.0.0.1:{front.port}/a"
    assert make_cache(timeout_s=0.5).local(url, LENGTH, digest(DATA)).read() == DATA


@pytest.mark.slow
def test_slow_storage_gets_smaller_requests(
    make_cache: Make, web: RangeServer, proxy: Before
) -> None:
    """A block of 256 KiB takes longer than a request may; the file comes all the same."""
    front = proxy(web.port)
    web.files["a"] = DATA
    front.bytes_per_second = 500_000.0
    url = f"http://127.0.0.1:{front.port}/a"
    cache = make_cache(timeout_s=0.35, attempts=4)
    assert cache.local(url, LENGTH, digest(DATA)).read() == DATA


def test_storage_that_is_gone_ends_it_in_bounded_time(
    make_cache: Make, web: RangeServer, proxy: Before
) -> None:
    front = proxy(web.port)
    url = f"http://127.0.0.1:{front.port}/a"
    front.always = "stall"
    cache = make_cache(timeout_s=0.3, patience_s=1.5, attempts=1000)
    for limit in (4.0, 2.0):  # the second time there is less patience
        start = time.monotonic()
        with pytest.raises(StorageGone, match=rf"{url}: the storage is gone: .*start again"):
            cache.local(url, LENGTH, digest(DATA))
        assert time.monotonic() - start < limit + 6.0  # a bound, not a speed
    front.always = ""
    web.files["a"] = DATA
    assert cache.local(url, LENGTH, digest(DATA)).read() == DATA  # and back it is


def test_nobody_listens(make_cache: Make) -> None:
    with pytest.raises(StorageGone, match="3 attempts"):
        make_cache(attempts=3).local("http://127.0.0.1:9/a", LENGTH, digest(DATA))


faults = st.lists(st.sampled_from(["", "", *FAULTS]), max_size=12)
place = st.tuples(st.integers(0, LENGTH), st.integers(0, 5000))


@pytest.mark.slow
@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    sequence=faults,
    forever=st.sampled_from(["", "", "", "500", "reset", "garbage", "truncate"]),
    places=st.lists(
        st.tuples(st.integers(0, LENGTH), st.integers(0, 5000)), min_size=1, max_size=4
    ),
)
def test_whatever_happens_bytes_are_right_or_an_error_says_so(
    web: RangeServer,
    proxy: Before,
    tmp_path_factory: pytest.TempPathFactory,
    sequence: list[str],
    forever: str,
    places: list[tuple[int, int]],
) -> None:
    front = proxy(web.port)
    web.files["a"] = DATA
    config = StorageConfig(
        cache=tmp_path_factory.mktemp("cache"),
        cache_gb=0.01,
        block_mb=0.25,
        attempts=3,
        timeout_s=0.25,
        patience_s=3.0,
    )
    front.faults.extend([*sequence, *[forever] * 40] if forever else sequence)
    shards = ShardFiles([f"http://127.0.0.1:{front.port}/a"], [LENGTH], [digest(DATA)], config)
    for offset, length in places:
        length = min(length, LENGTH - offset)
        try:
            assert shards.read(0, offset, length) == DATA[offset : offset + length]
        except DataError as error:
            assert str(error).startswith(f"http://127.0.0.1:{front.port}/a: ")
            front.faults.clear()
    front.faults.clear()
    front.close()
