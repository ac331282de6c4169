import argparse
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.sources import SOURCES
from data_tools.sources.base import Bad, Draft, Source
from data_tools.sources.image_text import SUMMARIES, read_image_text
from wholegrain.errors import DataError

Write = Callable[..., Path]
Photo = Callable[..., bytes]


def everything(source: Source) -> list[Draft | Bad]:
    """All that a source holds; what it leaves out is added to it."""
    return list(source.read(0, source.units, source.left_out))


def causes(path: Path) -> list[tuple[str, str]]:
    """(id, cause) of each bad sample, and (id, "") of each good one."""
    items = everything(read_image_text([str(path)], name="cc"))
    return [(item.id, item.cause if isinstance(item, Bad) else "") for item in items]


@pytest.fixture
def tar(tmp_path: Path, write_tar: Write, photo: Photo) -> Path:
    """Four samples: caption as text, caption in JSON, no caption, no photo."""
    meta = json.dumps({"caption": "from the JSON", "width": 999}).encode()
    return write_tar(
        tmp_path / "shards" / "00007.tar",
        [
            ("000.jpg", photo(0)),
            ("000.json", meta),
            ("000.txt", b" a caption \n"),
            ("001.png", photo(1)),
            ("001.json", meta),
            ("002.jpg", photo(2)),
            ("002.txt", b"  "),
            ("003.txt", b"words alone"),
            ("004.cls", b"7"),
        ],
    )


@pytest.fixture
def pairs(tmp_path: Path, write_tar: Write, photo: Photo) -> Callable[..., Path]:
    """Writes a tar of `count` pairs."""

    def write(name: str, count: int) -> Path:
        members = []
        for number in range(count):
            members += [(f"{number}.jpg", photo(number, 16, 16)), (f"{number}.txt", b"a caption")]
        return write_tar(tmp_path / "pairs" / name, members)

    return write


def test_pairs(tar: Path, photo: Photo) -> None:
    source = read_image_text([str(tar.parent / "*.tar")], name="cc")
    first, second, *bad = everything(source)
    assert (source.units, source.single, source.total) == (1, False, None)
    assert isinstance(first, Draft) and isinstance(second, Draft)
    assert (first.id, first.split, first.source) == ("cc/00007/000", "train", "cc")
    assert (first.captions, first.image, first.size) == (("a caption",), photo(0), None)
    assert first.photo is None
    assert second.captions == ("from the JSON",)
    assert [(item.id, item.cause) for item in bad if isinstance(item, Bad)] == [
        ("cc/00007/002", "text: missing"),
        ("cc/00007/003", "image: missing"),
    ]


@pytest.mark.parametrize(
    ("name", "data"), [("txt", b"caf\xe9"), ("json", b"{"), ("json", b'["caption"]')]
)
def test_broken_text_is_one_bad_sample(
    tmp_path: Path, write_tar: Write, photo: Photo, name: str, data: bytes
) -> None:
    path = write_tar(tmp_path / "a.tar", [("0.jpg", photo()), (f"0.{name}", data)])
    (bad,) = everything(read_image_text([str(path)]))
    assert isinstance(bad, Bad) and bad.cause == "text: broken"
    assert str(path) in bad.detail


def test_what_stands_before_the_damage_is_kept(pairs: Callable[..., Path]) -> None:
    path = pairs("00007.tar", 4)
    whole = path.read_bytes()
    third = whole.index(b"2.jpg\0")
    good = [("cc/00007/0", ""), ("cc/00007/1", "")]
    damaged = ("cc/00007", "tar: damaged")
    for cut in (third, third + 100, third + 512, third + 700):
        path.write_bytes(whole[:cut])
        assert causes(path) == [*good, damaged]
    path.write_bytes(whole[: third + 148] + b"junk" + whole[third + 152 :])
    assert causes(path) == [*good, damaged]
    (*_, bad) = everything(read_image_text([str(path)]))
    assert isinstance(bad, Bad) and f"{path}: byte {third}: no tar header" in bad.detail


def test_a_sample_that_the_damage_cuts_is_no_second_fault(pairs: Callable[..., Path]) -> None:
    path = pairs("00007.tar", 2)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"1.txt\0") + 200])  # the photo is there, the text is not
    assert causes(path) == [("cc/00007/0", ""), ("cc/00007", "tar: damaged")]


def test_what_is_no_tar_is_one_bad_sample(tmp_path: Path) -> None:
    for data in (b"", b"<html>gone</html>", b"\x1f\x8b" + bytes(2000)):
        (tmp_path / "0.tar").write_bytes(data)
        assert causes(tmp_path / "0.tar") == [("cc/0", "tar: damaged")]


@pytest.mark.parametrize("fault", ["link", "absolute", "climbing"])
def test_a_tar_with_links_or_names_that_lead_out_is_refused(
    tmp_path: Path, photo: Photo, pairs: Callable[..., Path], fault: str
) -> None:
    path = pairs("a.tar", 1)
    with tarfile.open(path, "a") as archive:
        names = {"link": "1.jpg", "absolute": "/etc/passwd.jpg", "climbing": "../1.jpg"}
        info = tarfile.TarInfo(names[fault])
        if fault == "link":
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
        archive.addfile(tarfile.TarInfo("2.jpg"))
    assert causes(path) == [("cc/a/0", ""), ("cc/a", "tar: refused")]


