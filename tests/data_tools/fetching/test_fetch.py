"""The verb as a user runs it, against a local server and catalogues of the tests."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Server = Any
ActType = Any
Ran = Any
DataTools = Callable[..., Ran]
Facts = Callable[..., dict[str, Any]]


@pytest.fixture
def facts() -> Facts:
    """A file of the catalogue, with its published size and digest unless `known` is false."""

    def make(url: str | None, data: bytes, known: bool = True, **more: Any) -> dict[str, Any]:
        entry: dict[str, Any] = {"allow_http": True, **({"urls": [url]} if url else {}), **more}
        if known:
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            entry["origin"] = "the test"
        return entry

    return make


@pytest.fixture
def catalogue(tmp_path: Path) -> Callable[..., Path]:
    def write(*files: dict[str, Any], **more: Any) -> Path:
        data_set = {"title": "Tiny set", "licence": "CC0", "page": "https://example.org"}
        path = tmp_path / "catalogue.yaml"
        path.write_text(yaml.safe_dump({"sets": {"tiny": {**data_set, "files": files, **more}}}))
        return path

    return write


@pytest.fixture
def fetch(data_tools: DataTools, tmp_path: Path) -> DataTools:
    def run(path: Path, *options: object) -> Ran:
        out = ("--out", tmp_path / "out", "--retries", 0)
        return data_tools("fetch", "tiny", "--catalogue", path, *out, *options)

    return run


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/"), data)
    return stream.getvalue()


def test_the_second_run_needs_no_network(
    server: Server, facts: Facts, catalogue: Any, fetch: DataTools, body: bytes, tmp_path: Path
) -> None:
    url = server.add("/a.bin", body)
    path = catalogue(facts(url, body, name="a.bin"), then="Now look into {dir}.")
    first = fetch(path)
    assert first.status == 0
    assert "a.bin: fetched: 300,001 bytes, sha256 as published" in first.out
    assert f"Now look into {tmp_path / 'out'}." in first.out
    noted = json.loads((tmp_path / "out" / "fetched.json").read_text())["files"]["a.bin"]
    assert (noted["trust"], noted["url"]) == ("published", url)
    server.stop()
    second = fetch(path)
    assert (second.status, "a.bin: up to date" in second.out) == (0, True)


def test_one_that_fails_does_not_lose_the_others(
    server: Server,
    act: ActType,
    facts: Facts,
    catalogue: Any,
    fetch: DataTools,
    body: bytes,
    tmp_path: Path,
) -> None:
    bad = server.add("/bad", body, act(body=body[::-1]))
    good = server.add("/good", body)
    path = catalogue(
        facts(server.root + "/gone", body, name="gone"),
        facts(bad, body, name="bad"),
        facts(good, body, name="good"),
    )
    ran = fetch(path)
    assert ran.status == 1
    assert "good: fetched" in ran.out
    assert ran.err.splitlines()[-1] == "not complete: gone, bad"
    assert "HTTP 404" in ran.err
    assert "wrong bytes: sha256 is" in ran.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "bad.rejected",
        "fetched.json",
        "good",
    ]


def test_without_a_published_digest_the_first_download_decides(
    server: Server,
    act: ActType,
    facts: Facts,
    catalogue: Any,
    fetch: DataTools,
    body: bytes,
    tmp_path: Path,
) -> None:
    url = server.add("/a", body)
    path = catalogue(facts(url, body, known=False, name="a"))
    ran = fetch(path)
    assert ran.status == 0
    digest = hashlib.sha256(body).hexdigest()
    assert f"sha256 {digest}; no digest of it is published, so it is trusted on this first" in (
        ran.out
    )
    assert "up to date" in fetch(path).out
    verified = fetch(path, "--verify")
    assert "the same bytes as when it was first fetched" in verified.out
    assert len(server.requests) == 1

    file = tmp_path / "out" / "a"
    file.write_bytes(body[::-1])
    ran = fetch(path)
    assert ran.status == 1
    wrong = hashlib.sha256(body[::-1]).hexdigest()
    assert f"{file}: sha256 is {wrong}, recorded when it was first fetched is {digest}" in ran.err
    assert file.read_bytes() == body[::-1]  # a user's file is not for us to remove

    file.unlink()
    server.acts["/a"] = [act(body=body[::-1])]
    again = fetch(path)
    assert f"the file fetched before had sha256 {digest}" in again.out + again.err


def test_a_changed_file_is_found_even_with_its_size_and_time(
    server: Server, facts: Facts, catalogue: Any, fetch: DataTools, body: bytes, tmp_path: Path
) -> None:
    path = catalogue(facts(server.add("/a", body), body, name="a"))
    assert fetch(path).status == 0
    file = tmp_path / "out" / "a"
    status = file.stat()
    file.write_bytes(body[:-1] + b"?")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "up to date" in fetch(path).out  # as promised: --verify is what reads the bytes
    ran = fetch(path, "--verify")
    assert (ran.status, "published is" in ran.err) == (1, True)
    file.write_bytes(body)
    ran = fetch(path)
    assert (ran.status, "a: checked: sha256 as published" in ran.out) == (0, True)
    file.write_bytes(body + b"!")
    assert "300,002 bytes, published are 300,001; remove it" in fetch(path).err
    file.unlink()
    assert "missing; run without --verify" in fetch(path, "--verify").err
    assert len(server.requests) == 1


def test_files_behind_a_click(
    facts: Facts, catalogue: Any, fetch: DataTools, body: bytes, tmp_path: Path
) -> None:
    data = zipped(set__refs=body)
    path = catalogue(
        facts(None, data, name="set.zip", unpack="set", page="https://example.org/get"),
        facts(None, b"", known=False, name="more/b"),
        click="Sign the form at https://example.org/form.",
    )
    ran = fetch(path, "--unpack")
    assert ran.status == 1
    digest = hashlib.sha256(data).hexdigest()
    for part in (
        "Sign the form at https://example.org/form.",
        "Terms: CC0; see https://example.org",
        f"set.zip: get it from https://example.org/get, {len(data):,} bytes, sha256 {digest}",
        "without a published digest: more/b",
        f"Put them into {tmp_path / 'out'}",
    ):
        assert part in ran.out
    assert ran.err == "not complete: set.zip, more/b\n"

    (tmp_path / "out" / "set.zip").write_bytes(data)
    (tmp_path / "out" / "more").mkdir()
    (tmp_path / "out" / "more" / "b").write_bytes(b"b")
    ran = fetch(path, "--unpack")
    assert (ran.status, ran.err) == (0, "")
    assert "set.zip: checked: sha256 as published" in ran.out
    assert (tmp_path / "out" / "set" / "refs").read_bytes() == body

    (tmp_path / "out" / "set.zip").write_bytes(data[:-1] + b"?")
    ran = fetch(path)
    assert ran.status == 1
    assert f"published is {digest}" in ran.err


def test_unpacking_is_done_once_and_anew_for_another_archive(
    server: Server, facts: Facts, catalogue: Any, fetch: DataTools, tmp_path: Path
) -> None:
    one, two = zipped(a=b"1"), zipped(b=b"2")
    first = facts(server.add("/1.zip", one), one, name="1.zip", unpack="both")
    second = facts(server.add("/2.zip", two), two, name="2.zip", unpack="both")
    path = catalogue(first, second)
    ran = fetch(path, "--unpack", "--only", "1*")
    assert ran.status == 1
    assert "not unpacked, for want of 2.zip" in ran.err
    assert "both: unpacked: 2 files" in fetch(path, "--unpack").out
    folder = tmp_path / "out" / "both"
    assert [(folder / name).read_bytes() for name in "ab"] == [b"1", b"2"]
    assert "both: up to date" in fetch(path, "--unpack").out

    new = zipped(c=b"3")
    (tmp_path / "out" / "2.zip").unlink()
    path = catalogue(first, facts(server.add("/2.zip", new), new, name="2.zip", unpack="both"))
    assert "both: unpacked" in fetch(path, "--unpack").out
    assert sorted(path.name for path in folder.iterdir()) == [".unpacked.json", "a", "c"]


def test_a_hostile_archive_leaves_nothing(
    server: Server, facts: Facts, catalogue: Any, fetch: DataTools, tmp_path: Path
) -> None:
    data = zipped(good=b"1", **{"..__..__evil": b"2"})
    path = catalogue(facts(server.add("/a.zip", data), data, name="a.zip", unpack="a"))
    ran = fetch(path, "--unpack")
    assert ran.status == 1
    assert "leads out of the folder" in ran.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.zip", "fetched.json"]


def test_a_damaged_ledger_is_named(
    server: Server, facts: Facts, catalogue: Any, fetch: DataTools, body: bytes, tmp_path: Path
) -> None:
    path = catalogue(facts(server.add("/a", body), body, name="a"))
    assert fetch(path).status == 0
    ledger = tmp_path / "out" / "fetched.json"
    for text in ("{", "[]", '{"version": 2, "files": {}}', '{"version": 1, "files": {"a": 3}}'):
        ledger.write_text(text)
        ran = fetch(path)
        assert ran.status == 2
        assert f"{ledger}: not a record of fetched files" in ran.err
    ledger.unlink()
    assert "a: checked: sha256 as published" in fetch(path).out


def test_too_little_room_for_all_is_said_at_once(
    server: Server, facts: Facts, catalogue: Any, fetch: DataTools, body: bytes
) -> None:
    huge = facts(server.add("/a", body), body, name="a") | {"bytes": 10**18}
    ran = fetch(catalogue(huge))
    assert ran.status == 2
    assert "1,000,000,000,000,000,000 bytes are to come" in ran.err
    assert server.requests == []


def test_a_file_of_unknown_size_may_be_as_large_as_told(
    server: Server,
    act: ActType,
    facts: Facts,
    catalogue: Any,
    fetch: DataTools,
    body: bytes,
    tmp_path: Path,
) -> None:
    announced = act(headers={"Content-Length": "1000000001"}, cut=len(body))
    path = catalogue(facts(server.add("/a", body, announced), body, known=False, name="a"))
    ran = fetch(path, "--max-gb", 1)
    assert ran.status == 1
    assert "1,000,000,001 bytes, more than the 1,000,000,000 allowed" in ran.err
    assert "raise --max-gb" in ran.err
    assert not list((tmp_path / "out").glob("*.partial"))
    fetch(path, "--max-gb", 2)
    assert (tmp_path / "out" / "a.partial").stat().st_size == len(body), "it takes what comes"


def test_a_silent_server_is_given_up_when_told(
    server: Server, act: ActType, facts: Facts, catalogue: Any, fetch: DataTools, body: bytes
) -> None:
    silent = act(cut=1000, pause=8.0)  # then it closes, which would be another error
    path = catalogue(facts(server.add("/a", body, silent), body, name="a"))
    ran = fetch(path, "--timeout", 1)
    assert ran.status == 1
    assert "given up after 1 failures in a row: ReadTimeout" in ran.err


def test_two_runs_do_not_share_a_folder(
    server: Server, facts: Facts, catalogue: Any, fetch: DataTools, body: bytes, tmp_path: Path
) -> None:
    from wholegrain.data.shard_folder import locked_folder

    path = catalogue(facts(server.add("/a", body), body, name="a"))
    (tmp_path / "out").mkdir()
    with locked_folder(tmp_path / "out"):
        ran = fetch(path)
    assert (ran.status, "another run is changing it" in ran.err) == (2, True)


def test_names(data_tools: DataTools) -> None:
    ran = data_tools("fetch", "refcco")
    assert ran.status == 2
    assert "unknown data set 'refcco'; did you mean refcoco" in ran.err
    assert "no data set named" in data_tools("fetch").err
    assert "no such file" in data_tools("fetch", "coco2014", "--only", "x*").err


def test_the_list(data_tools: DataTools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in data_tools("fetch", "--list").out.splitlines()
        if "│" in line
    ]
    table = {row[0]: row[2:] for row in rows if row[0]}
    assert table["refcoco"] == ["1", "54.0 MB", "none stated", "no"]
    assert table["xvlm"] == ["2", "unknown", "BSD-3-Clause", "yes"]
    assert table["visual_genome"][:2] == ["6", "15.5 GB"]


@pytest.mark.parametrize("known", [True, False])
def test_killed_in_the_middle_it_transfers_only_the_rest(
    known: bool,
    server: Server,
    act: ActType,
    facts: Facts,
    catalogue: Any,
    repository: Path,
    tmp_path: Path,
) -> None:
    # Without a published digest the resume starts at the last sync, here the only one of 64 MiB.
    half, size = (3_000_000, 5_000_000) if known else (70 << 20, 72 << 20)
    data = bytes(range(256)) * (size // 256)
    hold = threading.Event()
    url = server.add("/big", data, act(cut=half, hold=hold), act())
    path = catalogue(facts(url, data, known=known, name="big.bin"))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "data_tools", "fetch", "tiny", "--catalogue", str(path)]
    command += ["--out", str(out)]
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE)
    try:
        partial = out / "big.bin.partial"
        wait_for(lambda: partial.exists() and partial.stat().st_size == half)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    hold.set()
    assert partial.stat().st_size == half
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "big.bin").read_bytes() == data
    resumed = server.requests[1]
    start = int(resumed.range.removeprefix("bytes=").removesuffix("-"))
    assert resumed.sent == len(data) - start
    assert start == half if known else 64 << 20 <= start <= half
    assert not partial.exists()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def test_hints_stand_a_folder_with_a_space(
    facts: Facts, catalogue: Any, data_tools: DataTools, tmp_path: Path
) -> None:
    out = tmp_path / "a folder"
    out.mkdir()
    (out / "b").write_bytes(b"b")
    lines = ["image_text --tars {dir}/shards/'*'.tar"]
    path = catalogue(facts(None, b"b", name="b", page="https://example.org"), convert=lines)
    ran = data_tools("fetch", "tiny", "--catalogue", path, "--out", out)
    assert ran.status == 0
    words = shlex.split(ran.out.splitlines()[-1])
    assert words[3:7] == ["convert", "image_text", "--tars", f"{out}/shards/*.tar"]


def test_tars_too(
    server: Server, facts: Facts, catalogue: Any, fetch: DataTools, tmp_path: Path
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        info = tarfile.TarInfo("top/1.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"jpg"))
    data = stream.getvalue()
    path = catalogue(facts(server.add("/a", data), data, name="a.tar.gz", unpack="images/a"))
    assert "images/a: unpacked: 1 files" in fetch(path, "--unpack").out
    assert (tmp_path / "out" / "images" / "a" / "1.jpg").read_bytes() == b"jpg"
