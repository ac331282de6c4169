"""The benchmark of the contrastive loss's memory: that it compares like with like, and runs."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import contrastive_memory
from benchmarks.machine import can_watch
from wholegrain.objectives.contrastive import contrastive_loss
from wholegrain.objectives.gather import gather_concepts


def test_the_ways_compared_are_the_same_loss() -> None:
    image, text = contrastive_memory.vectors(12, 8, torch.device("cpu"))
    everyone, temperature = gather_concepts(image, text), torch.tensor(0.07)
    torch.testing.assert_close(
        contrastive_memory.whole_matrix(everyone, temperature),
        contrastive_loss(image, text, temperature, chunk=5),
    )


@pytest.mark.skipif(not can_watch(torch.device("cpu")), reason="no high-water mark to reset")
def test_it_measures_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "memory.json"
    sizes = ["--totals", "512", "2048", "--ranks", "8", "--width", "8", "--chunk", "16"]
    assert contrastive_memory.main([*sizes, "--device", "cpu", "--json", str(file)]) == 0
    assert "whole matrix" in capsys.readouterr().out
    written = json.loads(file.read_text())
    figures = {(each["global"], each["method"]): each["peak_bytes"] for each in written["figures"]}
    assert len(figures) == 6
    whole, own, chunked = (figures[2048, method] for method in contrastive_memory.METHODS)
    # Of similarities alone: at least one matrix of 2048 x 2048, of 256 x 2048, of 16 x 2048.
    assert whole > 4 * 2048**2 > own > 4 * 256 * 2048 > chunked > 4 * 16 * 2048


def test_a_batch_that_does_not_divide(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        contrastive_memory.main(["--totals", "100", "--ranks", "8"])
    assert "--totals 100 is no multiple of --ranks 8" in capsys.readouterr().err
