"""`python -m pretrain` before it has read any data."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.__main__ import main
from wholegrain.errors import run_cli


def test_help_names_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for part in ("--config", "--dry-run", "--print-config", "--section.key=value"):
        assert part in text


def test_a_config_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(main, []) == 2
    assert "--config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); check --config"),
        ("a: [", "not valid YAML"),
        ("- a", "holds a list"),
        ("optim: {lrr: 1}\ndata: {train: [{path: a}]}", "unknown key 'optim.lrr'; did you mean"),
        ("", "'data' is missing"),
    ],
)
def test_bad_files_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    assert run_cli(main, ["--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert message in error


def test_print_config_loads_no_model(repository: Path) -> None:
    # Seconds of start-up matter to those who try overrides.
    code = (
        "import sys, json\n"
        "from pretrain.__main__ import main\n"
        "main(['--config', 'configs/pretrain/flickr8k.yaml', '--print-config'])\n"
        "print(json.dumps([m for m in ('timm', 'accelerate', 'transformers') if m in sys.modules]),"
        " file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stderr) == []
    assert "batch_size" in done.stdout
