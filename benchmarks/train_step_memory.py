"""Peak memory of one training step, in a process of its own: what a batch needs and no more.

Started by `benchmarks.train_step`; by hand: ``python -m benchmarks.train_step_memory '{...}'``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.machine import HONEST_ALLOCATOR, Facts, PeakMemory, can_watch
from benchmarks.train_step_cases import Setup, Trainer, make_batch

_REPOSITORY = Path(__file__).resolve().parent.parent


def peak_in_child(
    path: str, precision: str, setup: Setup, counts: dict[str, tuple[int, int]]
) -> dict[str, Facts] | None:
    """Peak of a step of each iteration, measured in a fresh process.

    Args:
        path: "reference" or "fast".
        precision: "fp32" or "bf16".
        setup: the model and how it is run.
        counts: iteration to images and texts.

    Returns:
        For each iteration ``peak_bytes``, all that was held, and ``step_bytes``, what of it the
        step added to weights and optimizer state. None where the system does not tell.
    """
    if not can_watch(torch.device(setup.device)):
        return None
    order = {
        "path": path,
        "precision": precision,
        "setup": setup.as_dict(),
        "counts": counts,
        "threads": torch.get_num_threads(),
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train_step_memory", json.dumps(order)],
        cwd=_REPOSITORY,
        env=os.environ | HONEST_ALLOCATOR,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Facts] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(order: Facts) -> dict[str, Facts]:
    """In the child: the second step of each iteration; the first makes the optimizer's state."""
    torch.set_num_threads(order["threads"])
    setup = Setup(**order["setup"])
    trainer = Trainer(order["path"], setup)
    found = {}
    for iteration, (images, texts) in order["counts"].items():
        batch = make_batch(trainer.config, iteration, images, texts, seed=0).to(setup.device)
        trainer.step(batch, order["precision"])
        memory = PeakMemory(trainer.device)
        with memory.watch():
            trainer.step(batch, order["precision"])
        found[iteration] = {
            "peak_bytes": memory.peak,
            "step_bytes": memory.peak - memory.before,
        }
    return found


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
