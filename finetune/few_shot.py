"""Few-shot classification with adapters: ``python -m finetune.few_shot --config FILE``.

A frozen CLIP, or a model of this library, learns adapters (MMA) from a few images a class, and is
measured on classes, data sets or domains that it has not learnt from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from finetune.shots.config import FewShotConfig
from wholegrain.config import dump_config
from wholegrain.errors import run_cli
from wholegrain.train.command import parse_command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stage; returns the exit status."""
    about = "Learn adapters from a few images a class; measure them on other classes and sets."
    command = parse_command("python -m finetune.few_shot", about, FewShotConfig, argv)
    if command.print_config:
        print(dump_config(command.config), end="")
        return 0
    from finetune.shots.run import few_shot

    return few_shot(command)


if __name__ == "__main__":
    sys.exit(run_cli(main))
