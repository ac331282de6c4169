"""Every command, configuration and call in README and docs is one that the programs understand."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import yaml

import wholegrain
from finetune.config import FinetuneConfig
from finetune.shots.config import FewShotConfig
from pretrain.config import PretrainConfig
from wholegrain.config import from_dict
from wholegrain.predict import Grounder, Grounding, load
from wholegrain.train.command import parse_command

FENCE = re.compile(r"```(sh|yaml|python)\n(.*?)```", re.DOTALL)
LAUNCHERS = ("torchrun", "accelerate", "deepspeed", "srun")
REPOSITORY = Path(__file__).parents[1]
# A stage's class, and the shipped config that FILE stands for.
STAGES = {
    "pretrain": (PretrainConfig, "configs/pretrain/4m.yaml"),
    "finetune.refcoco": (FinetuneConfig, "configs/finetune/refcoco.yaml"),
    "finetune.few_shot": (FewShotConfig, "configs/finetune/few_shot.yaml"),
}


def blocks(language: str) -> list[tuple[str, str]]:
    """Each block of a language, with the name of its page."""
    pages = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
    pages += sorted((REPOSITORY / "docs").glob("*.md"))
    return [
        (page.name, block)
        for page in pages
        for kind, block in FENCE.findall(page.read_text(encoding="utf-8"))
        if kind == language
    ]


def documented() -> list[tuple[str, str]]:
    found = []
    for page, block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.split("  #")[0].strip()
            if command and not command.startswith("#"):
                found.append((page, command))
    return found


def entry_of(words: list[str]) -> tuple[str, list[str]]:
    """The program that a command line starts, and its arguments; launchers are looked through."""
    while "=" in words[0]:  # VARIABLE=value before the command
        words = words[1:]
    if words[0] in LAUNCHERS:
        start = next(
            i
            for i, w in enumerate(words)
            # deepspeed names a module behind a --module of its own.
            if w in {"-m", "--module"} or w.endswith(".py")
        )
        words = [w if w != "--module" else "-m" for w in words]
        words = ["python", *words[start:]]
    if words[0] != "python":
        return words[0], words[1:]
    if words[1] == "-m":
        return words[2], words[3:]
    return words[1], words[2:]


def check_make(arguments: list[str]) -> None:
    targets = {a for a in arguments if "=" not in a}
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def check_stage(arguments: list[str], stage: str) -> None:
    cls, shipped = STAGES[stage]
    at = arguments.index("--config") + 1
    config = REPOSITORY / arguments[at].replace("FILE", shipped)
    parse_command(stage, "", cls, [*arguments[:at], str(config), *arguments[at + 1 :]])


def check_parser(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    if "--help" not in arguments:
        parser.parse_args(arguments)  # exits with an error at what it does not know


def check_data_tools(arguments: list[str]) -> None:
    from data_tools.__main__ import build_parser

    check_parser(build_parser(arguments[0]), arguments)


def check_wholegrain(arguments: list[str]) -> None:
    from wholegrain.__main__ import build_parser

    check_parser(build_parser(), arguments)


def check_evaluate(arguments: list[str]) -> None:
    from finetune.evaluate import build_parser

    check_parser(build_parser(), arguments)


def check_predict(arguments: list[str]) -> None:
    from finetune.predict import build_parser

    check_parser(build_parser(), arguments)


def check_train_step(arguments: list[str]) -> None:
    from benchmarks.train_step import parser

    check_parser(parser(), arguments)


def check_contrastive_memory(arguments: list[str]) -> None:
    from benchmarks.contrastive_memory import parser

    check_parser(parser(), arguments)


def check_switches(arguments: list[str]) -> None:
    from benchmarks.switches import parser

    check_parser(parser(), arguments)


def check_benchmark(arguments: list[str], module: str) -> None:
    check_parser(importlib.import_module(f"benchmarks.{module}").build_parser(), arguments)


def check_sbatch(arguments: list[str]) -> None:
    at = next(i for i, word in enumerate(arguments) if word.endswith(".sh"))
    script = (REPOSITORY / arguments[at]).read_text(encoding="utf-8")
    behind = arguments[at + 1 :]
    if arguments[at] == "slurm/convert_array.sh":
        check_data_tools(["convert", *behind])
        return
    _, _, command = script.rpartition("-m wholegrain.train.slurm -m ")
    stage, *given, passed_on = shlex.split(command.replace("\\\n", " "))
    assert passed_on == "$@"
    check_stage([*given, *behind], stage)


def check_demo(arguments: list[str]) -> None:
    assert set(arguments) <= {"--fresh", "--quick"}


def check_hf(arguments: list[str]) -> None:
    program = Path(sys.executable).with_name("hf")
    asked = [str(program), arguments[0], "--help"]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    for flag in (word for word in arguments if word.startswith("--")):
        assert flag in told.split(), flag


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "finetune/refcoco.py": partial(check_stage, stage="finetune.refcoco"),
    **{stage: partial(check_stage, stage=stage) for stage in STAGES},
    "data_tools": check_data_tools,
    "wholegrain": check_wholegrain,
    "finetune.evaluate": check_evaluate,
    "finetune.predict": check_predict,
    "tools/demo.py": check_demo,
    "benchmarks.train_step": check_train_step,
    "benchmarks.contrastive_memory": check_contrastive_memory,
    "benchmarks.switches": check_switches,
    **{
        f"benchmarks.{name}": partial(check_benchmark, module=name)
        for name in (
            "data",
            "grounding",
            "inference",
            "loop",
            "order",
            "scaling",
            "scan",
            "soak",
        )
    },
    "hf": check_hf,
    "sbatch": check_sbatch,
}
# Programs of others, in a few places of the docs.
FOREIGN = {"apt-get", "sudo", "git", "pre-commit", "tensorboard", "pip", ".ci/run", "bash"}


@pytest.mark.parametrize(("page", "command"), documented(), ids=lambda value: value[:60])
def test_documented_command_is_understood(page: str, command: str) -> None:
    program, arguments = entry_of(shlex.split(command))
    if program in FOREIGN:
        pytest.skip(f"{program} is not ours")
    assert program in CHECKS, f"{page}: no check knows {program!r}"
    CHECKS[program](arguments)


def test_there_are_documented_commands() -> None:
    assert len(documented()) > 10


@pytest.mark.parametrize(("page", "block"), blocks("yaml"), ids=lambda value: value[:40])
def test_documented_configuration_is_one(page: str, block: str) -> None:
    assert page == "grounding.md", "say here what it is a part of"
    least = {"data": {"train": {"path": "corpora/refcoco"}}, "init": "runs/pretrain/release"}
    from_dict(FinetuneConfig, least | yaml.safe_load(block), page)


@pytest.mark.parametrize(("page", "block"), blocks("python"), ids=lambda value: value[:40])
def test_documented_python_fits_what_load_returns(
    page: str, block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run with stand-ins that have the attributes and the parameters of ours, and no others."""
    model = create_autospec(Grounder, instance=True)
    model.ground.return_value = [create_autospec(Grounding("dog", (0, 0, 1, 1), 0.5))]
    monkeypatch.setattr(wholegrain, "load", create_autospec(load, return_value=model))
    names = {"wholegrain": wholegrain, "model": model, "photo": "a.jpg", "other": "b.jpg"}
    exec(compile(block, page, "exec"), names)  # our own pages
    assert wholegrain.load.called or model.method_calls


def test_there_are_blocks_of_each_language() -> None:
    assert len(blocks("yaml")) > 3
    assert {page for page, _ in blocks("python")} >= {"README.md", "grounding.md", "release.md"}
