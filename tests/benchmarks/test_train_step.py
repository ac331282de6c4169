"""The benchmark of a training step runs, and its figures follow from what it timed."""

import json
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import machine, train_step
from benchmarks.train_step_cases import (
    FAST,
    LENGTHS,
    REFERENCE,
    Setup,
    Trainer,
    has_hook,
    make_batch,
    model_config,
    shape_of,
)
from benchmarks.train_step_memory import measure, peak_in_child
from benchmarks.train_step_sections import (
    Plan,
    StepRow,
    add_memory,
    compiled_graphs,
    measure_memory,
)
from wholegrain.errors import ConfigError

TINY = Setup("tiny")
PLAN = Plan(texts=8, rounds=1, warm=0, region_images=2)
QUICK = ["--size", "tiny", "--quick", "--device", "cpu"]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything but memory, as JSON gives it back."""
    file = tmp_path_factory.mktemp("benchmark") / "step.json"
    only = ["--only", "step", "--only", "regions", "--only", "inference"]
    assert train_step.main([*QUICK, *only, "--vision", "both", "--json", str(file)]) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_every_case_has_a_row(record: dict[str, Any]) -> None:
    cases = {(r["vision"], r["iteration"], r["path"], r["precision"]) for r in record["steps"]}
    assert len(record["steps"]) == len(cases) == 16
    assert cases == {
        (vision, iteration, path, precision)
        for vision in ("swin", "vit")
        for iteration in ("image", "region")
        for path in ("reference", "fast")
        for precision in ("fp32", "bf16")
    }
    images = {row["iteration"]: (row["images"], row["texts"]) for row in record["steps"]}
    assert images == {"image": (8, 8), "region": (3, 8)}


def test_figures_follow_from_what_was_measured(record: dict[str, Any]) -> None:
    peaks = record["matrix_peaks"]["flop_per_second"]
    for row in record["steps"]:
        seconds = median(row["seconds"])
        assert row["pairs_per_second"] == pytest.approx(8 / seconds)
        rate = sum(row["useful"]) / len(row["useful"]) / seconds
        assert row["flop_per_second"] == pytest.approx(rate)
        assert row["share_of_peak"] == pytest.approx(rate / peaks[row["precision"]])
        (slow,) = (
            other
            for other in record["steps"]
            if (other["path"], other["precision"]) == (REFERENCE, "fp32")
            and (other["vision"], other["iteration"]) == (row["vision"], row["iteration"])
        )
        ratio = row["pairs_per_second"] / slow["pairs_per_second"]
        assert row["ratio_to_reference_fp32"] == pytest.approx(ratio)
        assert (row["tokens"], row["useful"]) == (slow["tokens"], slow["useful"]), "same batches"
        assert all(u < p for u, p in zip(row["useful"], row["padded"], strict=True))
        assert row["recompiles"] == 0, "nothing is compiled here"


def test_price_of_regions(record: dict[str, Any]) -> None:
    assert [found["vision"] for found in record["regions"]] == ["swin", "vit"]
    for found in record["regions"]:
        assert [row["texts"] for row in found["rows"]] == [2, 4]
        for row in found["rows"]:
            assert row["median_seconds"] == median(row["seconds"])
            assert row["seconds_per_region"] == row["median_seconds"] / row["texts"]
            line = found["fixed_seconds"] + found["seconds_per_region"] * row["texts"]
            assert line == pytest.approx(row["median_seconds"]), "two points lie on their line"
        first, second = found["rows"]
        assert first["vision_share_of_flop"] > second["vision_share_of_flop"]
        assert found["image_seconds"] > 0


def test_inference(record: dict[str, Any]) -> None:
    rows = [row for row in record["inference"] if row["vision"] == "swin"]
    assert sorted({row["expressions"] for row in rows}) == [1, 2]
    assert len(rows) == 6
    for row in rows:
        rate = row["expressions"] / median(row["seconds"])
        assert row["expressions_per_second"] == pytest.approx(rate)


def test_the_machine_is_named(record: dict[str, Any]) -> None:
    assert record["machine"]["torch"] == torch.__version__
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["machine"]["name"]
    assert record["notes"][0].startswith("Measured matrix peaks: fp32")


def test_the_table_shows_the_record(
    record: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    train_step.show(record, Console(width=200))
    shown = capsys.readouterr().out
    assert "A training step" in shown
    assert "Expressions on one photo" in shown
    for row in record["steps"]:
        assert f" {row['pairs_per_second']:.2f} " in shown
        assert f" {row['ratio_to_reference_fp32']:.2f} " in shown


def test_notes_come_from_the_measured_peaks() -> None:
    slow, even, fast = (
        machine.peak_notes({"fp32": 1e11, "bf16": peak})[0] for peak in (5e10, 1.2e11, 8e11)
    )
    assert "(0.50 x)" in slow
    assert "slower than fp32" in slow
    assert "gain little" in even
    assert "slower" not in fast
    assert "little" not in fast


def test_matmul_peak_counts_multiply_adds_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "seconds_of", lambda work, device: 0.5)
    peak = machine.matmul_peak(torch.device("cpu"), "fp32", side=8)
    assert peak == 2 * 8**3 / 0.5


def test_batches_have_natural_lengths_and_known_shape() -> None:
    config = model_config("tiny", "swin")
    for iteration, images in (("image", 8), ("region", 3)):
        batch = make_batch(config, iteration, images, 8, seed=0)
        same, other = (make_batch(config, iteration, images, 8, seed) for seed in (0, 1))
        assert torch.equal(batch.tokens, same.tokens)
        assert torch.equal(batch.images, same.images)
        assert not torch.equal(batch.images, other.images)
        shape = shape_of(config, batch)
        low, high = LENGTHS[iteration]
        assert len(shape.lengths) == 8
        assert min(shape.lengths) >= low
        assert max(shape.lengths) <= high
        assert sum(shape.hidden) == (batch.masked_labels != -100).sum()
        assert len(shape.regions) == (8 if iteration == "region" else 0)
        assert len(shape.whole) == 8 - len(shape.regions)
        assert set(shape.visible) == {64} if iteration == "image" else max(shape.visible) <= 64
    assert batch.concept_image.bincount().tolist() == [3, 3, 2]


def test_base_is_the_published_size() -> None:
    config = model_config("base", "swin")
    assert (config.text.dropout, config.text.attention_dropout) == (0.1, 0.1)
    assert config.vision.drop_path == 0.1  # type: ignore[union-attr]
    assert model_config("base", "vit").vision.local_layers == 4  # type: ignore[union-attr]


def test_both_paths_take_the_same_optimizer_steps() -> None:
    """Every parameter of either path is moved by a region step."""
    batch = make_batch(model_config("tiny", "swin"), "region", 3, 8, seed=0)
    for path in (REFERENCE, FAST):
        trainer = Trainer(path, TINY)
        assert trainer.module.training
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.step(batch, "fp32")
        still = [n for n, p in trainer.model.named_parameters() if torch.equal(p, before[n])]
        # Unused rows of tables do not move, whole tables do; keys' biases have no gradient.
        assert not [name for name in still if not name.endswith("key.bias")], path


def test_memory_in_a_process_of_its_own() -> None:
    if not machine.can_watch(torch.device("cpu")):
        pytest.skip("this system does not let a process see its own high-water mark")
    found = peak_in_child(REFERENCE, "fp32", TINY, {"image": (8, 8), "region": (3, 8)})
    assert found is not None
    assert found.keys() == {"image", "region"}
    for row in found.values():
        assert 1 << 20 < row["step_bytes"] < row["peak_bytes"]


def test_memory_sees_what_a_block_held() -> None:
    if not machine.can_watch(torch.device("cpu")):
        pytest.skip("this system does not let a process see its own high-water mark")
    memory = machine.PeakMemory(torch.device("cpu"))
    with memory.watch():
        held = torch.ones(16 << 20)  # 64 MiB
        del held
    assert (60 << 20) < memory.peak - memory.before < (80 << 20)


def test_memory_rows_are_set_against_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {(REFERENCE, False): 100, (FAST, False): 60, (FAST, True): 30}

    def child(path: str, precision: str, setup: Setup, counts: dict[str, Any]) -> Any:
        held = sizes[path, setup.checkpoint_activations]
        return {name: {"peak_bytes": 1000 + held, "step_bytes": held} for name in counts}

    monkeypatch.setattr("benchmarks.train_step_sections.peak_in_child", child)
    monkeypatch.setattr("benchmarks.train_step_sections.has_hook", lambda name: True)
    rows, notes = measure_memory(TINY, PLAN, ["fp32"], lambda text: None)
    assert not notes
    ratios = {(r["path"], r["checkpointed"]): r["ratio_to_reference"] for r in rows}
    assert ratios == {(REFERENCE, False): 1, (FAST, False): 0.6, (FAST, True): 0.3}
    step = StepRow("swin", "image", FAST, "fp32", 8, 8, [1.0], [99], [10**9], [2 * 10**9])
    for checkpointed, expected in ((False, 1060), (True, 1030)):
        row = step.report(1e12, None)
        assert row["peak_bytes"] is row["ratio_to_reference_fp32"] is None
        add_memory([row], rows, checkpointed)
        assert row["peak_bytes"] == expected


def test_a_part_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_hook("no_such_part")
    monkeypatch.setattr("benchmarks.train_step_cases.has_hook", lambda name: False)
    with pytest.raises(ConfigError, match="checkpointing is not there"):
        Trainer(FAST, TINY.checkpointed())
    Trainer(REFERENCE, TINY.checkpointed())


@pytest.mark.parametrize("wrong", [["--texts", "1"], ["--rounds", "0"]])
def test_settings_that_measure_nothing_are_refused(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_step.main([*QUICK, *wrong]) == 2
    assert "give at least 2 texts" in " ".join(capsys.readouterr().err.split())


def test_plans() -> None:
    asked = SimpleNamespace(quick=False, compile=False, texts=None, rounds=None)
    cpu, cuda = (train_step.plan_of(asked, device) for device in ("cpu", "cuda"))  # type: ignore[arg-type]
    assert cpu.counts("image") == (8, 8)
    assert cpu.counts("region") == (3, 8)
    assert cuda.counts("image") == (256, 256)
    assert cuda.counts("region") == (96, 256)
    assert cpu.regions == cuda.regions == (1, 2, 4, 8, 16, 32)
    assert cpu.expressions == (1, 8, 64)


def test_a_child_is_told_everything_as_json() -> None:
    if not machine.can_watch(torch.device("cpu")):
        pytest.skip("this system does not let a process see its own high-water mark")
    order = {
        "path": FAST,
        "precision": "bf16",
        "setup": TINY.as_dict(),
        "counts": {"image": [2, 2]},
        "threads": torch.get_num_threads(),
    }
    assert measure(json.loads(json.dumps(order))).keys() == {"image"}


def test_recompiles_are_counted() -> None:
    """Another dtype asks for another graph, a known one does not."""
    work = torch.compile(lambda x: x * 2 + 1, backend="eager")
    counts = [compiled_graphs()]
    for dtype in (torch.float32, torch.float64, torch.float32):
        work(torch.ones(3, dtype=dtype))
        counts.append(compiled_graphs())
    assert [after - counts[0] for after in counts] == [0, 1, 2, 2]