def test_each_fault_of_a_sample_costs_that_sample(
    tmp_path: Path, write_tar: Write, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_tools.sources.tar_groups._LIMITS", {"jpg": 5000, "txt": 100})
    members = [
        *(("apart.jpg", photo()), ("apart.txt", b"text")),
        *(("twice.jpg", photo()), ("twice.jpg", photo()), ("twice.txt", b"text")),
        *(("large.jpg", photo()), ("large.txt", b"text" * 26)),
        ("apart.jpg", photo()),
        *(("good.jpg", photo()), ("good.txt", b"text")),
    ]
    assert causes(write_tar(tmp_path / "0.tar", members)) == [
        ("cc/0/apart", ""),
        ("cc/0/twice", "tar: member twice"),
        ("cc/0/large", "tar: member too large"),
        ("cc/0/apart", "tar: members apart"),
        ("cc/0/good", ""),
    ]


def test_a_tar_that_cannot_be_opened_stops_the_work(pairs: Callable[..., Path]) -> None:
    path = pairs("0.tar", 1)
    source = read_image_text([str(path)])
    path.unlink()
    with pytest.raises(DataError, match=r"0\.tar: cannot be opened"):
        everything(source)


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 7, 9])
def test_a_limit_counts_over_tars(pairs: Callable[..., Path], limit: int) -> None:
    for name, count in (("a.tar", 3), ("b.tar", 0), ("c.tar", 2), ("d.tar", 2)):
        path = pairs(name, count)
    tars = [str(path.parent / "*.tar")]
    source = read_image_text(tars, limit=limit)
    found = everything(source)
    assert len(found) == source.total == min(limit, 7)
    assert found == everything(read_image_text(tars))[:limit]
    # Each tar by itself gives the same.
    single = [list(source.read(unit, unit + 1, Counter())) for unit in range(source.units)]
    assert [item for piece in single for item in piece] == found


def img2dataset(number: int, status: str = "success") -> bytes:
    """The JSON that img2dataset writes beside a photo."""
    meta = {
        "caption": f"caption {number}",
        "url": f"http://example.org/{number}.jpg",
        "key": f"{number:09d}",
        "status": status,
        "error_message": None if status == "success" else "HTTP Error 404",
        "width": 64,
        "height": 48,
        "original_width": 640,
        "original_height": 480,
        "exif": "{}",
        "sha256": "0" * 64,
    }
    return json.dumps(meta).encode()


@pytest.mark.parametrize("name", sorted(SUMMARIES))
def test_published_sets_as_img2dataset_writes_them(
    tmp_path: Path, write_tar: Write, photo: Photo, name: str
) -> None:
    folder = tmp_path / name
    for tar in range(2):
        members = []
        for number in range(10 * tar, 10 * tar + 3):
            key = f"{number:09d}"
            members.append((f"{key}.jpg", photo(number)))
            members.append((f"{key}.json", img2dataset(number)))
            members.append((f"{key}.txt", f"caption {number}".encode()))
        members.append(("000000099.json", img2dataset(99, "failed_to_download")))
        write_tar(folder / f"{tar:05d}.tar", members)
        (folder / f"{tar:05d}_stats.json").write_text('{"count": 4, "successes": 3}')
        (folder / f"{tar:05d}.parquet").write_bytes(b"PAR1")
    args = argparse.Namespace(
        source=name, name=None, limit=None, split="train", tars=[str(folder / "*")]
    )
    source = SOURCES[name].open_source(args)
    found = everything(source)
    assert [item.id for item in found][:3] == [f"{name}/00000/{n:09d}" for n in range(3)]
    assert all(isinstance(item, Draft) and item.source == name for item in found)
    assert len(found) == 6
    assert (source.name, source.published, source.units) == (name, name, 2)
    assert source.left_out == {"not fetched (status)": 2}


def test_a_status_of_others_means_nothing(tmp_path: Path, write_tar: Write, photo: Photo) -> None:
    meta = json.dumps({"caption": "a caption", "status": "draft"}).encode()
    path = write_tar(tmp_path / "0.tar", [("0.jpg", photo()), ("0.json", meta)])
    assert causes(path) == [("cc/0/0", "")]


def test_globs_that_match_nothing_or_twice_the_same_name(
    tmp_path: Path, write_tar: Write, photo: Photo
) -> None:
    with pytest.raises(DataError, match="no file matches"):
        read_image_text([str(tmp_path / "*.tar")])
    for folder in ("a", "b"):
        write_tar(tmp_path / folder / "0.tar", [("0.jpg", photo())])
    with pytest.raises(DataError, match="two files are called '0'"):
        read_image_text([str(tmp_path / "*" / "*.tar")])


def test_a_real_shard(real_data: Path) -> None:
    items = everything(read_image_text([str(real_data / "webdataset" / "*.tar")]))
    assert len(items) == 32
    assert all(isinstance(item, Draft) and len(item.captions) == 1 for item in items)
