"""Starts `engines_program` on a number of ranks and reads what they saw."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tests.programs import run_program
from tests.wholegrain.train.engines_program import Case

PROGRAM = Path(__file__).with_name("engines_program.py")
REPOSITORY = PROGRAM.parents[3]
SHIPPED = {stage: str(REPOSITORY / f"configs/deepspeed/zero{stage}.json") for stage in (1, 2, 3)}
Ranks = list[dict[str, Any]]


def start(world: int, cases: Sequence[Case], folder: Path) -> Ranks:
    """What each rank found, by case; `folder` is made."""
    folder.mkdir()
    listed = folder / "cases.json"
    listed.write_text(json.dumps([asdict(case) for case in cases]))
    bin_folder = Path(sys.executable).parent
    launcher = [sys.executable]
    if world > 1:
        torchrun = str(bin_folder / "torchrun")
        launcher = [torchrun, "--standalone", "--nproc-per-node", str(world)]
    done = run_program(
        [*launcher, PROGRAM, listed, folder],
        timeout_s=400,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        merged=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "eepSpeed" not in done.stdout, "DeepSpeed is to say nothing that we do not"
    # Written a moment ago by the ranks that were started above, into a folder of this test.
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(world)]


def zero(folder: Path, stage: int, **settings: Any) -> str:
    """A DeepSpeed file of a stage."""
    path = folder / f"zero{stage}-{len(settings)}.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage, **settings}}))
    return str(path)


def difference(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of weights, each tensor's in terms of its largest value.

    All are finite, and what is expected to be zero is zero.
    """
    assert found.keys() == expected.keys()
    largest = 0.0
    for name, value in expected.items():
        if not value.is_floating_point():
            continue
        apart, scale = (found[name].double() - value.double()).abs().max(), value.abs().max()
        assert apart.isfinite(), name  # `max` would pass over a NaN
        assert scale > 0 or apart == 0, f"{name} is no longer zero"
        largest = max(largest, float(apart / scale) if scale > 0 else 0.0)
    return largest


def whole_moments(ranks: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, torch.Tensor]]:
    """Every parameter's count of updates and both moments (2, N), of all ranks' pieces."""
    pieces: dict[str, list[tuple[int, float, torch.Tensor]]] = {}
    for rank in ranks:
        for (name, begin), (step, tensors) in rank["moments"].items():
            both = torch.stack([tensors["exp_avg"], tensors["exp_avg_sq"]])
            pieces.setdefault(name, []).append((begin, step, both))
    whole = {}
    for name, held in pieces.items():
        held.sort(key=lambda piece: piece[0])
        reached = 0
        for begin, step, both in held:
            assert (begin, step) == (reached, held[0][1]), f"pieces of {name} do not meet"
            reached += both.shape[1]
        whole[name] = (held[0][1], torch.cat([both for _, _, both in held], dim=1))
    return whole
