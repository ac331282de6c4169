"""A run folder belongs to one config; what else lies somewhere stays untouched."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from wholegrain.config import config, from_dict, load_config
from wholegrain.errors import ConfigError
from wholegrain.train.config import OptimConfig, RunConfig
from wholegrain.train.run_folder import prepare_run_folder


@config
class Data:
    """As the stages have it."""

    train: tuple[dict[str, str], ...] = ({"path": "a"}, {"path": "b"})
    workers: int = 0
    validation: str | None = None


@config
class Whole:
    """A small stage."""

    out: str = "x"
    data: Data = Data()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    head: dict[str, int] | None = None


def begun(out: Path, settings: Whole, checkpoint: bool = True) -> Path:
    prepare_run_folder(out, settings, world=1)
    if checkpoint:
        folder = out / "checkpoints" / "step_000003"
        folder.mkdir(parents=True)
        (folder / "COMPLETE").touch()
    return out


def changed(**sections: dict[str, Any]) -> Whole:
    return from_dict(Whole, {**sections})


def test_writes_config_and_environment(tmp_path: Path) -> None:
    settings = changed(run={"seed": 7})
    out = begun(tmp_path / "a" / "b", settings, checkpoint=False)
    assert load_config(Whole, out / "config.yaml") == settings
    found = json.loads((out / "environment.json").read_text())
    assert found["processes"] == 1
    assert found["packages"]["torch"].startswith("2.")
    assert {path.name for path in out.iterdir()} == {"config.yaml", "environment.json"}


def test_the_same_config_continues(tmp_path: Path) -> None:
    out = begun(tmp_path / "run", changed(run={"seed": 7}))
    prepare_run_folder(out, changed(run={"seed": 7}), world=2)
    assert json.loads((out / "environment.json").read_text())["processes"] == 2


def test_another_config_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    out = begun(tmp_path / "run", changed(run={"seed": 7}))
    before = (out / "config.yaml").read_bytes()
    with pytest.raises(ConfigError) as caught:
        prepare_run_folder(out, changed(run={"batch_size": 32}, head={"width": 8}), world=1)
    for part in (
        str(out),
        "run.seed was 7, is now 0",
        "run.batch_size was 64, is now 32",
        "head.width was 'absent', is now 8",
        "Give another --out",
    ):
        assert part in str(caught.value)
    assert "run.steps" not in str(caught.value)
    assert (out / "config.yaml").read_bytes() == before


def test_what_does_not_change_the_training_may_change(tmp_path: Path) -> None:
    out = begun(tmp_path / "run", Whole())
    train = [{"path": "elsewhere/a"}, {"path": "elsewhere/b"}]
    prepare_run_folder(
        out,
        from_dict(
            Whole,
            {
                "out": "y",
                "data": {"train": train, "workers": 3, "validation": "v"},
                "run": {"log_every": 3, "save_every": 7, "validate_every": 2, "keep": 5},
            },
        ),
        world=1,
    )
    with pytest.raises(ConfigError, match=r"data\.train\.2\.x was 'absent'"):
        prepare_run_folder(out, changed(data={"train": [*train, {"path": "c", "x": "y"}]}), 1)


def test_without_a_checkpoint_nothing_is_lost(tmp_path: Path) -> None:
    out = begun(tmp_path / "run", changed(run={"seed": 7}), checkpoint=False)
    other = changed(run={"seed": 8})
    prepare_run_folder(out, other, world=1)
    assert load_config(Whole, out / "config.yaml") == other


@pytest.mark.parametrize("name", ["thesis.tex", "manifest.json", "checkpoints"])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(ConfigError, match=rf"{tmp_path}.*holds no run.*{name}.*name a new folder"):
        prepare_run_folder(tmp_path, Whole(), world=1)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_launchers_log_may_lie_there(tmp_path: Path) -> None:
    for name in ("slurm-1.out", "train.log", ".nfs0001"):
        (tmp_path / name).touch()
    prepare_run_folder(tmp_path, Whole(), world=1)
    assert (tmp_path / "config.yaml").exists()


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        prepare_run_folder(tmp_path / "run", Whole(), world=1)


def test_a_lost_config_beside_checkpoints(tmp_path: Path) -> None:
    out = begun(tmp_path / "run", Whole())
    (out / "config.yaml").write_text("{")
    with pytest.raises(ConfigError, match=r"(?s)config\.yaml: cannot be read .*another --out"):
        prepare_run_folder(out, Whole(), world=1)


def test_other_ranks_check_and_do_not_write(tmp_path: Path) -> None:
    prepare_run_folder(tmp_path / "new", Whole(), world=2, write=False)
    assert not (tmp_path / "new").exists()
    out = begun(tmp_path / "run", Whole())
    with pytest.raises(ConfigError, match=r"run\.seed"):
        other = dataclasses.replace(Whole(), run=RunConfig(seed=3))
        prepare_run_folder(out, other, world=2, write=False)
