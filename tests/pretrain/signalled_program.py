"""`python -m pretrain` that sends itself a signal: SIGNAL STEP ARGUMENT..."""

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import wholegrain.train.loop as loop
from pretrain.__main__ import main
from wholegrain.errors import run_cli
from wholegrain.train.journal import Journal
from wholegrain.train.saving import Saver

savers: list[Saver] = []


class KnownSaver(Saver):
    """A saver that the journal can ask."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        savers.append(self)


class Signalling(Journal):
    """A journal after whose line of a step the signal comes.

    A checkpoint under way is on disk by then: whether a kill finds it half written would depend
    on the machine. Kills within a save are for the tests of the writer.
    """

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        super().write(step, split, values)
        if step == int(sys.argv[2]):
            for saver in savers:
                saver.wait()
            os.kill(os.getpid(), signal.Signals[sys.argv[1]])


if __name__ == "__main__":
    loop.Journal = Signalling
    loop.Saver = KnownSaver
    sys.exit(run_cli(main, sys.argv[3:]))
