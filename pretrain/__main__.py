"""``python -m pretrain --config configs/pretrain/X.yaml [--dry-run] [--section.key=value ...]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pretrain.config import PretrainConfig
from wholegrain.config import dump_config
from wholegrain.errors import run_cli
from wholegrain.train.command import parse_command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stage; returns the exit status."""
    about = "Pretrain on images, regions and objects at once."
    command = parse_command("python -m pretrain", about, PretrainConfig, argv)
    if command.print_config:
        print(dump_config(command.config), end="")
        return 0
    from pretrain.run import pretrain

    return pretrain(command)


if __name__ == "__main__":
    sys.exit(run_cli(main))
