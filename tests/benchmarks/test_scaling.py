"""The page on scaling holds what its script computes, and the script computes what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling, scaling_here, scaling_ranks, scaling_steps, scaling_tables
from benchmarks.scaling_recipes import recipe
from benchmarks.scaling_steps import Case
from wholegrain.train.network import Collective, one_level


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(scaling.STORED.read_text(encoding="utf-8"))
    return found


def test_the_page_holds_the_tables_that_the_script_computes() -> None:
    page = scaling.PAGE.read_text(encoding="utf-8")
    again = scaling.filled(page, scaling.stored_tables())
    assert again == page, "run `python -m benchmarks.scaling --write-docs`"
    assert page.count("| ---") > 10


def test_a_stale_table_is_seen(tmp_path: Path) -> None:
    page = "# A\n\n<!-- table: one -->\nold\n<!-- end -->\n\n<!-- table: two -->\n<!-- end -->\n"
    filled = scaling.filled(page, {"one": "| 1 |", "two": "| 2 |"})
    assert filled != page and "old" not in filled and "| 2 |\n<!-- end -->" in filled
    assert scaling.filled(filled, {"one": "| 1 |", "two": "| 2 |"}) == filled
    with pytest.raises(SystemExit, match="two"):
        scaling.filled(page, {"one": "| 1 |"})
    with pytest.raises(SystemExit, match="three"):
        scaling.filled(page, {"one": "", "two": "", "three": ""})


def test_the_fit_finds_the_link_that_made_the_times() -> None:
    made = one_level("made", 3e-4, 2e9)
    times = [
        {"bytes": size, "all_reduce": made.seconds(Collective("it", "all_reduce", size), 2)}
        for size in scaling.SIZES
    ]
    found = scaling_here.fitted(times, 2).inside
    assert found.latency == pytest.approx(3e-4, rel=1e-3)
    assert found.bandwidth == pytest.approx(2e9, rel=1e-3)


def test_the_recipes_are_those_of_the_configs() -> None:
    four, sixteen = recipe("4m"), recipe("16m")
    assert four.parameters == sixteen.parameters == 215_637_241
    assert (four.batch_size, sixteen.batch_size) == (1024, 3072)
    assert four.concepts <= four.most_concepts == 2048
    # Of 100 to 150 GFLOP an image, twice as many backward as forward.
    for each in (four, sixteen):
        assert 1.0e11 < each.flops / each.batch_size < 1.5e11
        assert each.backward == pytest.approx(2 * each.forward, rel=0.01)
    assert four.gather(8, 1024).concepts == 256
    assert four.gather(64, 4096).concepts == 128


def test_times_of_runs_by_hand() -> None:
    four = recipe("4m")
    compute, spent = scaling_tables.step_time(
        four, 8, 1024, scaling_tables.H100, scaling_tables.ASSUMED.peak
    )
    assert compute == pytest.approx(four.flops / 8 / (989e12 * 0.4))
    # 862 MB of gradients twice over 360 GB/s, 7 of 8 parts, and the latencies of 33 buckets.
    gradients = 2 * 7 / 8 * 4 * 215_637_241 / 360e9 + 33 * 14 * 3.4e-6
    assert spent.total == pytest.approx(gradients, rel=0.05)
    assert 0 < spent.exposed < 0.1 * spent.total
    hours = 200_000 * (compute + spent.exposed) / 3600
    assert f"| 40% | {1e3 * (compute + spent.exposed):,.1f} | {hours:,.1f} |" in (
        scaling_tables.runs()
    )


def test_a_larger_model_needs_a_higher_stage() -> None:
    rows = [line.split("|")[1:4] for line in scaling_tables.pays().splitlines()[2:]]
    lowest = {size.strip(): stage.strip() for size, _, stage in rows}
    assert list(lowest.values()) == sorted(lowest.values())
    assert lowest["0.22 B"] == "0" and lowest["10 B"] == "3"


def test_the_stored_measurement_is_whole(measured: dict[str, Any]) -> None:
    assert {"machine", "cores", "exchanges", "checkpoints", "steps"} <= measured.keys()
    sizes = [each["bytes"] for each in measured["exchanges"]["collectives"]]
    assert sizes == sorted(sizes) and sizes[-1] >= 2**24
    cases = [(each["model"], each["batch_size"]) for each in measured["steps"]]
    assert cases == [(case.model, case.batch_size) for case in scaling_steps.CASES]
    for each in measured["steps"]:
        assert set(each["seconds"]) == {"half", "whole", "apart", "ranks"}
        # Twelve bytes a parameter, and some kilobytes of facts.
        assert each["checkpoint_bytes"] == pytest.approx(12 * each["parameters"], rel=0.01)


@pytest.mark.ranks
def test_two_ranks_time_their_exchanges() -> None:
    found = scaling_ranks.measure([4096, 2**20], [(8, 16)], rounds=2)
    assert found["ranks"] == 2
    assert [each["bytes"] for each in found["collectives"]] == [4096, 2**20]
    assert all(each["all_gather"] > 0 for each in found["collectives"])
    assert found["gathers"][0]["seconds"] >= 0


def test_a_checkpoint_is_saved_and_timed(tmp_path: Path) -> None:
    found = scaling.save(tmp_path, 1_000_000, rounds=1)
    assert found["bytes"] == pytest.approx(12e6, rel=0.01)
    assert 0 < found["waited"] <= found["seconds"]


def test_a_step_is_timed_by_the_run_s_own_figures(tmp_path: Path) -> None:
    lines = [
        {"step": 4, "split": "train", "samples_per_second": 1.0},  # warming up
        {"step": 8, "split": "train", "samples_per_second": 2.0},
        {"step": 8, "split": "val", "loss": 1.0},
        {"step": 12, "split": "train", "samples_per_second": 8.0},
        {"step": 16, "split": "train", "samples_per_second": 16.0},
        {"step": 20, "split": "train", "samples_per_second": 16.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert scaling_steps.step_seconds(path, 32) == 2.0


def test_runs_are_compared_with_equal_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting starts the runs that its name says; only the training itself is left out."""
    started: list[tuple[int, list[int]]] = []

    def run(configs: list[Path], ranks: int) -> None:
        batches = []
        for config in configs:
            folder = config.with_suffix("")
            (folder / "checkpoints" / "step_000004").mkdir(parents=True)
            (folder / "checkpoints" / "step_000004" / "model.safetensors").write_bytes(b"12345")
            batches.append(scaling_steps.yaml.safe_load(config.read_text())["run"]["batch_size"])
            line = {"step": 4, "samples_per_second": float(batches[-1])}
            (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        started.append((ranks, batches))

    monkeypatch.setattr(scaling_steps, "_run", run)
    monkeypatch.setattr(scaling_steps, "_facts", lambda config: {"parameters": 7})
    found = scaling_steps.measure(tmp_path, tmp_path, Case("tiny", 8, 4))
    assert started == [(1, [4]), (1, [8]), (1, [4, 4]), (2, [8])]
    assert found["seconds"] == dict.fromkeys(("half", "whole", "apart", "ranks"), 1.0)
    assert (found["checkpoint_bytes"], found["parameters"]) == (5, 7)
