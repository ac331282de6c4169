"""Archives of others: what is taken, and what is refused whole."""

from __future__ import annotations

import io
import os
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.fetching import unpack as unpacking
from data_tools.fetching.unpack import is_unpacked, unpack
from wholegrain.errors import DataError

Members = dict[str, bytes]
Pack = Callable[[Path, Members], Path]


def pack_zip(path: Path, members: Members) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def pack_tar(path: Path, members: Members) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type, info.name = tarfile.DIRTYPE, name[:-1]
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


PACKERS = pytest.mark.parametrize("pack", [pack_zip, pack_tar])


def contents(folder: Path) -> Members:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".unpacked.json"
    }


@PACKERS
@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"a": b"1", "d/b": b"22"}, {"a": b"1", "d/b": b"22"}),
        ({"top/": b"", "top/refs(unc).p": b"1"}, {"refs(unc).p": b"1"}),
        ({"top/a/x": b"1", "top/b/x": b"2"}, {"a/x": b"1", "b/x": b"2"}),
        (
            {"top/a": b"1", "__MACOSX/top/._a": b"?", "top/.DS_Store": b"?", "top/._a": b"?"},
            {"a": b"1"},
        ),
        ({"top": b"file"}, {"top": b"file"}),
        ({"a/a": b"1"}, {"a": b"1"}),
        ({"empty": b""}, {"empty": b""}),
    ],
)
def test_what_comes_out(pack: Pack, members: Members, expected: Members, tmp_path: Path) -> None:
    archive = pack(tmp_path / "archive", members)
    folder = tmp_path / "folder"
    digests = {"archive": "d" * 64}
    assert not is_unpacked(folder, digests)
    assert unpack([archive], folder, digests) == len(expected)
    assert contents(folder) == expected
    assert is_unpacked(folder, digests)
    assert not is_unpacked(folder, {"archive": "e" * 64})


@PACKERS
@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../evil",
        "a/../../evil",
        "a/..",
        "C:/evil",
        "..\\evil",
        "a\\..\\evil",
        "a//b",
    ],
)
def test_names_that_lead_out(pack: Pack, name: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / "archive", {"good": b"1", name: b"2"})
    refused(archive, "leads out of the folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_special_files_in_a_tar(kind: bytes, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with tarfile.open(archive, "w") as file:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        file.addfile(info)
    refused(archive, "a link, sparse or special file")


def test_links_in_a_zip(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "archive", "w") as file:
        file.writestr(info, "/etc/passwd")
    refused(tmp_path / "archive", "a link or special file")


def test_encrypted_members(tmp_path: Path) -> None:
    archive = pack_zip(tmp_path / "archive", {"a": b"1"})
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    refused(archive, "encrypted")


@PACKERS
def test_twice_the_same_name(pack: Pack, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    if pack is pack_zip:
        with zipfile.ZipFile(archive, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("a", b"1")
            file.writestr("a", b"2")
    else:
        with tarfile.open(archive, "w") as file:
            for _ in range(2):
                file.addfile(tarfile.TarInfo("a"))
    refused(archive, "two members would be one file")


def test_two_archives_with_the_same_name(tmp_path: Path) -> None:
    archives = [pack_zip(tmp_path / name, {"a": b"1", "b": b"2"}) for name in ("x", "y")]
    with pytest.raises(DataError, match="another archive of the folder"):
        unpack(archives, tmp_path / "folder", {})
    assert not (tmp_path / "folder").exists()


@PACKERS
def test_more_than_an_archive_of_that_size_holds(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "_ALWAYS_ALLOWED", 0)
    archive = pack(tmp_path / "archive", {"zeros": bytes(1 << 20)})
    refused(archive, "more than 50 times its own size")


def test_a_zip_whose_member_is_larger_than_it_says(tmp_path: Path) -> None:
    archive = pack_zip(tmp_path / "archive", {"zeros": bytes(100_000)})
    data = bytearray(archive.read_bytes())
    for at in (data.index(b"PK\x03\x04") + 22, data.index(b"PK\x01\x02") + 24):
        data[at : at + 4] = (1000).to_bytes(4, "little")
    archive.write_bytes(data)
    refused(archive, "broken archive")


def test_a_zip_whose_member_is_smaller_than_it_says(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        file.writestr("a", bytes(1000))
    data = bytearray(archive.read_bytes())
    for at in (data.index(b"PK\x03\x04") + 22, data.index(b"PK\x01\x02") + 24):
        data[at : at + 4] = (2000).to_bytes(4, "little")
    archive.write_bytes(data)
    refused(archive, "a: 1,000 bytes and not 2,000")


def test_a_header_that_would_fill_the_memory(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as file:
        file.addfile(tarfile.TarInfo("first"))
        file.addfile(tarfile.TarInfo("n" * (2 << 20)))
    refused(archive, "a header of 2,097,1")


@PACKERS
def test_damage(pack: Pack, tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(100_000)
    archive = pack(tmp_path / "archive", {"a": noise, "b": noise})
    whole = archive.read_bytes()
    damaged = bytearray(whole)
    damaged[50_000] ^= 1
    archive.write_bytes(damaged)
    refused(archive, "broken archive")
    archive.write_bytes(whole[:120_000])
    refused(archive, "broken archive|neither zip nor tar")
    archive.write_bytes(b"no archive")
    refused(archive, "neither zip nor tar")


def test_random_damage_is_always_an_error_of_ours_or_none(tmp_path: Path) -> None:
    dice = random.Random(3)
    for number in range(120):
        pack = (pack_zip, pack_tar)[number % 2]
        archive = pack(tmp_path / "archive", {"d/a": b"1" * 500, "d/b": dice.randbytes(500)})
        data = bytearray(archive.read_bytes())
        for _ in range(3):
            data[dice.randrange(len(data))] = dice.randrange(256)
        archive.write_bytes(data)
        try:
            unpack([archive], tmp_path / f"folder-{number}", {})
        except DataError:
            assert not (tmp_path / f"folder-{number}").exists()


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    archive = pack_zip(tmp_path / "archive", {"a": b"1"})
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine").write_bytes(b"precious")
    with pytest.raises(DataError, match="is not overwritten"):
        unpack([archive], folder, {})
    assert os.listdir(folder) == ["mine"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack_zip(tmp_path / "archive", {"a": bytes(1000)})
    usage = unpacking.shutil.disk_usage(tmp_path)._replace(free=64 << 20)
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: usage)
    refused(archive, "make room")


def refused(archive: Path, message: str) -> None:
    folder = archive.parent / "folder"
    with pytest.raises(DataError, match=message) as error:
        unpack([archive], folder, {})
    assert str(archive) in str(error.value)
    # Neither the folder nor a half-made one beside it, nor anything above.
    assert [path.name for path in archive.parent.iterdir()] == ["archive"]
