import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.sources.base import Bad, Draft
from data_tools.sources.image_text import read_image_text
from wholegrain.errors import DataError


@pytest.fixture
def tar(tmp_path: Path, write_tar: Callable[..., Path], photo: Callable[..., bytes]) -> Path:
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


def test_pairs(tar: Path, photo: Callable[..., bytes]) -> None:
    items = list(read_image_text([str(tar.parent / "*.tar")], name="cc").samples)
    first, second, *bad = items
    assert isinstance(first, Draft) and isinstance(second, Draft)
    assert (first.id, first.split, first.source) == ("cc/00007/000", "train", "cc")
    assert (first.captions, first.image, first.size) == (("a caption",), photo(0), None)
    assert second.captions == ("from the JSON",)
    assert [(item.id, item.cause) for item in bad if isinstance(item, Bad)] == [
        ("cc/00007/002", "text: missing"),
        ("cc/00007/003", "image: missing"),
    ]


@pytest.mark.parametrize(
    ("name", "data"), [("txt", b"caf\xe9"), ("json", b"{"), ("json", b'["caption"]')]
)
def test_broken_text_is_one_bad_sample(
    tmp_path: Path,
    write_tar: Callable[..., Path],
    photo: Callable[..., bytes],
    name: str,
    data: bytes,
) -> None:
    path = write_tar(tmp_path / "a.tar", [("0.jpg", photo()), (f"0.{name}", data)])
    (bad,) = read_image_text([str(path)]).samples
    assert isinstance(bad, Bad) and bad.cause == "text: broken"
    assert str(path) in bad.detail


def test_a_truncated_tar_is_named(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"00007\.tar"):
        list(read_image_text([str(tar)]).samples)


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("0.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match="symbolic link"):
        list(read_image_text([str(path)]).samples)


def test_globs_that_match_nothing_or_twice_the_same_name(
    tmp_path: Path, write_tar: Callable[..., Path], photo: Callable[..., bytes]
) -> None:
    with pytest.raises(DataError, match="no file matches"):
        read_image_text([str(tmp_path / "*.tar")])
    for folder in ("a", "b"):
        write_tar(tmp_path / folder / "0.tar", [("0.jpg", photo())])
    with pytest.raises(DataError, match="two files are called '0'"):
        read_image_text([str(tmp_path / "*" / "*.tar")])


def test_a_real_shard(real_data: Path) -> None:
    items = list(read_image_text([str(real_data / "webdataset" / "*.tar")]).samples)
    assert len(items) == 32
    assert all(isinstance(item, Draft) and len(item.captions) == 1 for item in items)
