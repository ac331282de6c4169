"""Fixtures that every test may use."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.programs import run_program

REPOSITORY = Path(__file__).resolve().parent.parent

# Ranks share a pipe, and their lines must not: without a buffer a line is written in two parts.
os.environ.pop("PYTHONUNBUFFERED", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest goes first, so that two processes end at about the same time."""
    ranks = {item.path for item in items if item.get_closest_marker("ranks")}
    longest = REPOSITORY / "tests" / "slurm" / "test_failures.py"
    items.sort(key=lambda item: (item.path != longest, item.path not in ranks))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos, from WHOLEGRAIN_TEST_DATA; the test is skipped without it."""
    folder = Path(os.environ.get("WHOLEGRAIN_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set WHOLEGRAIN_TEST_DATA to have this test run")
    return folder


@dataclass(frozen=True)
class TinyCorpora:
    """The embedded corpus at its smallest: scenes of 64 px, made and converted by `data_tools`."""

    train: Path
    """24 scenes with captions, phrases and objects (split ``train``)."""
    val: Path
    """8 more (split ``val``)."""
    expressions: Path
    """Referring expressions of 24 + 8 + 8 scenes (splits ``train``, ``val``, ``test``)."""


@pytest.fixture(scope="session")
def tiny_corpora(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpora:
    """Scenes and the corpora made of them, once a session; nobody writes there."""
    from data_tools.__main__ import main

    folder = tmp_path_factory.mktemp("tiny")
    scenes, images = folder / "scenes", folder / "scenes" / "images"
    sizes = ("--train", "24", "--val", "8", "--test", "8", "--size", "64", "--workers", "1")
    assert main(["scenes", "--out", str(scenes), *sizes]) == 0
    for split in ("train", "val"):
        files = [f"--{kind}={scenes}/{kind}_{split}.json" for kind in ("captions", "instances")]
        out = ["--out", str(folder / split)]
        assert main(["convert", "coco", "--images", str(images), *files, *out]) == 0
    given = ["--root", str(scenes), "--images", str(images), "--split-by", "scenes"]
    assert main(["convert", "refcoco", *given, "--out", str(folder / "expressions")]) == 0
    return TinyCorpora(folder / "train", folder / "val", folder / "expressions")


@pytest.fixture(scope="session")
def tiny_model() -> dict[str, Any]:
    """A model of about 100,000 parameters with batch norms, dropout and voting patches."""
    return {
        "vision": {
            "kind": "timm",
            "name": "resnet18d",
            "image_size": 64,
            "stages": [1, 2, 3],
            "options": {"channels": [8, 8, 16, 24], "stem_width": 4},
        },
        "text": {
            "hidden_size": 32,
            "layers": 2,
            "fusion_layer": 1,
            "heads": 2,
            "intermediate_size": 48,
            "max_positions": 32,
        },
        "embed_dim": 16,
        "box_head": {"kind": "patch", "width": 16},
    }


@pytest.fixture(scope="session")
def tiny_pretrain(tiny_corpora: TinyCorpora, tiny_model: dict[str, Any]) -> dict[str, Any]:
    """Settings of a pretraining run of 6 steps; a test adds `out` and what it is about."""
    return {
        "data": {
            "train": [{"path": str(tiny_corpora.train)}],
            "validation": {"path": str(tiny_corpora.val), "split": "val"},
            "tokenizer": {"size": 200},
            "max_tokens": 24,
            "sampling": {"captions_per_image": 1, "max_regions": 2, "max_objects": 1},
        },
        "model": tiny_model,
        "optim": {"lr": 1.0e-3, "warmup": 2},
        "run": {"steps": 6, "batch_size": 4, "log_every": 1, "save_every": 4},
    }


@pytest.fixture(scope="session")
def tiny_finetune(tiny_corpora: TinyCorpora, tiny_model: dict[str, Any]) -> dict[str, Any]:
    """Settings of a finetuning run of 3 steps that starts from nothing."""
    path = str(tiny_corpora.expressions)
    return {
        "model": tiny_model,
        "vocabulary": 200,
        "data": {
            "train": {"path": path, "split": "train"},
            "evaluate": [{"path": path, "split": "val"}],
            "expressions_per_image": 3,
            "max_tokens": 24,
        },
        "optim": {"lr": 1.0e-3, "warmup": 1},
        "run": {"steps": 3, "batch_size": 4, "log_every": 1},
    }


@dataclass(frozen=True)
class TinyRun:
    """A finished run, in which nobody writes."""

    config: Path
    out: Path

    def copy_to(self, out: Path) -> Path:
        """A copy that a test may change."""
        shutil.copytree(self.out, out)
        return out


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory, tiny_pretrain: dict[str, Any]) -> TinyRun:
    """`tiny_pretrain` run to its end in this process."""
    import torch

    from pretrain.__main__ import main

    # As the processes that tests start: sums in another order would differ in the last bit.
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pretrained")
    config, out = folder / "config.yaml", folder / "run"
    config.write_text(yaml.safe_dump({**tiny_pretrain, "out": str(out)}))
    assert main(["--config", str(config)]) == 0
    return TinyRun(config, out)


Settings = dict[str, Any]


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Writes settings as YAML, with changes given as ``{"a.b": value}``; returns the file."""

    def write(settings: Settings, changes: Settings | None = None, name: str = "config") -> Path:
        values = yaml.safe_load(yaml.safe_dump(settings))
        for key, value in (changes or {}).items():
            *parents, last = key.split(".")
            place = values
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = str(value) if isinstance(value, Path) else value
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def launch(repository: Path) -> Callable[..., str]:
    """Runs a program of ours as a user does, one thread a process; returns what it printed.

    ``launch("-m", "pretrain", ...)`` runs Python; ``program`` names a launcher in its place, and
    ``status`` the exit status that is right.
    """

    def run(*arguments: object, program: str = "python", status: int = 0) -> str:
        bin_folder = Path(sys.executable).parent
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(repository),
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        }
        command = [sys.executable] if program == "python" else [str(bin_folder / program)]
        given = [*command, *arguments]
        done = run_program(given, timeout_s=300, env=environment, cwd=repository, merged=True)
        assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout[-6000:]}"
        return done.stdout

    return run
