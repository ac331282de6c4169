"""The set-up as a whole: files that must agree, commands that must work in this environment."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

PROGRAMS = Path(sys.executable).parent


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command with one thread a process, as several share the cores."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment,
        timeout=240,
    )


@pytest.fixture(scope="module")
def lock(repository: Path) -> dict[str, str]:
    lines = (repository / "constraints/lock.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): pinned for name, pinned in pins}


@pytest.fixture(scope="module")
def project(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_requirement_is_locked_within_its_range(project: dict, lock: dict[str, str]) -> None:
    # The other extras bring drivers of storage that no test reads from, and the fuzzer.
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *extras["dev"]]
    for requirement in map(Requirement, wanted):
        name = requirement.name.lower().replace("_", "-")
        assert name in lock, f"constraints/lock.txt has no line for {requirement}"
        assert requirement.specifier.contains(lock[name]), f"{requirement} excludes {lock[name]}"


def test_torch_is_bounded_above(project: dict) -> None:
    """An open range takes the newest release, which may exist as a CUDA build only."""
    for requirement in map(Requirement, project["project"]["dependencies"]):
        if requirement.name in ("torch", "torchvision"):
            assert not requirement.specifier.contains("999")


def test_this_environment_is_the_locked_one(lock: dict[str, str]) -> None:
    different = {}
    for name, pinned in lock.items():
        try:
            installed = Version(version(name)).public
        except PackageNotFoundError:
            installed = "absent"
        if installed != pinned:
            different[name] = f"{installed}, locked {pinned}"
    assert not different, f"run `make setup`: {different}"


def test_the_package_is_usable_from_anywhere(tmp_path: Path) -> None:
    code = "import wholegrain, pretrain, finetune, data_tools, importlib.metadata as m"
    result = run(sys.executable, "-c", f"{code}; m.version('wholegrain')", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["launch", "--help"]])
def test_the_accelerate_command_starts(arguments: list[str], tmp_path: Path) -> None:
    """It imports timm and with it torchvision, before any code of ours could run."""
    result = run(PROGRAMS / "accelerate", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "usage: accelerate" in result.stdout


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize(
    "launcher",
    [
        ["torchrun", "--standalone", "--nproc-per-node", "2"],
        ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_the_documented_launchers_give_two_processes_on_a_cpu(
    launcher: list[str], tmp_path: Path, repository: Path
) -> None:
    """docs/training.md: `accelerate launch --cpu --num_processes 2` would silently give one."""
    script = tmp_path / "count.py"
    script.write_text(
        "import torch\n"
        "from accelerate import Accelerator\n"
        "accelerator = Accelerator(cpu=True)\n"
        "rank = torch.tensor([accelerator.process_index + 1])\n"
        "total = accelerator.reduce(rank, 'sum').item()\n"
        "print(f'{accelerator.num_processes} processes, sum {total};', flush=True)\n"
        "accelerator.wait_for_everyone()\n"
        "accelerator.end_training()\n"
    )
    result = run(PROGRAMS / launcher[0], *launcher[1:], script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("2 processes, sum 3;") == 2
    documented = (repository / "docs/training.md").read_text(encoding="utf-8")
    assert " ".join(launcher[:5]).removesuffix(" --main_process_port") in documented


def test_ci_runs_the_readmes_commands(repository: Path) -> None:
    script = repository / ".ci/run"
    assert os.access(script, os.X_OK)
    assert run("bash", "-n", script).returncode == 0
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    readme = (repository / "README.md").read_text(encoding="utf-8")
    for command in ("make lint", "make test"):
        assert re.search(rf"^{command}$", text, re.MULTILINE)
        assert command in readme
    assert "make demo" in readme


def test_hosted_ci_and_pre_commit_call_the_same_commands(repository: Path) -> None:
    workflow = yaml.safe_load((repository / ".github/workflows/ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    for step in steps:
        if "uses" in step:
            assert re.search(r"@[0-9a-f]{40}$", step["uses"]), "pin actions by commit"
    hooks = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"]]
    assert entries == ["make lint"]


def test_make_lists_what_each_target_does(repository: Path) -> None:
    result = run("make", "-C", repository, "--no-print-directory")
    assert result.returncode == 0, result.stderr
    for target in ("make demo", "make test", "make lint", "make format"):
        assert target in result.stdout


def test_nothing_of_one_machine_is_in_the_set_up(repository: Path) -> None:
    """Indexes and their folders belong to pip's own configuration."""
    files = ("constraints/lock.txt", "Makefile", ".ci/run", "pyproject.toml")
    for name in files:
        text = (repository / name).read_text(encoding="utf-8")
        assert not re.search(r"index-url|find-links|://|\+cpu==|@ file", text), name
