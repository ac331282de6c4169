from pathlib import Path

import pytest

from wholegrain.data.storage import as_url, file_name, is_url, join, shown
from wholegrain.data.storage.urls import local_path, place_of, scheme_of
from wholegrain.errors import ConfigError


@pytest.mark.parametrize(
    "path",
    ["s3://b/c", "gs://b", "hdfs://h:1/c", "https://h/c", "memory://c", "file:///c", "x-y://z"],
)
def test_urls_are_told_from_paths(path: str) -> None:
    assert is_url(path)
    assert not is_url(Path("/data") / "coco")
    assert not any(map(is_url, ("coco", "/a//b", "a:/b", "C://x", "./s3", "a b://c", "")))


@pytest.mark.parametrize("url", ["s3://b/c", "https://h/c", "gs://b", "memory://c"])
def test_a_url_survives_being_made_a_path(url: str) -> None:
    assert is_url(Path(url))
    assert as_url(Path(url)) == as_url(url + "/") == url


def test_names_are_joined_before_a_query() -> None:
    assert join("s3://b/c/", "x.tar") == join("s3://b/c", "x.tar") == "s3://b/c/x.tar"
    assert join("https://h/c?sig=a/b", "x.tar") == "https://h/c/x.tar?sig=a/b"
    assert join("s3://b/what?", "x.tar") == "s3://b/what?/x.tar"
    assert file_name("https://h/c/x.tar?sig=a/b") == file_name(Path("/c/x.tar")) == "x.tar"


def test_messages_show_no_secrets() -> None:
    assert shown("https://me:word@h/c/x.tar?sig=1") == "https://h/c/x.tar"
    assert shown("s3://b/c@2/x") == "s3://b/c@2/x"


def test_files_are_found_in_place() -> None:
    assert local_path("file:///data/a%20b/x.tar") == Path("/data/a b/x.tar")
    assert local_path("s3://b/x") is None
    assert place_of("s3://b/x/y") == "s3://b"


@pytest.mark.parametrize("url", ["ftp://h/c", "simplecache::s3://b/c", "s3://b::c", "coco"])
def test_other_schemes_and_chains_are_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigError, match=r"s3://, .*hdfs://"):
        scheme_of(url)
