"""Where the set-up script puts an environment: never over files that are something else's."""

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def setup(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script of a project that lies in `tmp_path`; pip and venv are not run."""
    spec = importlib.util.spec_from_file_location("make_venv", repository / "tools/make_venv.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    project = tmp_path / "group" / "project"
    project.mkdir(parents=True)
    (project / "kept.py").touch()
    monkeypatch.setattr(module, "ROOT", project)
    monkeypatch.setattr(module, "fingerprint", lambda: "inputs")
    for step in ("run", "install", "install_shim", "check"):
        monkeypatch.setattr(module, step, lambda *given: None)
    monkeypatch.chdir(project)
    return module


def contents(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../..", "../project/", "link"])
def test_the_project_and_what_is_above_it_are_refused(
    setup: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (setup.ROOT / "link").symlink_to(tmp_path / "group")
    before = contents(tmp_path)
    assert setup.main(["--venv", name, "--torch", "cpu"]) == 2
    said = capsys.readouterr().err
    assert ("--venv is empty" if not name.strip() else f"--venv is {name!r}") in said
    assert "make VENV=.venv" in said
    assert contents(tmp_path) == before


def test_a_folder_of_other_files_is_refused(
    setup: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thesis = tmp_path / "thesis"
    (thesis / "figures").mkdir(parents=True)
    for name in ("a.tex", "b.tex", "c.tex"):
        (thesis / name).touch()
    before = contents(thesis)
    assert setup.main(["--venv", str(thesis), "--torch", "cpu"]) == 2
    said = capsys.readouterr().err
    assert f"{str(thesis)!r}, which is no virtual environment" in said
    assert "holds a.tex, b.tex, c.tex, ...;" in said and "make VENV=.venv" in said
    assert contents(thesis) == before


def test_a_file_is_refused(
    setup: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    assert setup.main(["--venv", str(tmp_path / "file"), "--torch", "cpu"]) == 2
    assert "which is no folder; name a new or empty folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("sign", [None, "pyvenv.cfg", "wholegrain-setup.json"])
def test_an_empty_folder_and_an_environment_are_taken(
    setup: ModuleType, tmp_path: Path, sign: str | None
) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    if sign is not None:
        (venv / sign).touch()
        (venv / "bin").mkdir()
    assert setup.main(["--venv", str(venv), "--torch", "cpu"]) == 0
    assert contents(venv) == [setup.STAMP]


def test_make_with_an_empty_name_touches_nothing(repository: Path, tmp_path: Path) -> None:
    """``make VENV=`` says so before it starts anything of ours."""
    (tmp_path / "tools").mkdir()
    for name in ("Makefile", "tools/make_venv.py"):
        (tmp_path / name).write_bytes((repository / name).read_bytes())
    before = contents(tmp_path)
    done = subprocess.run(
        ["make", "test", "VENV="], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "set-up: --venv is empty; name a folder" in done.stderr
    assert contents(tmp_path) == before
