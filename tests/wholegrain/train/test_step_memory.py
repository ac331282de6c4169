"""The memory of steps is what they held at their most, not what is left of it."""

import sys
from pathlib import Path

import pytest
import torch

from wholegrain.train import step_memory
from wholegrain.train.step_memory import StepMemory

CPU = torch.device("cpu")
SIZE = 200 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is Linux's to tell")
def test_the_peak_counts_and_what_was_before_does_not() -> None:
    kept = torch.ones(SIZE // 4)
    memory = StepMemory(CPU)
    before = memory.growth()
    if before is None:
        pytest.skip("this system lets no process reset its high-water mark")
    passing = torch.ones(SIZE // 4)
    del passing
    after = memory.growth()
    assert after is not None and len(kept)
    assert before < SIZE / 4 and SIZE * 0.9 < after < SIZE * 1.25


def test_a_system_that_does_not_tell_gives_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_memory, "_PROCESS", tmp_path / "none")
    assert StepMemory(CPU).growth() is None
