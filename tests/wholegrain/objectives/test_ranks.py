"""Objectives on several ranks against one process over the whole batch."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.programs import run_program
from tests.wholegrain.objectives import objective_ranks as program

PROGRAM = Path(program.__file__)
WORLDS = [[8], [4, 4], [2, 2, 2, 2], [5, 2], [3, 0, 1, 2]]
Found = dict[str, Tensor]

pytestmark = pytest.mark.ranks


EXACT = [case for case in program.CONTRASTIVE if "xvlm" not in case]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Found]]]:
    """What each rank of each world found; a rank's concepts are its number in `WORLDS`."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(PROGRAM), json.dumps(WORLDS), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = run_program(command, timeout_s=120, env=environment)
    assert done.returncode == 0, done.stderr
    return [
        [torch.load(folder / str(world) / f"{rank}.pt") for rank in range(len(counts))]
        for world, counts in enumerate(WORLDS)
    ]


def mean(found: list[dict[str, Found]], case: str) -> Found:
    """What a data-parallel wrapper makes of what the ranks found."""
    names = found[0][case]
    return {name: torch.stack([rank[case][name] for rank in found]).mean(0) for name in names}


def assert_same(found: Found, expected: Found) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-10, atol=1e-12, msg=lambda why, name=name: f"{name}: {why}"
        )


@pytest.mark.parametrize("world", range(len(WORLDS)), ids=[str(each) for each in WORLDS])
@pytest.mark.parametrize("case", [*EXACT, "softmax keyed scattered"])
def test_ranks_equal_one_process(
    ranks: list[list[dict[str, Found]]], case: str, world: int
) -> None:
    """Loss and averaged gradients are those of the whole batch, however it is divided."""
    total = sum(WORLDS[world])
    whole = program.contrastive(case.removesuffix(" scattered"), slice(0, total), total, None)
    expected = {"loss", "image", "text", "temperature"} | ({"bias"} if "sigmoid" in case else set())
    assert whole.keys() == expected
    assert all(value.abs().sum() > 1e-3 for value in whole.values())
    assert_same(mean(ranks[world], case), whole)


@pytest.mark.parametrize("world", range(len(WORLDS)), ids=[str(each) for each in WORLDS])
@pytest.mark.parametrize("case", ["softmax xvlm", "sigmoid keyed chunked xvlm"])
def test_gradient_of_xvlm(ranks: list[list[dict[str, Found]]], case: str, world: int) -> None:
    """Of W ranks, that of the vectors is 1/W of the true one; loss and temperature are exact."""
    total, size = sum(WORLDS[world]), len(WORLDS[world])
    whole = program.contrastive(case, slice(0, total), total, None)
    expected = {n: v / size if n in ("image", "text") else v for n, v in whole.items()}
    assert_same(mean(ranks[world], case), expected)


@pytest.mark.parametrize("world", range(len(WORLDS)), ids=[str(each) for each in WORLDS])
def test_what_is_fetched_and_means_over_ranks(
    ranks: list[list[dict[str, Found]]], world: int
) -> None:
    """A loss over rows of other ranks, its terms counted on several: as in one process."""
    total = sum(WORLDS[world])
    whole = program.exchanged(slice(0, total), total, torch.arange(total), None)
    assert_same(mean(ranks[world], "exchanged"), whole)


@pytest.mark.parametrize("world", range(len(WORLDS)), ids=[str(each) for each in WORLDS])
def test_negatives_of_all_ranks(ranks: list[list[dict[str, Found]]], world: int) -> None:
    """They are real concepts, none of the same image or text, and some of other ranks."""
    counts = WORLDS[world]
    total, capacity = sum(counts), max(counts) + 1
    places = torch.cat([r * capacity + torch.arange(n) for r, n in enumerate(counts)])
    row_of = {place: row for row, place in enumerate(places.tolist())}
    _, _, image_key, text_key = program.batch(total)
    for rank, count in enumerate(counts):
        found, abroad = ranks[world][rank]["drawn"], 0
        assert found["loss"].isnan() == (count > 0)
        for kind in ("image", "text"):
            assert found[kind].shape == (42, count)
            assert found["valid"].all()
            for drawn in found[kind].tolist():
                for own, place in enumerate(drawn):
                    row, other = sum(counts[:rank]) + own, row_of[place]
                    assert image_key[row] != image_key[other]
                    assert text_key[row] != text_key[other]
                    abroad += place // capacity != rank
        assert abroad > 0 or len(counts) == 1 or count == 0


def test_half_precision_gradients_are_summed_in_fp32(
    ranks: list[list[dict[str, Found]]],
) -> None:
    for found in ranks[WORLDS.index([2, 2, 2, 2])]:
        for gradient in found["half"].values():
            assert (gradient == 2).all()
