"""Ranks that are forked from one process, which has paid for the import of torch once."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

BOUND_S = 60.0


def run_ranks(world: int, work: Callable[[int], None], store: Path) -> list[int]:
    """Runs ``work(rank)`` in processes that end as programs do; their exit statuses.

    A rank that is not done after a minute is killed, status -9; one that has stopped is left until
    the others are done.
    """
    sys.stdout.flush()
    pids: list[int] = []
    for rank in range(world):
        if (pid := os.fork()) == 0:
            where = f"file://{store}"
            dist.init_process_group("gloo", init_method=where, rank=rank, world_size=world)
            work(rank)
            sys.exit(0)
        pids.append(pid)
    statuses: dict[int, int] = {}
    stopped: set[int] = set()
    deadline = time.monotonic() + BOUND_S
    while len(statuses) < world:
        if time.monotonic() > deadline or len(statuses) + len(stopped) == world:
            for pid in set(pids) - statuses.keys():
                os.kill(pid, signal.SIGKILL)
        for pid in set(pids) - statuses.keys():
            done, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if done and os.WIFSTOPPED(status):
                stopped.add(pid)
            elif done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [statuses[pid] for pid in pids]
