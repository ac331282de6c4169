"""All objectives on several ranks against one process over the whole batch, negatives included."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.pretrain import objective_ranks as program
from tests.programs import run_program

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
    done = run_program(command, timeout_s=180, env=environment)
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
    assert_same(mean([rank[f"{kind} {scope}"] for rank in ranks[world]]), whole)


def mean(found: list[Found]) -> Found:
    """What a data-parallel wrapper makes of what the ranks found."""
    assert all(each.keys() == found[0].keys() for each in found)
    return {name: torch.stack([each[name] for each in found]).mean(0) for name in found[0]}


def assert_same(found: Found, expected: Found) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Unit vectors are compared in single precision.
        atol = 1e-5 * value.abs().max().item() + 1e-7
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=atol, msg=lambda why, n=name: f"{n}: {why}"
        )


@pytest.mark.parametrize("world", range(len(WORLDS)), ids=[str(each) for each in WORLDS])
def test_means_of_a_ranks_own_rows(ranks: list[list[dict[str, Found]]], world: int) -> None:
    """`means: rank`: each rank's losses and gradients are those of its own rows alone."""
    divided = WORLDS[world]
    for rank, found in enumerate(ranks[world]):
        alone = program.take("swin", "own means", divided, rank, alone=True)
        assert {"matching", "masked_language", "box_l1", "box_giou"} <= alone.keys()
        assert_same(found["swin own means"], alone)


@pytest.mark.parametrize("world", range(len(WORLDS)), ids=[str(each) for each in WORLDS])
def test_xvlms_contrastive_gradient(ranks: list[list[dict[str, Found]]], world: int) -> None:
    """Of W ranks, 1/W of the exact one, but for the temperature; the loss is exact."""
    size = len(WORLDS[world])
    exact = program.take("swin", "xvlm gradient", [program.IMAGES], 0)
    kept = {"contrastive", "temperature"}
    expected = {name: each if name in kept else each / size for name, each in exact.items()}
    assert_same(mean([rank["swin xvlm gradient"] for rank in ranks[world]]), expected)


def test_negatives_do_lie_on_other_ranks() -> None:
    counts = program.counts_of([4, 4])
    own = torch.arange(counts[0])
    assert ((own + 5) % sum(counts) >= counts[0]).any()
