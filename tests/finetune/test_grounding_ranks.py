"""The grounding loss on several ranks against one process over the whole batch."""

import json
import os
import sys

import pytest
import torch
from torch import Tensor

from finetune.config import BoxLossConfig
from tests.finetune import grounding_ranks as program
from tests.programs import run_program

WORLDS = [[1, 4], [2, 3], [1, 1, 1, 2]]
Found = dict[str, Tensor]

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Found]]]:
    """What each rank of each world found; a rank's photos are its number in `WORLDS`."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, program.__file__, json.dumps(WORLDS), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = run_program(command, timeout_s=300, env=environment)
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


def test_the_budget_is_felt(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the squared distance of the share read from `budget_share`, and moves the selector."""

    def step(weights: BoxLossConfig) -> tuple[Found, Tensor, Tensor]:
        """Losses, gates (T, 1) of the finer scale, and the gradient of what chooses its patches."""
        module, seen = program.build("scan"), []
        fuse = module.model.fuse_texts
        monkeypatch.setattr(module, "weights", weights)
        monkeypatch.setattr(
            module.model, "fuse_texts", lambda *given: seen.append(fuse(*given)) or seen[0]
        )
        losses = module(program.batch_of(range(len(program.EXPRESSIONS))))
        losses["loss"].backward()
        gradient = dict(module.named_parameters())["model.fusion.selector.four.weight"].grad
        return losses, seen[0].gates.detach(), gradient

    losses, gates, gradient = step(BoxLossConfig(budget=3.0, budget_share=0.25))
    read = gates.mean()
    assert read > 0.5
    torch.testing.assert_close(losses["budget"], (read - 0.25).square())
    plain, _, without = step(BoxLossConfig(budget=0.0))
    assert "budget" not in plain
    torch.testing.assert_close(losses["loss"], plain["loss"] + 3 * losses["budget"])
    assert gradient.abs().max() > 100 * without.abs().max()  # the boxes move it, too, but hardly
