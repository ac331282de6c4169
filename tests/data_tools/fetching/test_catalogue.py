"""The shipped catalogue, and what a catalogue may not say."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_tools.__main__ import build_parser
from data_tools.fetching.catalogue import CATALOGUE, Catalogue, is_plain_path, load_catalogue
from data_tools.sources import SOURCES
from wholegrain.config import from_dict
from wholegrain.errors import ConfigError

EXPECTED = {
    "coco2014", "coco2017", "karpathy", "visual_genome", "refcoco", "refcoco+", "refcocog",
    "grefcoco", "referitgame", "flickr30k", "flickr30k_entities", "sbu", "cc3m", "cc12m",
    "objects365", "open_images", "open_images_photos", "bert-base-uncased", "swin-b-22k", "xvlm",
}  # fmt: skip


@pytest.fixture(scope="module")
def shipped() -> Catalogue:
    return load_catalogue()


def test_the_shipped_catalogue_names_every_set(shipped: Catalogue) -> None:
    assert set(shipped.sets) == EXPECTED


def test_no_key_is_there_twice() -> None:
    """YAML takes the last of two equal keys in silence, so an entry could hide another."""

    def check(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), keys
            for _, value in node.value:
                check(value)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                check(value)

    root = yaml.compose(CATALOGUE.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    assert root is not None
    check(root)


def test_all_addresses_are_https_and_lead_to_one_file_each(shipped: Catalogue) -> None:
    urls = [url for each in shipped.sets.values() for file in each.files for url in file.urls]
    assert all(url.startswith("https://") for url in urls)
    assert len(urls) == len(set(urls))
    assert not any(file.allow_http for each in shipped.sets.values() for file in each.files)


def test_no_digest_stands_for_two_files(shipped: Catalogue) -> None:
    for name in ("sha256", "md5"):
        digests = [
            digest
            for each in shipped.sets.values()
            for file in each.files
            if (digest := file.digests.get(name))
        ]
        assert len(digests) == len(set(digests))


def test_known_digests(shipped: Catalogue) -> None:
    """Those that a slip of the hand in the catalogue would make wrong for everybody."""
    files = {file.name: file for each in shipped.sets.values() for file in each.files}
    assert files["refcoco.zip"].bytes == 53_993_993
    assert files["refcoco+.zip"].digests["sha256"].startswith("5f1238112d63199e68da54a28f2014")
    assert files["refcocog.zip"].digests["sha256"].endswith("3fb980669933a7f9af1aa8211")
    assert files["train2014.zip"].digests["md5"] == "0da8c0bd3d6becc4dcb32757491aca88"


def test_the_vocabulary_is_that_of_the_real_copy(shipped: Catalogue, real_data: Path) -> None:
    from data_tools.fetching.ledger import hash_file

    copy = real_data / "tokenizer" / "bert-base-uncased-vocab.txt"
    file = shipped.find("bert-base-uncased").files[0]
    assert hash_file(copy)["sha256"] == file.sha256
    assert copy.stat().st_size == file.bytes


def test_sets_that_a_person_must_get_say_how(shipped: Catalogue) -> None:
    by_hand = {
        name for name, each in shipped.sets.items() if not all(file.urls for file in each.files)
    }
    assert by_hand == {"flickr30k", "objects365", "xvlm"}
    for name in by_hand:
        assert "https://" in (shipped.sets[name].click or "")


@pytest.mark.parametrize("name", ["sbu", "cc3m", "cc12m"])
def test_lists_of_addresses_say_how_the_photos_are_fetched(name: str, shipped: Catalogue) -> None:
    then = shipped.sets[name].then or ""
    command = next(line for line in then.splitlines() if line.startswith("img2dataset "))
    words = shlex.split(command)
    assert words[words.index("--output_format") + 1] == "webdataset"
    assert words[words.index("--output_folder") + 1] == "{dir}/shards"


def test_every_source_has_an_entry_or_a_reason(shipped: Catalogue) -> None:
    listed = {source for each in shipped.sets.values() for source in each.sources}
    assert listed | set(shipped.unlisted) == set(SOURCES)
    assert not listed & set(shipped.unlisted)
    assert all(len(reason) > 20 for reason in shipped.unlisted.values())


def test_the_commands_that_convert_are_understood(shipped: Catalogue) -> None:
    parser = build_parser("convert")
    for each in shipped.sets.values():
        for line in each.convert:
            words = [word.replace("{dir}", "raw") for word in shlex.split(line)]
            args = parser.parse_args(["convert", *words, "--out", "corpus"])
            assert args.source == words[0]


FILE = {"name": "a.zip", "urls": ["https://example.org/a.zip"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../a"}, "below the folder"),
        ({"name": "/a"}, "below the folder"),
        ({"unpack": "a/../.."}, "below the folder"),
        ({"name": "fetched.json"}, "`fetch` uses"),
        ({"name": "a.partial"}, "`fetch` uses"),
        ({"urls": ["http://example.org/a"]}, "must start with https"),
        ({"urls": ["ftp://example.org/a"], "allow_http": True}, "must start with https"),
        ({"urls": ["https:///a"]}, "must start with https"),
        ({"urls": []}, "neither urls nor page nor click"),
        ({"sha256": "abc", "origin": "x"}, "lower-case hex"),
        ({"sha256": "A" * 64, "origin": "x"}, "lower-case hex"),
        ({"md5": "0" * 64, "origin": "x"}, "lower-case hex"),
        ({"sha256": "0" * 64}, "no origin"),
        ({"bytes": 5}, "no origin"),
        ({"bytes": 0, "origin": "x"}, "where unknown"),
        ({"bytes": "5", "origin": "x"}, "bytes"),
        ({"unpack": "a.zip"}, "both a file and a folder"),
        ({"digest": "0" * 64}, "digest"),
    ],
)
def test_entries_that_are_refused(change: dict[str, Any], message: str) -> None:
    data_set = {"title": "t", "licence": "l", "page": "https://example.org"}
    from_dict(Catalogue, {"sets": {"a": {**data_set, "files": [FILE]}}})
    with pytest.raises(ConfigError, match=message):
        from_dict(Catalogue, {"sets": {"a": {**data_set, "files": [FILE | change]}}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": []}, "files is empty"),
        ({"files": [FILE, FILE]}, "more than once"),
        ({"files": [FILE | {"unpack": "x"}, {**FILE, "name": "b", "unpack": "x/y"}]}, "lies in"),
        ({"convert": ["coco --images 'a"]}, "convert has"),
    ],
)
def test_sets_that_are_refused(change: dict[str, Any], message: str) -> None:
    data_set = {"title": "t", "licence": "l", "page": "https://example.org", "files": [FILE]}
    with pytest.raises(ConfigError, match=message):
        from_dict(Catalogue, {"sets": {"a": data_set | change}})


def test_names_of_sets() -> None:
    data_set = {"title": "t", "licence": "l", "page": "https://example.org", "files": [FILE]}
    with pytest.raises(ConfigError, match="is no name"):
        from_dict(Catalogue, {"sets": {"A/b": data_set}})


def test_a_catalogue_that_is_broken_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("sets: {a: {title: x}}")
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_catalogue(path)


def test_plain_paths() -> None:
    for good in ("a", "a/b.jpg", "refs(unc).p", "a..b", "..a", ".hidden"):
        assert is_plain_path(good), good
    for bad in ("", "/a", "..", "a/..", "./a", "a/./b", "a//b", "a/", "a\\b", "C:a", "a\0", "a\nb"):
        assert not is_plain_path(bad), bad
