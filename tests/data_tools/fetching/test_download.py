"""Downloads from a server that drops, stalls, lies and changes its mind."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_tools.fetching import partial as partial_module
from data_tools.fetching.catalogue import File
from data_tools.fetching.download import Fetched, Patience, download, new_client
from wholegrain.errors import DataError

Get = Callable[..., Fetched]
# Server, Act and the maker of files are fixtures of conftest.py.
Server = Any
ActType = Any
Make = Callable[..., File]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "set.zip"


@pytest.fixture
def get(path: Path) -> Get:
    def run(file: File, retries: int = 3, limit: int = 10**9, timeout: float = 10.0) -> Fetched:
        patience = Patience(timeout, retries, first_wait=0.001, longest_wait=0.01)
        with new_client(patience) as client:
            return download(client, file, path, patience=patience, limit=limit)

    return run


def left_over(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir() if entry != path)


def test_a_whole_file(server: Server, published: Make, body: bytes, get: Get, path: Path) -> None:
    url = server.add("/set.zip", body)
    fetched = get(published(url, body=body))
    assert path.read_bytes() == body
    assert fetched == Fetched(
        len(body),
        {"sha256": hashlib.sha256(body).hexdigest(), "md5": hashlib.md5(body).hexdigest()},
        url,
    )
    assert left_over(path) == []


def test_dropped_connections_cost_only_what_was_missing(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    url = server.add("/a", body, act(cut=100_000), act(cut=50_000), act())
    get(published(url, body=body))
    assert path.read_bytes() == body
    assert [request.range for request in server.requests] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
    ]
    assert [request.if_range for request in server.requests] == [None, '"one"', '"one"']
    assert sum(request.sent for request in server.requests) == len(body)


def test_a_dropped_chunked_answer_is_noticed(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    url = server.add("/a", body, act(cut=100_000, chunked=True), act(chunked=True))
    get(published(url))  # neither size nor digest is known
    assert path.read_bytes() == body


def test_retries_end(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    url = server.add("/a", body, act(cut=0))
    with pytest.raises(DataError, match="given up after 3 failures in a row"):
        get(published(url, body=body), retries=2)
    assert len(server.requests) == 3
    assert not path.exists()
    assert left_over(path) == []


def test_a_server_that_starts_over_for_ever_is_given_up(
    server: Server, act: ActType, published: Make, body: bytes, get: Get
) -> None:
    url = server.add("/a", body, act(cut=200_000, ranges=False))
    with pytest.raises(DataError, match="given up"):
        get(published(url, body=body), retries=4)
    assert len(server.requests) == 5


def test_nor_does_much_progress_that_is_lost_each_time_go_on_for_ever(
    server: Server, act: ActType, published: Make, get: Get
) -> None:
    large = bytes(3 << 20)
    url = server.add("/a", large, *[act(cut=2 << 20, ranges=False)] * 9, act(status=404))
    with pytest.raises(DataError, match="given up"):
        get(published(url, body=large), retries=2)
    assert len(server.requests) == 3


def test_a_later_run_goes_on_where_the_first_gave_up(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    url = server.add("/a", body, act(cut=120_000), act())
    with pytest.raises(DataError):
        get(published(url, body=body), retries=0)
    assert left_over(path) == ["set.zip.partial", "set.zip.partial.json"]
    get(published(url, body=body))
    assert path.read_bytes() == body
    assert server.requests[1].range == "bytes=120000-"
    assert server.requests[1].sent == len(body) - 120_000
    assert left_over(path) == []


@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_changed_between_attempts_is_not_glued(
    known: bool, server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    other = body[::-1]
    first = act(body=body, cut=100_000, etag='"one"')
    url = server.add("/a", other, first, act(etag='"two"'))
    get(published(url, body=other if known else None))
    assert path.read_bytes() == other
    assert server.requests[1].if_range == '"one"'


@pytest.mark.parametrize("etags", [('"one"', '"two"'), (None, None)])
def test_nor_where_the_server_overlooks_if_range(
    etags: tuple[str | None, str | None],
    server: Server,
    act: ActType,
    published: Make,
    body: bytes,
    get: Get,
    path: Path,
) -> None:
    other = body[::-1]
    before, after = etags
    url = server.add(
        "/a", other, act(body=body, cut=100_000, etag=before), act(etag=after, if_range=False)
    )
    get(published(url))
    assert path.read_bytes() == other


def test_glued_all_the_same_is_found_by_the_digest_and_mended(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    other = body[::-1]
    # The server says that it is the same file, and it is not.
    url = server.add("/a", other, act(body=body, cut=100_000), act())
    get(published(url, body=other), retries=1)
    assert path.read_bytes() == other
    assert [request.range for request in server.requests] == [None, "bytes=100000-", None]


def test_without_digest_or_validator_nothing_is_resumed(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    url = server.add("/a", body, act(cut=100_000, etag=None), act(etag='W/"weak"'))
    get(published(url))
    assert path.read_bytes() == body
    assert [request.range for request in server.requests] == [None, None]


def test_last_modified_serves_as_validator_if_it_is_old_enough(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    old = "Wed, 21 Oct 2015 07:28:00 GMT"
    dated = {"headers": {"Last-Modified": old}, "etag": None, "if_range": False}
    url = server.add("/a", body, act(cut=100_000, **dated), act(**dated))
    get(published(url))
    assert path.read_bytes() == body
    assert (server.requests[1].range, server.requests[1].if_range) == ("bytes=100000-", old)


def test_a_server_without_ranges_sends_all_again(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    url = server.add("/a", body, act(cut=100_000, ranges=False), act(ranges=False))
    get(published(url, body=body))
    assert path.read_bytes() == body
    assert server.requests[1].sent == len(body)


@pytest.mark.parametrize(
    "answer",
    [
        {"Content-Range": "bytes 5-300000/300001"},
        {"Content-Range": "bytes 100000-300000/400000"},
        {"Content-Range": "lines 1-2/3"},
        {"Content-Range": "bytes 100000-99999/300001"},
    ],
)
def test_a_wrong_content_range_is_refused(
    answer: dict[str, str],
    server: Server,
    act: ActType,
    published: Make,
    body: bytes,
    get: Get,
    path: Path,
) -> None:
    url = server.add("/a", body, act(cut=100_000), act(headers=answer), act())
    get(published(url))
    assert path.read_bytes() == body
    assert [request.range for request in server.requests] == [None, "bytes=100000-", None]


def test_416_starts_over(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    short = body[:1000]
    url = server.add("/a", short, act(body=body, cut=100_000), act())
    get(published(url, bytes=None, sha256=hashlib.sha256(short).hexdigest(), origin="test"))
    assert path.read_bytes() == short


def test_faults_that_pass(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    url = server.add(
        "/a", body, act(status=500), act(status=503, headers={"Retry-After": "0"}), act()
    )
    get(published(url, body=body))
    assert path.read_bytes() == body


def test_faults_that_stay_are_not_retried_and_the_next_address_is_taken(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    gone = server.add("/gone", b"", act(status=410))
    url = server.add("/a", body)
    fetched = get(published(server.root + "/missing", gone, url, body=body))
    assert (path.read_bytes(), fetched.url) == (body, url)
    assert [request.path for request in server.requests] == ["/missing", "/gone", "/a"]


def test_a_second_address_goes_on_with_the_first_ones_bytes_if_a_digest_judges(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    first = server.add("/a", body, act(cut=100_000), act(status=404))
    second = server.add("/b", body, act(etag='"other"'))
    get(published(first, second, body=body))
    assert path.read_bytes() == body
    assert (server.requests[-1].range, server.requests[-1].if_range) == ("bytes=100000-", None)


def test_wrong_bytes_are_put_aside_and_the_message_names_both_digests(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    wrong = body[:-1] + b"!"
    url = server.add("/a", body, act(body=wrong))
    with pytest.raises(DataError) as error:
        get(published(url, body=body))
    for part in (str(path), hashlib.sha256(body).hexdigest(), hashlib.sha256(wrong).hexdigest()):
        assert part in str(error.value)
    assert left_over(path) == ["set.zip.rejected"]
    assert (path.parent / "set.zip.rejected").read_bytes() == wrong
    assert len(server.requests) == 1  # the same server would say the same

    good = server.add("/b", body)
    get(published(url, good, body=body))
    assert path.read_bytes() == body
    assert left_over(path) == []


def test_md5_alone_is_held_to(
    server: Server, published: Make, body: bytes, get: Get, path: Path
) -> None:
    url = server.add("/a", body)
    md5 = hashlib.md5(body).hexdigest()
    with pytest.raises(DataError, match=f"md5 is {md5} instead of the published {'0' * 32}"):
        get(published(url, md5="0" * 32, origin="test"))
    get(published(url, md5=md5, origin="test"))
    assert path.read_bytes() == body


def test_wrong_length_is_refused_before_the_first_byte(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    url = server.add("/a", body, act(body=body + b"!"))
    with pytest.raises(DataError, match=r"has 300,002 bytes, published are 300,001"):
        get(published(url, body=body))
    assert left_over(path) == []


def test_never_more_than_published(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    url = server.add("/a", body, act(body=body * 2, chunked=True))  # announces nothing
    with pytest.raises(DataError, match="more than 300,001 bytes"):
        get(published(url, body=body))
    assert left_over(path) == []


@pytest.mark.parametrize("chunked", [True, False])
def test_an_unknown_size_is_bounded(
    chunked: bool, server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    url = server.add("/a", body, act(chunked=chunked))
    with pytest.raises(DataError, match=r"more than (the )?200,000"):
        get(published(url), limit=200_000)
    assert left_over(path) == []


def test_no_size_at_all_is_refused(
    server: Server, act: ActType, published: Make, body: bytes, get: Get
) -> None:
    url = server.add("/a", body, act(without=("Content-Length",)))
    with pytest.raises(DataError, match="a cut would go unnoticed"):
        get(published(url))


def test_a_web_page_is_not_taken_for_the_file(
    server: Server, act: ActType, published: Make, get: Get
) -> None:
    page = act(headers={"Content-Type": "text/html; charset=utf-8"})
    url = server.add("/a", b"<html>please log in</html>", page)
    with pytest.raises(DataError, match="web page"):
        get(published(url))


def test_a_compressed_answer_is_refused(
    server: Server, act: ActType, published: Make, body: bytes, get: Get
) -> None:
    url = server.add("/a", body, act(headers={"Content-Encoding": "gzip"}))
    with pytest.raises(DataError, match="gzip-encoded"):
        get(published(url, body=body))


def test_silence_is_given_up_and_resumed(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    url = server.add("/a", body, act(cut=100_000, pause=2.0), act())
    get(published(url, body=body), timeout=0.2)
    assert path.read_bytes() == body
    assert server.requests[1].range == "bytes=100000-"


def test_redirects_are_followed_and_loops_end(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    server.add("/a", body, act(cut=100_000), act())
    url = server.add("/old", b"", act(status=302, headers={"Location": "/a"}))
    get(published(url, body=body))
    assert path.read_bytes() == body
    assert server.requests[3].range == "bytes=100000-"
    path.unlink()
    loop = server.add("/loop", b"", act(status=302, headers={"Location": "/loop"}))
    with pytest.raises(DataError, match="redirects"):
        get(published(loop, body=body))


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/a", "file:///etc/hostname"])
def test_redirects_leave_http_for_nothing_else(
    target: str, server: Server, act: ActType, published: Make, body: bytes, get: Get
) -> None:
    url = server.add("/old", b"", act(status=302, headers={"Location": target}))
    with pytest.raises(DataError, match="redirected to"):
        get(published(url, body=body))


def test_a_redirect_from_https_to_http_is_refused(body: bytes, published: Make, path: Path) -> None:
    import httpx2

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(302, headers={"Location": "http://example.org/a"})

    file = published("https://example.org/a", body=body, allow_http=False)
    with (
        httpx2.Client(transport=httpx2.MockTransport(answer)) as client,
        pytest.raises(DataError, match="is not https"),
    ):
        download(client, file, path, patience=Patience(), limit=1)


def test_a_refused_connection(server: Server, published: Make, body: bytes, get: Get) -> None:
    url = server.add("/a", body)
    server.stop()
    with pytest.raises(DataError, match="ConnectError"):
        get(published(url, body=body), retries=1)


def test_a_full_disk_is_seen_before_the_first_byte(
    server: Server,
    published: Make,
    body: bytes,
    get: Get,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(path.parent)._replace(free=70 << 20)
    monkeypatch.setattr(partial_module.shutil, "disk_usage", lambda _: usage)
    url = server.add("/a", body)
    get(published(url, body=body))
    path.unlink()
    usage = usage._replace(free=64 << 20)
    with pytest.raises(DataError, match=r"300,001 bytes are to come .* choose another --out"):
        get(published(url, body=body))
    assert left_over(path) == []


def test_notes_that_are_damaged_cost_the_resume_only(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    url = server.add("/a", body, act(cut=100_000), act())
    with pytest.raises(DataError):
        get(published(url, body=body), retries=0)
    (path.parent / "set.zip.partial.json").write_text('{"synced": "x"')
    get(published(url, body=body))
    assert path.read_bytes() == body
    assert server.requests[1].range is None


def test_without_a_digest_only_synced_bytes_are_gone_on_from(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    url = server.add("/a", body, act(cut=100_000), act())
    with pytest.raises(DataError):
        get(published(url), retries=0)
    # As after a power cut: the length is there, the bytes are not.
    partial = path.parent / "set.zip.partial"
    with partial.open("ab") as stream:
        stream.write(bytes(50_000))
    get(published(url))
    assert path.read_bytes() == body
    assert server.requests[1].range == "bytes=100000-"


def test_with_a_digest_bytes_that_a_power_cut_ate_are_found(
    server: Server, act: ActType, published: Make, body: bytes, get: Get, path: Path
) -> None:
    url = server.add("/a", body, act(cut=100_000), act())
    with pytest.raises(DataError):
        get(published(url, body=body), retries=0)
    partial = path.parent / "set.zip.partial"
    with partial.open("ab") as stream:
        stream.write(bytes(50_000))
    get(published(url, body=body), retries=0)
    assert path.read_bytes() == body


def test_a_download_that_only_lacks_its_name_needs_no_network(
    server: Server, published: Make, body: bytes, get: Get, path: Path, monkeypatch: Any
) -> None:
    url = server.add("/a", body)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(partial_module.Partial, "finish", killed)
        get(published(url, body=body))
    assert not path.exists()
    get(published(url, body=body))
    assert path.read_bytes() == body
    assert len(server.requests) == 1
