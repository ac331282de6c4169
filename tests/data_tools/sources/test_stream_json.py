import json
import random
from pathlib import Path
from typing import Any

import pytest

from data_tools.sources import stream_json
from data_tools.sources.stream_json import TOP, read_element, read_lists
from wholegrain.errors import DataError


def value(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.random()
    if depth > 3 or kind < 0.3:
        return draw.choice([1, 2.5, None, True, 'a"b', "x\\", "[{", '}]\\"', "é漢", "", "a,b:"])
    if kind < 0.6:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    keys = ["a", 'b"', "annotations", "\\c"]
    return {draw.choice(keys): value(draw, depth + 1) for _ in range(draw.randrange(4))}


def elements(draw: random.Random) -> list[dict[str, Any]]:
    return [
        {f"key {n}": value(draw) for n in range(draw.randrange(4))}
        for _ in range(draw.randrange(6))
    ]


def read(path: Path, keys: list[str]) -> dict[str, list[Any]]:
    """The lists, after checking that each element is found again by its bytes."""
    found: dict[str, list[Any]] = {key: [] for key in keys}
    with path.open("rb") as file:
        for batch in read_lists(path, keys):
            assert batch.first == len(found[batch.key])
            places = zip(batch.starts.tolist(), batch.ends.tolist(), strict=True)
            assert [read_element(file, *place, path) for place in places] == batch.items
            found[batch.key] += batch.items
    return found


@pytest.mark.parametrize("chunk", [1, 2, 7, 50, 1 << 20])
def test_lists_are_what_a_whole_parse_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(stream_json, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    for seed in range(min(4 * chunk, 100)):
        draw = random.Random(seed)
        first, second = elements(draw), elements(draw)
        whole = {"info": value(draw), "year": 3, "others": elements(draw), "numbers": [1, 2]}
        whole |= {"annotations": first, "none": None, "images": second, "text": "],["}
        indent, plain = draw.choice([None, 0, 2]), draw.random() < 0.5
        path.write_text(json.dumps(whole, indent=indent, ensure_ascii=plain))
        assert read(path, ["images", "annotations"]) == {"annotations": first, "images": second}
        path.write_text(json.dumps(first, indent=indent, ensure_ascii=plain))
        assert read(path, [TOP]) == {TOP: first}


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_a_file_cut_off_anywhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(stream_json, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    data = json.dumps({"images": [{"a\\": '"]'}, {}], "annotations": [{"b": [1]}]}).encode()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"a\.json: not valid JSON.*download"):
            read(path, ["images", "annotations"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON: it ends at byte 0"),
        ("17", "not valid JSON"),
        ('{"images": []}', "no list 'annotations'"),
        ('{"images": [], "annotations": {"a": {}}}', "no list 'annotations'"),
        ('{"images": [], "annotations": [{"a": }]}', "not valid JSON.*annotations.0"),
        ('{"images": [], "annotations": [[1], {}]}', "'annotations' holds something other"),
        ('{"images": [], "annotations": [{}, 1]}', "'annotations' holds something other"),
        ('{"images": [], "annotations": [{}]]}}', "never opened"),
        ("[" * 9000 + "]" * 9000, "no list 'images'"),
        ('{"images": [' + "[" * 9000 + "]" * 9000 + '], "annotations": []}', "not valid JSON"),
    ],
)
def test_what_is_broken_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read(path, ["images", "annotations"])


def test_a_huge_element_is_refused_before_it_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_json, "_CHUNK", 100)
    monkeypatch.setattr(stream_json, "ELEMENT_LIMIT", 1000)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"a": "x" * 900}]))
    read(path, [TOP])
    path.write_text(json.dumps([{"a": "x" * 1200}]))
    with pytest.raises(DataError, match="more than 1000 bytes"):
        read(path, [TOP])


def test_a_file_that_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}]')
    (batch,) = read_lists(path, [TOP])
    path.write_text('["other", 1]')
    with path.open("rb") as file, pytest.raises(DataError, match="changed while it was read"):
        read_element(file, int(batch.starts[0]), int(batch.ends[0]), path)
