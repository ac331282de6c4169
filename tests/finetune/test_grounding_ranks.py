"""The grounding loss on several ranks against one process over the whole batch."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tests.finetune import grounding_ranks as program

WORLDS = [[1, 4], [2, 3], [1, 1, 1, 2]]
Found = dict[str, Tensor]

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Found]]]:
    """What each rank of each world found; a rank's photos are its number in `WORLDS`."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, program.__file__, json.dumps(WORLDS), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return [
        [torch.load(folder / str(world) / f"{rank}.pt") for rank in range(len(divided))]
        for world, divided in enumerate(WORLDS)
    ]


@pytest.mark.parametrize("world", range(len(WORLDS)), ids=[str(each) for each in WORLDS])
@pytest.mark.parametrize("case", program.CASES)
def test_every_expression_counts_alike_on_any_rank(
    ranks: list[list[dict[str, Found]]], case: str, world: int
) -> None:
    # Ranks have between none and four of the six expressions.
    whole = program.take(case, range(len(program.EXPRESSIONS)))
    found = [rank[case] for rank in ranks[world]]
    assert all(each.keys() == whole.keys() for each in found)
    for name, value in whole.items():
        mean = torch.stack([each[name] for each in found]).mean(0)
        atol = 1e-5 * value.abs().max().item() + 1e-7
        torch.testing.assert_close(
            mean, value, rtol=0, atol=atol, msg=lambda why, n=name: f"{n}: {why}"
        )


def test_the_budget_is_felt() -> None:
    whole = program.take("scan", range(5))
    assert whole["budget"] > 1e-3
    assert whole["model.fusion.selector.four.weight"].abs().max() > 0
