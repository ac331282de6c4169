"""Finetuning for grounding: ``accelerate launch finetune/refcoco.py --config FILE``.

Expressions with boxes in, a model that finds what words say out; with its figures, what they must
be compared with, and a report.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from finetune.config import FinetuneConfig
from wholegrain.config import dump_config
from wholegrain.errors import run_cli
from wholegrain.train.command import parse_command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stage; returns the exit status."""
    about = "Finetune a pretrained model to find things in pictures from words."
    command = parse_command("python -m finetune.refcoco", about, FinetuneConfig, argv)
    if command.print_config:
        print(dump_config(command.config), end="")
        return 0
    from finetune.run import finetune

    return finetune(command)


if __name__ == "__main__":
    sys.exit(run_cli(main))
