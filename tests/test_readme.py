"""Every command in README and docs is one that the programs understand."""

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

import pytest

FENCE = re.compile(r"```sh\n(.*?)```", re.DOTALL)
LAUNCHERS = ("torchrun", "accelerate", "deepspeed", "srun")
REPOSITORY = Path(__file__).parents[1]


def documented() -> list[tuple[str, str]]:
    pages = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
    pages += sorted((REPOSITORY / "docs").glob("*.md"))
    found = []
    for page in pages:
        for block in FENCE.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.split("  #")[0].strip()
                if command and not command.startswith("#"):
                    found.append((page.name, command))
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


def check_stage(arguments: list[str]) -> None:
    config = arguments[arguments.index("--config") + 1]
    assert config == "FILE" or (REPOSITORY / config).exists(), config
    flags = {a.partition("=")[0] for a in arguments if a.startswith("--")}
    plain = {"--config", "--dry-run", "--print-config", "--world-size", "--out", "--init"}
    for flag in flags - plain:
        assert "." in flag, f"{flag} is neither a flag nor an override"


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
    script = next(i for i, word in enumerate(arguments) if word.endswith(".sh"))
    assert (REPOSITORY / arguments[script]).is_file(), arguments[script]
    behind = arguments[script + 1 :]
    if arguments[script] == "slurm/convert_array.sh":
        check_data_tools(["convert", *behind])
    else:
        check_stage(["--config", "FILE", *behind])


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
    "pretrain": check_stage,
    "finetune/refcoco.py": check_stage,
    "finetune.refcoco": check_stage,
    "finetune.few_shot": check_stage,
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
