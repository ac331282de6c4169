"""The profiled window: which steps it holds, where it lies, what it costs outside."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import wholegrain.train.profile as module
from wholegrain.train.config import ProfileConfig
from wholegrain.train.profile import TABLE, TRACE, StepProfile

FOLDER = "profile/rank-00000"


def work(step: int) -> None:
    """Something that a trace tells apart from what other steps do."""
    with torch.profiler.record_function(f"work {step}"):
        torch.ones(8, 8) @ torch.ones(8, 8)


def run_steps(profile: StepProfile, steps: int) -> None:
    with profile:
        for step in range(steps):
            work(step)
            profile.step()


def recorded(run: Path) -> list[str]:
    """Names of the steps' work in the trace."""
    with gzip.open(run / FOLDER / TRACE) as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return sorted({e["name"] for e in events if str(e.get("name")).startswith("work ")})


@pytest.mark.parametrize("start", [0, 1, 4])
def test_the_window_and_nothing_else(tmp_path: Path, start: int) -> None:
    said: list[str] = []
    config = ProfileConfig(start=start, steps=2)
    run_steps(StepProfile(config, tmp_path, say=said.append), 8)
    assert recorded(tmp_path) == [f"work {start}", f"work {start + 1}"]
    assert "aten::mm" in (tmp_path / FOLDER / TABLE).read_text()
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == [TABLE, TRACE]
    assert said == [f"the profile lies in {tmp_path / FOLDER}: {TRACE}, {TABLE}"]


def test_a_run_that_ends_within_the_window_writes_what_there_is(tmp_path: Path) -> None:
    profile = StepProfile(ProfileConfig(start=1, steps=9), tmp_path, say=lambda text: None)
    with pytest.raises(ZeroDivisionError), profile:
        for step in range(9):
            work(step)
            profile.step()
            if step == 2:
                raise ZeroDivisionError
    assert recorded(tmp_path) == ["work 1", "work 2"]


def test_a_run_that_ends_before_the_window_writes_nothing(tmp_path: Path) -> None:
    for steps in (2, 3, 4):  # before the profiler warms up, while it does, and just after
        said: list[str] = []
        profile = StepProfile(ProfileConfig(start=4, steps=1), tmp_path, say=said.append)
        run_steps(profile, steps)
        assert (list(tmp_path.iterdir()), said) == ([], [])


@pytest.mark.parametrize(("config", "rank"), [(None, 0), (ProfileConfig(start=0, steps=1), 1)])
def test_no_profiler_without_a_config_or_on_other_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: ProfileConfig | None, rank: int
) -> None:
    monkeypatch.setattr(module, "profile", None)
    run_steps(StepProfile(config, tmp_path, rank, say=pytest.fail), 3)
    assert list(tmp_path.iterdir()) == []


def test_no_profiler_outside_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = StepProfile(ProfileConfig(start=3, steps=1), tmp_path, say=lambda text: None)
    open_at = []
    with profile:
        for _ in range(6):
            open_at.append(profile._profiler is not None)
            profile.step()
    assert open_at == [False, False, True, True, False, False]


def test_a_profile_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("in the way")
    said: list[str] = []
    run_steps(StepProfile(ProfileConfig(start=1, steps=1), tmp_path, say=said.append), 4)
    assert len(said) == 1
    assert str(tmp_path / FOLDER) in said[0]
    assert "the run goes on without it" in said[0]
    # Nothing of it is left running.
    again = StepProfile(ProfileConfig(start=0, steps=1), tmp_path / "other", say=said.append)
    run_steps(again, 2)
    assert recorded(tmp_path / "other") == ["work 0"]


def test_a_later_start_replaces_the_profile(tmp_path: Path) -> None:
    for start in (0, 2):
        config = ProfileConfig(start=start, steps=1)
        run_steps(StepProfile(config, tmp_path, say=lambda text: None), 4)
    assert recorded(tmp_path) == ["work 2"]
