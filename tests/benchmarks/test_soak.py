"""A short soak: kills of workers, ranks and the whole job leave the sequence of batches alone."""

from pathlib import Path

import pytest

from benchmarks import soak


@pytest.mark.slow
@pytest.mark.ranks
def test_random_kills_change_nothing(tmp_path: Path) -> None:
    outcome = soak.soak(tmp_path, kills=15, seed=1)
    assert set(outcome.kills) == {"worker", "rank", "job"}
    assert outcome.starts >= 4
    assert outcome.steps >= soak.CALM_STEPS
    assert outcome.differing == []


def test_the_soak_notices_another_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = soak.undisturbed
    monkeypatch.setattr(soak, "undisturbed", lambda *a: ["x", *whole(*a)[1:]])
    assert soak.soak(tmp_path, kills=2, seed=2).differing == [0]
