"""`python -m pretrain` that sends itself a signal: SIGNAL STEP ARGUMENT..."""

import os
import signal
import sys
from collections.abc import Mapping

import wholegrain.train.loop as loop
from pretrain.__main__ import main
from wholegrain.errors import run_cli
from wholegrain.train.journal import Journal


class Signalling(Journal):
    """A journal after whose line of a step the signal comes."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        super().write(step, split, values)
        if step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.Signals[sys.argv[1]])


if __name__ == "__main__":
    loop.Journal = Signalling
    sys.exit(run_cli(main, sys.argv[3:]))
