"""The command line of all stages: ``--config FILE [--dry-run] [--section.key=value ...]``."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

from wholegrain.config import load_config
from wholegrain.errors import ConfigError
from wholegrain.train.launch import find_place, write_to_own_log

T = TypeVar("T")
# What launchers of the DeepSpeed kind append; the environment says the same.
_LOCAL_RANK = re.compile(r"--local[-_]rank(=.*)?")


@dataclass(frozen=True)
class Command(Generic[T]):
    """What the user asked for."""

    config: T
    print_config: bool
    dry_run: bool
    line: str
    """The command as typed, for the report."""
    world_size: int | None = None
    """Ranks that a dry run plans for, in place of those that it runs on."""


def parse_command(program: str, about: str, cls: type[T], argv: Sequence[str] | None) -> Command[T]:
    """Reads the command line of a stage, once it is known which rank reads it.

    Raises:
        ConfigError: an argument that is neither a flag nor an override, or a launcher's
            environment that cannot be.
    """
    write_to_own_log(find_place(os.environ), os.environ)
    parser = _Parser(
        prog=program, description=about, epilog="Any value: --section.key=value", allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument(
        "--print-config", action="store_true", help="show the resolved config, stop"
    )
    parser.add_argument("--dry-run", action="store_true", help="check data, take a few steps, stop")
    parser.add_argument(
        "--world-size", type=int, metavar="N", help="with --dry-run: plan for N ranks"
    )
    arguments = _without_local_rank(list(sys.argv[1:] if argv is None else argv))
    known, rest = parser.parse_known_args(arguments)
    for word in rest:
        if not word.startswith("--") or "=" not in word:
            raise ConfigError(
                f"argument {word!r} is not understood; write --section.key=value (see --help)"
            )
    _check_world_size(known.world_size, known.dry_run)
    config = load_config(cls, known.config, rest)
    line = " ".join([program, *arguments])
    return Command(config, known.print_config, known.dry_run, line, known.world_size)


class _Parser(argparse.ArgumentParser):
    """Has its errors said as all others are: in one line, by one rank."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help)")


def _without_local_rank(arguments: list[str]) -> list[str]:
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        found = _LOCAL_RANK.fullmatch(word)
        if found is None:
            kept.append(word)
        elif found[1] is None:  # the number is a word of its own
            next(words, None)
    return kept


def _check_world_size(world: int | None, dry_run: bool) -> None:
    if world is None:
        return
    if not dry_run:
        raise ConfigError(
            f"--world-size is {world}, but --dry-run is not given; a run has the ranks that its "
            "launcher starts"
        )
    if world < 1:
        raise ConfigError(f"--world-size is {world}; a run has one rank or more")
