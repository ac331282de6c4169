import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_tools.converting.plan import ConvertOptions, Plan, Task, task
from data_tools.sources.base import Drafts, Source
from wholegrain.errors import DataError


def nothing(start: int, stop: int, left_out: Counter[str]) -> Drafts:
    return iter(())


def plan(units: int, single: bool = True, total: int | None = None, **options: Any) -> Plan:
    source = Source("s", {"a": 1}, units, nothing, single=single, total=total)
    return Plan(source, ConvertOptions(Path("out"), **options))


def test_parts_of_single_samples_are_shards() -> None:
    cut = plan(25, shard_size=10)
    assert (cut.parts, cut.total) == (3, 25)
    assert [cut.units(part) for part in range(3)] == [(0, 10), (10, 20), (20, 25)]


def test_parts_of_tars_are_tars() -> None:
    cut = plan(3, single=False, shard_size=10)
    assert (cut.parts, cut.total) == (3, None)
    assert [cut.units(part) for part in range(3)] == [(0, 1), (1, 2), (2, 3)]


def test_a_limit_cuts_samples() -> None:
    assert [plan(25, limit=n, shard_size=10).parts for n in (1, 10, 11, 99)] == [1, 1, 2, 3]
    assert plan(25, limit=12, shard_size=10).total == 12
    assert plan(3, single=False, total=7, limit=7).total == 7
    with pytest.raises(DataError, match="--limit"):
        plan(3, single=False, limit=7)


def test_each_part_is_one_tasks() -> None:
    owned = [
        part
        for number in range(1, 5)
        for part in plan(95, shard_size=10, task=Task(number, 4)).own_parts()
    ]
    assert sorted(owned) == list(range(10))
    assert plan(95, shard_size=10, task=Task(2, 4)).own_parts() == range(1, 10, 4)
    last = plan(95, shard_size=10, task=Task(2, 4))
    assert last.samples(last.own_parts()) == 25  # parts 1, 5, 9


def test_the_key_tells_what_decides_from_what_does_not() -> None:
    key = plan(9).key
    same: list[dict[str, Any]] = [
        {"processes": 7},
        {"task": Task(1, 2)},
        {"max_bad": 0.5},
        {"overwrite": True},
        {"restart": True},
        {"strict_counts": True},
    ]
    assert {plan(9, **options).key for options in same} == {key}
    other: list[dict[str, Any]] = [
        {"shard_size": 7},
        {"max_side": 7},
        {"limit": 7},
        {"name": "n"},
    ]
    keys = {plan(9, **options).key for options in other}
    assert len(keys) == len(other) and key not in keys


def test_tasks() -> None:
    assert task("3/8") == Task(3, 8) and str(task("3/8")) == "3/8"
    for text in ("0/8", "9/8", "3", "3/", "x/y", "1/2/3"):
        with pytest.raises(argparse.ArgumentTypeError, match="0-63"):
            task(text)
