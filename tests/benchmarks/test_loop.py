"""The loop's benchmark runs both sides and reports shares of what it measured."""

import json
from pathlib import Path

import pytest

from benchmarks import loop


@pytest.mark.slow
def test_it_measures_the_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "loop.json"
    sizes = ["--size", "tiny", "--batch", "4", "4", "--steps", "5", "6", "--rounds", "2"]
    assert loop.main([*sizes, "--stall-steps", "9", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    row = found["tiny"]
    cost, saved = row["overhead"], row["checkpoint"]
    assert row["batch_size"] == 4 and cost["rounds"] == len(cost["ratios"]) == 2
    assert len(cost["own_shares"]) == 2 and 0 < cost["own_share"] < 1
    assert cost["bare_seconds"] > 0 and cost["looped_seconds"] > 0
    assert saved["background_stall_share"] == pytest.approx(
        saved["background_seconds"] / (500 * cost["bare_seconds"])
    )
    said = capsys.readouterr().out
    assert "in the loop" in said and "of 500 steps" in said


def test_a_step_is_timed_from_the_end_of_the_warm_up() -> None:
    import torch

    clocked = loop.Clocked([], torch.device("cpu"))
    clocked.asked = [0.0, 5.0, 6.0, 7.0, 8.5]
    assert clocked.seconds_a_step() == pytest.approx(1.25)


def test_the_loops_own_share_is_what_a_bare_step_does_not_call() -> None:
    import torch

    clocked = loop.Clocked([], torch.device("cpu"))
    clocked.asked, clocked.inside = [0.0, 5.0, 6.0, 7.0, 8.5], [0.0, 4.5, 5.0, 5.9, 7.0]
    assert clocked.own_share() == pytest.approx(2.5 / 2.0 - 1)
    slow = clocked.counted(lambda: sum(range(100_000)))
    assert slow() == sum(range(100_000))
    assert clocked._spent > 0
