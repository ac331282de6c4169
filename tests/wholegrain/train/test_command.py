"""The command line that the stages share."""

from pathlib import Path

import pytest

from wholegrain.errors import ConfigError
from wholegrain.train.command import parse_command
from wholegrain.train.config import RunConfig


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("steps: 5\nseed: 3\n")
    return path


def test_flags_and_overrides_in_any_order(file: Path) -> None:
    given = ["--steps=7", "--config", str(file), "--dry-run", "--precision=bf16"]
    command = parse_command("python -m x", "About.", RunConfig, given)
    assert command.config == RunConfig(steps=7, seed=3, precision="bf16")
    assert command.dry_run
    assert not command.print_config
    assert command.line == f"python -m x --steps=7 --config {file} --dry-run --precision=bf16"


@pytest.mark.parametrize("word", ["steps=7", "--steps", "-x", "--dry"])
def test_what_is_neither_flag_nor_override_is_an_error(file: Path, word: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{word}' is not understood; write --section\.key="):
        parse_command("x", "About.", RunConfig, ["--config", str(file), word])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--stepz=7", "unknown key 'stepz'; did you mean 'steps'"),
        ("--steps=many", "'steps' is 'many'"),
        ("--steps=0", "'steps' is 0"),
        ("--batch_size=9 ", None),
    ],
)
def test_wrong_values_name_the_key(file: Path, word: str, message: str | None) -> None:
    given = ["--config", str(file), word]
    if message is None:
        assert parse_command("x", "About.", RunConfig, given).config.batch_size == 9
        return
    with pytest.raises(ConfigError, match=message):
        parse_command("x", "About.", RunConfig, given)


def test_what_launchers_append_is_left_out(file: Path) -> None:
    given = ["--config", str(file), "--local_rank=3", "--steps=7", "--local-rank", "1"]
    command = parse_command("x", "About.", RunConfig, given)
    assert command.config.steps == 7
    assert command.line == f"x --config {file} --steps=7"


def test_a_dry_run_may_plan_for_other_ranks(file: Path) -> None:
    given = ["--config", str(file), "--dry-run"]
    assert parse_command("x", "About.", RunConfig, given).world_size is None
    assert parse_command("x", "About.", RunConfig, [*given, "--world-size", "8"]).world_size == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--config .*see --help"),
        (
            ["--config", "FILE", "--world-size", "8"],
            "--world-size is 8, but --dry-run is not given",
        ),
        (
            ["--config", "FILE", "--dry-run", "--world-size", "0"],
            "--world-size is 0; a run has one",
        ),
        (["--config", "FILE", "--dry-run", "--world-size", "x"], "--world-size: invalid int value"),
    ],
)
def test_wrong_flags_are_one_line(file: Path, words: list[str], message: str) -> None:
    given = [str(file) if word == "FILE" else word for word in words]
    with pytest.raises(ConfigError, match=message):
        parse_command("x", "About.", RunConfig, given)


def test_a_launcher_that_says_half_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"^WORLD_SIZE is not set, but RANK is"):
        parse_command("x", "About.", RunConfig, ["--config", str(file)])
