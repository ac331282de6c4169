"""The command line of all stages: ``--config FILE [--dry-run] [--section.key=value ...]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from wholegrain.config import load_config
from wholegrain.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Command(Generic[T]):
    """What the user asked for."""

    config: T
    print_config: bool
    dry_run: bool
    line: str
    """The command as typed, for the report."""


def parse_command(program: str, about: str, cls: type[T], argv: Sequence[str] | None) -> Command[T]:
    """Reads the command line of a stage.

    Raises:
        ConfigError: an argument that is neither a flag nor an override.
    """
    parser = argparse.ArgumentParser(
        prog=program, description=about, epilog="Any value: --section.key=value", allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument(
        "--print-config", action="store_true", help="show the resolved config, stop"
    )
    parser.add_argument("--dry-run", action="store_true", help="check data, run one batch, stop")
    arguments = list(sys.argv[1:] if argv is None else argv)
    known, rest = parser.parse_known_args(arguments)
    for word in rest:
        if not word.startswith("--") or "=" not in word:
            raise ConfigError(
                f"argument {word!r} is not understood; write --section.key=value (see --help)"
            )
    config = load_config(cls, known.config, rest)
    line = " ".join([program, *arguments])
    return Command(config, known.print_config, known.dry_run, line)
