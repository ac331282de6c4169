from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wholegrain.data import skips
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
    ledger.add(4, [_skip(n) for n in range(4, 8)])  # 7 of 64, which may be bad luck
    message = (
        r"20 of 80 samples read are bad \(25\.0 %\), more than max_share 0\.1: truncated 20.*"
        r"shard-1\.tar: sample 20: fetch it again.*lint"
    )
    with pytest.raises(DataError, match=message):
        ledger.add(16, [_skip(n) for n in range(8, 21)])


def _stopped_after(share: float, reads: int, seed: int) -> int | None:
    ledger = SkipLedger(SkipPolicy(max_share=0.01))
    bad = np.random.default_rng(seed).random(reads) < share
    for index, is_bad in enumerate(bad):
        try:
            ledger.add(1, [_skip(index)] if is_bad else [])
        except DataError:
            return index
    return None


def test_chance_does_not_stop_a_run_within_the_cap_and_a_broken_corpus_does() -> None:
    # Each start is a resume, too: nothing of an earlier count is needed to be fair.
    assert [_stopped_after(0.009, 20_000, seed) for seed in range(30)] == [None] * 30
    stops = [_stopped_after(0.02, 20_000, seed) for seed in range(30)]
    assert all(stop is not None for stop in stops)
    assert all(stop < 1000 for stop in (_stopped_after(0.2, 1000, seed) or 9999 for seed in (1, 2)))


def test_one_bad_sample_read_often_does_not_use_up_the_allowance() -> None:
    ledger = SkipLedger(SkipPolicy(max_share=0.01, always_allowed=1))
    for _ in range(20):
        ledger.add(5, [_skip(3)])
    assert ledger.skipped == 20
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


def test_memory_and_list_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skips, "LISTED_AT_MOST", 20)
    ledger = SkipLedger(SkipPolicy(max_share=1, listed_file=tmp_path / "bad.jsonl"))
    for index in range(100):
        ledger.add(1, [_skip(index)])
    assert ledger.skipped == 100
    assert len(ledger._known) == 20
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 20
    # The bound must not grant what the policy does not.
    strict = SkipLedger(SkipPolicy(max_share=0, always_allowed=50))
    with pytest.raises(DataError, match="51 of 51"):
        for index in range(100):
            strict.add(1, [_skip(index)])


_WRITER = """
import sys
from pathlib import Path
from wholegrain.data.skips import Skip, SkipLedger, SkipPolicy
name, path, rank, world = sys.argv[1:]
policy = SkipPolicy(max_share=1, log_lines=0, listed_file=Path(path))
ledger = SkipLedger(policy, int(rank), int(world))
print("ready", flush=True)
sys.stdin.readline()
for index in range(500):
    ledger.add(1, [Skip(name, index, "truncated", "m" * 3000)])
"""


def _write_lists(path: Path, ranks: int, world: int) -> None:
    """`ranks` processes list 500 bad samples each, at the same time."""
    runs = []
    for rank in range(ranks):
        command = [sys.executable, "-c", _WRITER, f"part{rank}", str(path), str(rank), str(world)]
        runs.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    for run in runs:
        assert run.stdout is not None and run.stdout.readline() == b"ready\n"
    for run in runs:
        run.communicate(b"go\n", timeout=60)
        assert run.returncode == 0


def test_processes_that_share_a_list_write_whole_lines(tmp_path: Path) -> None:
    _write_lists(tmp_path / "bad.jsonl", 3, 1)
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    seen = {(line["part"], line["index"]) for line in lines}
    assert seen == {(f"part{rank}", index) for rank in range(3) for index in range(500)}
    assert len(lines) == 1500


def test_each_rank_of_several_has_its_own_list(tmp_path: Path) -> None:
    _write_lists(tmp_path / "bad.jsonl", 2, 2)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["bad.rank-00000.jsonl", "bad.rank-00001.jsonl"]
    for rank, file in enumerate(files):
        lines = [json.loads(line) for line in (tmp_path / file).read_text().splitlines()]
        assert [line["index"] for line in lines] == list(range(500))
        assert {line["part"] for line in lines} == {f"part{rank}"}


def test_a_list_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    ledger = SkipLedger(SkipPolicy(max_share=1, listed_file=tmp_path / "file" / "bad.jsonl"))
    for index in range(5):
        ledger.add(1, [_skip(index, f"cause {index}")])
    assert ledger.skipped == 5
    assert caplog.text.count("cannot be written") == 1


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
