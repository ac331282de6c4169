from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from wholegrain.data.skips import Skip, SkipLedger, SkipPolicy
from wholegrain.errors import DataError


def _skip(index: int, cause: str = "truncated") -> Skip:
    return Skip("coco", index, cause, f"shard-1.tar: sample {index}: fetch it again")


def test_counts_by_cause() -> None:
    ledger = SkipLedger(SkipPolicy())
    ledger.add(10, [_skip(1), _skip(2, "wrong size"), _skip(3)])
    ledger.add(10, [])
    assert (ledger.read, ledger.skipped) == (20, 3)
    assert ledger.summary() == "truncated 2, wrong size 1"


def test_the_cap_ends_the_run_and_says_why() -> None:
    ledger = SkipLedger(SkipPolicy(max_share=0.1, always_allowed=2))
    ledger.add(10, [_skip(1), _skip(2)])  # above the share, within what is always allowed
    ledger.add(50, [_skip(3)])  # 3 of 60
    message = (
        r"7 of 65 samples read are bad \(10\.8 %\), more than max_share 0\.1: truncated 7.*"
        r"shard-1\.tar: sample 7: fetch it again.*lint"
    )
    with pytest.raises(DataError, match=message):
        ledger.add(5, [_skip(n) for n in (4, 5, 6, 7)])


def test_one_bad_sample_read_often_does_not_use_up_the_allowance() -> None:
    ledger = SkipLedger(SkipPolicy(max_share=0.01, always_allowed=1))
    for _ in range(20):
        ledger.add(5, [_skip(3)])
    with pytest.raises(DataError):
        ledger.add(5, [_skip(4)])


def test_zero_tolerance() -> None:
    with pytest.raises(DataError):
        SkipLedger(SkipPolicy(max_share=0, always_allowed=0)).add(1000, [_skip(1)])


def test_the_log_is_rate_limited_by_cause(caplog: pytest.LogCaptureFixture) -> None:
    ledger = SkipLedger(SkipPolicy(max_share=1, log_lines=2))
    with caplog.at_level(logging.WARNING):
        for index in range(30):
            ledger.add(2, [_skip(index), _skip(index, "record")])
    assert len(caplog.records) == 4
    assert "sample 0: fetch it again" in caplog.text


def test_each_bad_sample_is_listed_once(tmp_path: Path) -> None:
    listed = tmp_path / "new" / "bad.jsonl"
    ledger = SkipLedger(SkipPolicy(max_share=1, listed_file=listed))
    ledger.add(5, [_skip(1), _skip(2)])
    ledger.add(5, [_skip(1)])
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [line["index"] for line in lines] == [1, 2]
    assert lines[0] == {
        "part": "coco",
        "index": 1,
        "cause": "truncated",
        "message": "shard-1.tar: sample 1: fetch it again",
    }
