"""The set-up script's decisions; pip and venv themselves are replaced."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def setup(repository: Path) -> ModuleType:
    """A fresh copy of the script as a module, so that a test may replace its parts."""
    spec = importlib.util.spec_from_file_location("make_venv", repository / "tools/make_venv.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def steps(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the steps taken, with every costly step replaced."""
    taken: list[str] = []

    def create(venv: Path) -> None:
        venv.mkdir(exist_ok=True)
        taken.append("create")

    monkeypatch.setattr(setup, "create", create)
    monkeypatch.setattr(setup, "install", lambda venv, build: taken.append(f"install {build}"))
    monkeypatch.setattr(setup, "install_shim", lambda venv: taken.append("shim"))
    monkeypatch.setattr(setup, "check", lambda venv: taken.append("check"))
    monkeypatch.setattr(setup, "has_pip", lambda venv: venv.is_dir())
    monkeypatch.setattr(setup, "has_nvidia_device", lambda: False)
    return taken


ALL = ["create", "install cpu", "shim", "check"]


def test_first_run_makes_everything_and_the_second_nothing(
    setup: ModuleType, steps: list[str], tmp_path: Path
) -> None:
    setup.make(tmp_path / "venv", "auto")
    assert steps == ALL
    setup.make(tmp_path / "venv", "auto")
    assert steps == ALL


def test_an_interrupted_run_is_done_again_from_nothing(
    setup: ModuleType, steps: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(venv: Path, build: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(setup, "install", interrupted)
        with pytest.raises(KeyboardInterrupt):
            setup.make(tmp_path / "venv", "auto")
    steps.clear()
    setup.make(tmp_path / "venv", "auto")
    assert steps == ALL


def test_a_changed_lock_file_updates_in_place(
    setup: ModuleType, steps: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.make(tmp_path / "venv", "auto")
    steps.clear()
    lock = tmp_path / "lock.txt"
    lock.write_text(setup.LOCK.read_text() + "another==1.0\n")
    monkeypatch.setattr(setup, "LOCK", lock)
    setup.make(tmp_path / "venv", "auto")
    assert steps == ALL[1:]


def test_the_users_own_environment_is_not_cleared(
    setup: ModuleType, steps: list[str], tmp_path: Path
) -> None:
    setup.make(tmp_path, "auto")  # an environment with pip and without our stamp
    assert steps == ALL[1:]


def test_the_chosen_build_is_kept_until_another_is_named(
    setup: ModuleType, steps: list[str], tmp_path: Path
) -> None:
    setup.make(tmp_path / "venv", "cuda")
    setup.make(tmp_path / "venv", "auto")
    assert steps.count("install cuda") == 1
    setup.make(tmp_path / "venv", "cpu")
    assert steps[-3:] == ALL[1:]


def test_a_device_decides_for_cuda(
    setup: ModuleType, steps: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "has_nvidia_device", lambda: True)
    setup.make(tmp_path / "venv", "auto")
    assert "install cuda" in steps


def test_the_driver_tool_without_a_device_is_not_a_device(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for script, expected in (
        ("echo 'GPU 0: some device'", True),
        ("echo 'No devices were found'; exit 6", False),
    ):
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        assert setup.has_nvidia_device() is expected


@pytest.mark.parametrize(
    ("build", "on_offer", "expected"),
    [
        ("cpu", {"torch", "torchvision"}, ["torch==2.1+cpu", "torchvision==0.1+cpu"]),
        ("cpu", {"torch"}, ["torch==2.1+cpu", "torchvision==0.1"]),
        (
            "cpu",
            set(),
            [
                "--extra-index-url",
                "https://download.pytorch.org/whl/cpu",
                "torch==2.1+cpu",
                "torchvision==0.1+cpu",
            ],
        ),
        ("cuda", {"torch", "torchvision"}, ["torch===2.1", "torchvision===0.1"]),
    ],
)
def test_what_pip_is_asked_for(
    setup: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    build: str,
    on_offer: set[str],
    expected: list[str],
) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("# a comment\ntorch==2.1\ntorchvision==0.1\n")
    monkeypatch.setattr(setup, "LOCK", lock)
    monkeypatch.setattr(setup, "offered", lambda pip, wanted: wanted.split("==")[0] in on_offer)
    assert setup.torch_arguments(["pip"], build) == expected


def test_a_python_without_ensurepip_and_pip_names_the_package_to_install(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare Debian or Ubuntu Python."""
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(setup.SetupError, match=r"apt-get install python3\.\d+-venv"):
        setup.make(tmp_path / "venv", "cpu")
    assert not (tmp_path / "venv").exists()


def test_clearing_leaves_the_mark_of_the_unfinished(setup: ModuleType, tmp_path: Path) -> None:
    """A clearing that is itself interrupted must not pass for the user's own environment."""
    setup.write_stamp(tmp_path, {"state": setup.INSTALLING})
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "half").touch()
    (tmp_path / "lib64").symlink_to("lib")
    (tmp_path / "pyvenv.cfg").touch()
    setup.clear(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [setup.STAMP]


def test_an_old_python_names_the_remedy(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = SimpleNamespace(version_info=(3, 10, 2), version="3.10.2 (main)")
    monkeypatch.setattr(setup, "sys", old)
    with pytest.raises(setup.SetupError, match=r"3\.10\.2.*make PYTHON="):
        setup.make(tmp_path / "venv", "cpu")


def test_the_hook_is_installed_for_the_interpreters_start(
    setup: ModuleType, tmp_path: Path
) -> None:
    major, minor = setup.sys.version_info[:2]
    packages = tmp_path / "lib" / f"python{major}.{minor}" / "site-packages"
    packages.mkdir(parents=True)
    setup.install_shim(tmp_path)
    (pth,) = packages.glob("*.pth")
    assert len(pth.read_text().splitlines()) == 1  # site.py executes line by line
    assert (packages / f"{pth.stem}.py").read_bytes() == setup.SHIM.read_bytes()


def test_an_unreadable_stamp_counts_as_none(setup: ModuleType, tmp_path: Path) -> None:
    for text in ("", "{", json.dumps(["complete"])):
        (tmp_path / setup.STAMP).write_text(text)
        assert setup.read_stamp(tmp_path) == {}
