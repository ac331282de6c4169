"""What a run says of itself, where it is kept, and what becomes of it when that fails."""

import errno
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wholegrain.errors import ConfigError
from wholegrain.train import journal as module
from wholegrain.train.config import WandbConfig
from wholegrain.train.journal import METRICS, TENSORBOARD, WANDB, Journal, tag, truncate_metrics

Open = Callable[..., Journal]


@pytest.fixture
def open_journal(tmp_path: Path) -> Open:
    """Opens a journal of a run of nine steps."""

    def make(start: int = 0, active: bool = True, **more: Any) -> Journal:
        return Journal(tmp_path, 9, start, "toy", active, **more)

    return make


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / METRICS).read_text().splitlines()]


def points(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows."""
    board = EventAccumulator(str(run / TENSORBOARD))
    board.Reload()
    names = board.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in board.Scalars(name)] for name in names}


def write_steps(journal: Journal, start: int, stop: int) -> None:
    with journal:
        for step in range(start + 1, stop + 1):
            journal.write(step, "train", {"loss": step / 2})


def test_tags_are_grouped() -> None:
    assert tag("train", "loss") == "train/loss"
    assert tag("train", "contrastive/region") == "train/contrastive/region"
    assert tag("train", "region/loss") == "train/region/loss"
    assert tag("train", "learning_rate/new") == "optim/learning_rate/new"
    assert tag("train", "region/gradient_norm") == "optim/region/gradient_norm"
    assert tag("train", "step_seconds_p99") == "speed/step_seconds_p99"
    assert tag("train", "skipped_samples/truncated") == "data/skipped_samples/truncated"
    assert tag("val", "gradient_norm") == "val/gradient_norm"


def test_metrics_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    kept = [f'{{"step": {step}, "split": "train"}}' for step in (1, 2, 3)]
    odd = ["7", "{}", '{"step": "5"}', '{"step": null}', "\0\0\0"]
    path.write_bytes("\n".join([*kept, *odd]).encode() + b'\n\xff\n{"step": 4, "spl')
    assert truncate_metrics(path, 2) == 3
    assert path.read_text() == "\n".join(kept[:2]) + "\n"
    assert truncate_metrics(tmp_path / "absent", 2) == 0
    assert [p.name for p in tmp_path.iterdir()] == [METRICS]


def test_lines_are_strict_json(
    tmp_path: Path, open_journal: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_journal() as journal:
        journal.write(1, "train", {"loss": 0.5, "gradient_norm": math.inf})
        # There at once, not only when the run ends.
        text = (tmp_path / METRICS).read_text()
        journal.write(1, "val", {"acc@0.5": 0.25})
    assert json.loads(text) == {"step": 1, "split": "train", "loss": 0.5, "gradient_norm": None}
    assert lines(tmp_path)[1] == {"step": 1, "split": "val", "acc@0.5": 0.25}
    assert "toy 1/9 train loss 0.500" in capsys.readouterr().out
    with open_journal():
        pass
    assert (tmp_path / METRICS).read_text() == ""


def test_another_rank_writes_nothing(
    tmp_path: Path, open_journal: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_journal(active=False) as journal:
        journal.write(1, "train", {"loss": 0.5})
        journal.outlier(1, 50.0)
        journal.note("hello")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_an_outlier_is_named_and_kept(
    tmp_path: Path, open_journal: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_journal() as journal:
        journal.outlier(3, 45.25)
    assert lines(tmp_path) == [{"step": 3, "split": "train", "outlier_gradient_norm": 45.25}]
    assert points(tmp_path) == {"optim/outlier_gradient_norm": [(3, 45.25)]}
    out, err = capsys.readouterr()
    assert (out, err) == ("", "step 3: the gradient norm 45.25 is far from those before it\n")


def test_notes_are_said_as_they_are(open_journal: Open, capsys: pytest.CaptureFixture[str]) -> None:
    text = "`pip install wholegrain[wandb]`: " + "a sentence longer than a terminal " * 5
    with open_journal() as journal:
        journal.note(text)
    assert capsys.readouterr().err == f"{text}\n"


def test_the_board_has_each_point_once_after_a_resume(tmp_path: Path, open_journal: Open) -> None:
    write_steps(open_journal(), 0, 7)
    write_steps(open_journal(4), 4, 6)  # killed again, before it was as far
    write_steps(open_journal(5), 5, 9)
    expected = [(step, step / 2) for step in range(1, 10)]
    assert points(tmp_path) == {"train/loss": expected}
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == expected


def test_the_board_knows_what_is_not_finite(tmp_path: Path, open_journal: Open) -> None:
    with open_journal() as journal:
        journal.write(1, "train", {"loss": math.nan, "peak_share": 0.25})
    found = points(tmp_path)
    assert math.isnan(found["train/loss"][0][1])
    assert found["speed/peak_share"] == [(1, 0.25)]


def test_an_event_file_that_a_kill_cut_short_does_no_harm(
    tmp_path: Path, open_journal: Open
) -> None:
    write_steps(open_journal(), 0, 3)
    (events,) = (tmp_path / TENSORBOARD).iterdir()
    os.truncate(events, events.stat().st_size - 5)
    write_steps(open_journal(2), 2, 4)
    assert [step for step, _ in points(tmp_path)["train/loss"]] == [1, 2, 3, 4]


class FullDisk:
    """`os.write` on a disk that has room for a few bytes more, and then none."""

    def __init__(self, room: int) -> None:
        self.room: float = room
        self._write = os.write

    def __call__(self, file: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fits = int(min(self.room, len(data)))
        self.room -= fits
        return self._write(file, data[:fits])


def test_a_full_disk_does_not_end_the_run(
    tmp_path: Path,
    open_journal: Open,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open_journal() as journal:
        journal.write(1, "train", {"loss": 0.5})
        disk = FullDisk(room=20)  # less than a line, which must not stay cut in half
        monkeypatch.setattr(module.os, "write", disk)
        for step in (2, 3):
            journal.write(step, "train", {"loss": 0.5})
        assert [line["step"] for line in lines(tmp_path)] == [1]
        assert [step for step, _ in points(tmp_path)["train/loss"]] == [1]
        said = [
            line for line in capsys.readouterr().err.splitlines() if "cannot be written" in line
        ]
        assert len(said) == 2  # a line for each file, once
        assert str(tmp_path / METRICS) in said[0]
        assert "No space left on device" in said[0]
        disk.room = math.inf
        journal.write(4, "train", {"loss": 0.5})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert [step for step, _ in points(tmp_path)["train/loss"]] == [1, 2, 3, 4]


def test_a_file_that_cannot_be_opened_is_named_before_training(
    tmp_path: Path, open_journal: Open
) -> None:
    (tmp_path / TENSORBOARD).write_text("in the way")
    with pytest.raises(ConfigError, match=rf"{tmp_path / TENSORBOARD}: metrics cannot be written"):
        open_journal()
    (tmp_path / TENSORBOARD).unlink()
    (tmp_path / METRICS).unlink()
    (tmp_path / METRICS).mkdir()
    with pytest.raises(ConfigError, match=rf"{tmp_path / METRICS}: metrics cannot be written"):
        open_journal()


class FakeWandb(ModuleType):
    """The module's functions that are used, and what was asked of them."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.logs: list[tuple[int, dict[str, float]]] = []
        self.exits: list[int] = []
        self.fails: str | None = None

    def init(self, **settings: Any) -> SimpleNamespace:
        self._fail("init")
        self.inits.append(settings)
        return SimpleNamespace(
            url="https://wandb.example/toy", sync_dir="DIR", log=self.log, finish=self.finish
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._fail("log")
        self.logs.append((step, dict(values)))

    def finish(self, exit_code: int) -> None:
        self._fail("finish")
        self.exits.append(exit_code)

    def _fail(self, what: str) -> None:
        if self.fails == what:
            raise ConnectionError("nobody\nanswers")


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


ONLINE = WandbConfig(project="grains", name="first")
OFFLINE = WandbConfig(project="grains", mode="offline")


def test_metrics_go_to_wandb_too(
    tmp_path: Path,
    open_journal: Open,
    wandb: FakeWandb,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open_journal(wandb=ONLINE, config={"run": {"steps": 9}}) as journal:
        journal.write(5, "train", {"loss": 0.5, "tflops": 2.0})
        journal.write(5, "val", {"acc@0.5": 0.25})
    (made,) = wandb.inits
    identity = json.loads((tmp_path / WANDB).read_text())
    assert identity == {"id": made["id"], "project": "grains"}
    expected = {"project": "grains", "name": "first", "mode": "online", "dir": str(tmp_path)}
    assert made.items() >= expected.items()
    assert made["config"] == {"run": {"steps": 9}}
    assert wandb.logs == [
        (5, {"train/loss": 0.5, "speed/tflops": 2.0}),
        (5, {"val/acc@0.5": 0.25}),
    ]
    assert wandb.exits == [0]
    assert "Weights & Biases: https://wandb.example/toy" in capsys.readouterr().err


def test_a_resumed_run_stays_one_run_and_sends_nothing_twice(
    tmp_path: Path, open_journal: Open, wandb: FakeWandb
) -> None:
    write_steps(open_journal(wandb=OFFLINE), 0, 6)
    write_steps(open_journal(3, wandb=OFFLINE), 3, 9)
    first, second = wandb.inits
    assert (first["id"], first["name"], first["mode"]) == (
        second["id"],
        tmp_path.name,
        "offline",
    )
    assert second["resume"] == "allow"
    assert [step for step, _ in wandb.logs] == list(range(1, 10))


@pytest.mark.parametrize("other", [{"start": 0}, {"wandb": WandbConfig(project="another")}])
def test_another_run_or_project_has_another_id(
    open_journal: Open, wandb: FakeWandb, other: dict[str, Any]
) -> None:
    write_steps(open_journal(wandb=OFFLINE), 0, 6)
    write_steps(open_journal(**({"start": 3, "wandb": OFFLINE} | other)), 3, 6)
    first, second = wandb.inits
    assert first["id"] != second["id"]
    assert [step for step, _ in wandb.logs] == [*range(1, 7), 4, 5, 6]


def test_a_run_that_fails_is_a_failed_one(open_journal: Open, wandb: FakeWandb) -> None:
    with pytest.raises(ZeroDivisionError), open_journal(wandb=ONLINE):
        raise ZeroDivisionError
    assert wandb.exits == [1]


@pytest.mark.parametrize("what", ["init", "log", "finish"])
def test_a_failing_wandb_is_given_up_with_one_line(
    tmp_path: Path,
    open_journal: Open,
    wandb: FakeWandb,
    what: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wandb.fails = what
    write_steps(open_journal(wandb=ONLINE), 0, 3)
    said = [line for line in capsys.readouterr().err.splitlines() if "given up" in line]
    assert said == [
        "Weights & Biases: given up (nobody answers); the run goes on, metrics.jsonl has all of it"
    ]
    assert len(lines(tmp_path)) == 3
    assert len(wandb.logs) == (3 if what == "finish" else 0)


@pytest.mark.parametrize("active", [True, False])
def test_wandb_that_is_not_installed_is_a_mistake_on_every_rank(
    tmp_path: Path, open_journal: Open, monkeypatch: pytest.MonkeyPatch, active: bool
) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"`pip install wholegrain\[wandb\]`"):
        open_journal(wandb=ONLINE, active=active)
    assert list(tmp_path.iterdir()) == []


def test_wandb_is_not_imported_by_a_run_that_does_without(open_journal: Open) -> None:
    assert "wandb" not in sys.modules
    write_steps(open_journal(), 0, 1)
    assert "wandb" not in sys.modules
