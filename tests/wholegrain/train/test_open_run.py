"""A run folder is left as it was by a start that is refused; a step that was asked for is taken."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wholegrain.config import dump_config
from wholegrain.errors import CheckpointError, ConfigError
from wholegrain.train.config import RunConfig, WandbConfig
from wholegrain.train.engine import Engine
from wholegrain.train.open_run import open_run
from wholegrain.train.run_folder import CONFIG, prepare_run_folder

Toy = Callable[..., Any]
RUN = RunConfig(steps=9, batch_size=8, log_every=1, save_every=3, keep=9)
ALL = ["step_000003", "step_000006", "step_000009"]


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


@pytest.fixture
def done(toy: Toy) -> Any:
    """A toy run that is done, with checkpoints of steps 3, 6 and 9."""
    run = toy(run=RUN)
    run.fit()
    assert names(run.out) == ALL
    return run


def damage_newest(out: Path) -> None:
    (out / "checkpoints" / "step_000009" / "model.safetensors").write_bytes(b"")


@pytest.mark.parametrize("resume", [3, "auto"])
def test_a_start_that_is_refused_for_its_config_renames_nothing(done: Any, resume: Any) -> None:
    damage_newest(done.out)
    (done.out / CONFIG).write_text(dump_config(RUN))
    other = replace(RUN, batch_size=16, resume=resume)
    with (
        pytest.raises(ConfigError, match="batch_size was 8, is now 16"),
        open_run(done.out, other, Engine(other)),
    ):
        prepare_run_folder(done.out, other, 1)
    assert names(done.out) == ALL


@pytest.mark.parametrize("resume", [3, "auto"])
def test_so_does_one_that_is_refused_for_its_data(done: Any, resume: Any) -> None:
    damage_newest(done.out)
    done.run, done.facts = replace(RUN, resume=resume), {"seed": 1}
    with pytest.raises(CheckpointError, match="was made with seed None"):
        done.fit()
    assert names(done.out) == ALL


def test_so_does_one_without_what_it_needs(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wholegrain.train.journal.find_spec", lambda name: None)
    done.run = replace(RUN, resume=3, wandb=WandbConfig(project="grains"))
    with pytest.raises(ConfigError, match=r"run\.wandb is set, but its package is not installed"):
        done.fit()
    assert names(done.out) == ALL


def test_a_step_that_is_taken_sets_later_ones_aside(done: Any) -> None:
    done.run = replace(RUN, resume=3)
    assert done.fit()[0] == 3
    assert names(done.out) == [
        "step_000003",
        "step_000006",
        "step_000006.set-aside",
        "step_000009",
        "step_000009.set-aside",
    ]


def test_a_damaged_one_is_renamed_once_the_run_goes_on(done: Any) -> None:
    damage_newest(done.out)
    assert done.fit()[0] == 6
    assert names(done.out) == [*ALL, "step_000009.damaged"]


def begin_of(out: Path, resume: Any) -> int:
    run = replace(RUN, resume=resume)
    with open_run(out, run, Engine(run)) as folder:
        assert folder.begin is not None
        return folder.begin.step


def test_a_restart_takes_the_step_that_the_start_before_it_did_not_come_to(
    done: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended while it opened its data: a scheduler starts it again by itself."""
    assert begin_of(done.out, 3) == 3
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for _ in range(2):
        assert begin_of(done.out, 3) == 3
    done.run = replace(RUN, resume=3)
    assert done.fit()[0] == 3
    assert begin_of(done.out, 3) == 9, "once is enough"


def test_a_new_start_without_a_step_forgets_it(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert begin_of(done.out, 3) == 3
    assert begin_of(done.out, "auto") == 9
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert begin_of(done.out, 3) == 9
    assert names(done.out) == ALL


def test_nothing_is_left_in_a_new_folder_that_has_no_such_step(tmp_path: Path) -> None:
    run = replace(RUN, resume=3)
    with (
        pytest.raises(CheckpointError, match="no checkpoint of step 3"),
        open_run(tmp_path / "new", run, Engine(run)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
