"""All objectives on several ranks against one process over the whole batch, negatives included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.pretrain import objective_ranks as program

PROGRAM = Path(program.__file__)
WORLDS = [[4, 4], [5, 3], [2, 3, 1, 2]]
Found = dict[str, Tensor]

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Found]]]:
    """What each rank of each world found; a rank's images are its number in `WORLDS`."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(PROGRAM), json.dumps(WORLDS), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    return [
        [torch.load(folder / str(world) / f"{rank}.pt") for rank in range(len(divided))]
        for world, divided in enumerate(WORLDS)
    ]


@pytest.mark.parametrize("world", range(len(WORLDS)), ids=[str(each) for each in WORLDS])
@pytest.mark.parametrize(("kind", "scope"), program.CASES)
def test_ranks_equal_one_process(
    ranks: list[list[dict[str, Found]]], kind: str, scope: str, world: int
) -> None:
    """The mean over ranks of every loss and every gradient is that of the whole batch.

    With `global`, negatives lie on other ranks: their texts, vectors and patches are fetched, and
    what they contribute to the gradient goes back.
    """
    whole = program.take(kind, scope, [program.IMAGES], 0)
    found = [rank[f"{kind} {scope}"] for rank in ranks[world]]
    assert all(each.keys() == whole.keys() for each in found)
    for name, value in whole.items():
        mean = torch.stack([each[name] for each in found]).mean(0)
        scale = value.abs().max().item()
        # Unit vectors are compared in single precision.
        torch.testing.assert_close(
            mean, value, rtol=0, atol=1e-5 * scale + 1e-7, msg=lambda why, n=name: f"{n}: {why}"
        )


def test_negatives_do_lie_on_other_ranks() -> None:
    counts = program.counts_of([4, 4])
    own = torch.arange(counts[0])
    assert ((own + 5) % sum(counts) >= counts[0]).any()
