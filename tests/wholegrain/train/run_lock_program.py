"""A run that holds a folder: FOLDER BEAT_S STALE_S MACHINE.

MACHINE is "" for this one, "no links" for this one with a file system that has no hard links.

Takes one command a line: ``acquire``, ``check``, ``release``; answers each with one line.
"""

import errno
import os
import sys
from pathlib import Path

from wholegrain.errors import WholegrainError
from wholegrain.train import lock_holder
from wholegrain.train.run_lock import RunLock


def refuse(source: object, target: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def main(folder: str, beat_s: str, stale_s: str, machine: str) -> None:
    if machine == "no links":
        os.link = refuse
    elif machine:
        lock_holder._machine = lambda: machine
    lock = RunLock(
        Path(folder), beat_s=float(beat_s), stale_s=float(stale_s), say=lambda line: None
    )
    for command in sys.stdin:
        try:
            getattr(lock, command.strip())()
        except WholegrainError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        else:
            print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
