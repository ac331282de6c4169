"""The composition of a batch: fixed, adding up, and named in every refusal."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config import CorpusConfig, DataConfig, OrderConfig, PretrainConfig
from pretrain.mixture import composition
from wholegrain.errors import ConfigError
from wholegrain.train.config import RunConfig


@dataclass
class Entry:
    path: str = "c"
    per_batch: int = 0
    weight: float | None = None


def shares(*entries: Entry, total: int = 64, parts: int = 1) -> list[int]:
    return composition("data.train", entries, "run.batch_size", total, parts)


def test_images_are_taken_as_named() -> None:
    assert shares(Entry(per_batch=40), Entry(per_batch=24)) == [40, 24]
    assert shares(Entry()) == [64]


def test_weights_become_whole_images_by_largest_remainders() -> None:
    captions = [0.55, 0.80, 0.86, 2.90]  # of 4M's corpora, in millions
    assert shares(*(Entry(weight=w) for w in captions), total=1024) == [110, 160, 173, 581]
    assert shares(Entry(weight=1), Entry(weight=1), Entry(weight=1), total=10) == [4, 3, 3]
    assert shares(Entry(weight=2), Entry(weight=1), total=12, parts=2) == [8, 4]
    assert shares(Entry(weight=5)) == [64]


@given(
    weights=st.lists(st.floats(0.5, 50), min_size=1, max_size=6),
    share=st.integers(700, 3000),
    parts=st.integers(1, 4),
)
def test_weighted_shares_add_up_and_are_near(weights: list[float], share: int, parts: int) -> None:
    total = share * parts
    found = shares(*(Entry(weight=w) for w in weights), total=total, parts=parts)
    assert sum(found) == total
    assert all(count % parts == 0 for count in found)
    for weight, count in zip(weights, found, strict=True):
        assert abs(count / parts - weight / sum(weights) * share) < 1


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "data.train is empty"),
        ([Entry(per_batch=3), Entry()], r"data.train\[1\].per_batch is 0"),
        ([Entry(per_batch=3), Entry(per_batch=4)], "add up to 7, run.batch_size is 64"),
        ([Entry(weight=1), Entry(per_batch=4)], r"data.train\[1\] \(c\) has weight None"),
        ([Entry(weight=1, per_batch=4)], r"data.train\[0\] \(c\) has weight 1 and per_batch 4"),
        ([Entry(weight=1000), Entry(weight=1)], r"data.train\[1\] \(c\): weight 1 of 1001"),
    ],
)
def test_unsound_mixtures(entries: list[Entry], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shares(*entries)


def test_images_must_divide_by_the_parts() -> None:
    with pytest.raises(ConfigError, match=r"per_batch 33 does not divide into .* 2 parts"):
        shares(Entry(per_batch=33), Entry(per_batch=31), parts=2)


def test_a_config_says_so_before_anything_is_opened() -> None:
    data = DataConfig(train=(CorpusConfig("a", weight=1000), CorpusConfig("b", weight=1)))
    with pytest.raises(ConfigError, match=r"less than one image of run\.batch_size 8"):
        PretrainConfig(data=data, run=RunConfig(batch_size=8))
    assert OrderConfig().block is None
