"""Weights are read back exactly, or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wholegrain.errors import CheckpointError
from wholegrain.model.weights import distinct, load_weights, save_weights


class Tied(nn.Module):
    """A table with two names, a buffer, and a half-precision parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.decoder = nn.Linear(3, 4, bias=False)
        self.decoder.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(3)
        self.small = nn.Parameter(torch.randn(2).bfloat16())


def test_round_trip_of_tied_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = Tied(), Tied()
    model.norm.running_mean.fill_(3)
    save_weights(model, tmp_path / "w")
    assert "decoder.weight" not in load_file(tmp_path / "w")
    load_weights(other, tmp_path / "w")
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
        assert other.state_dict()[name].dtype == value.dtype
    assert other.decoder.weight is other.embedding.weight


def test_shared_tensors_are_written_once() -> None:
    table = torch.ones(3, 2)
    state = {"a": table, "b": table, "c": table[:2], "d": torch.empty(0), "e": torch.empty(0)}
    assert list(distinct(state)) == ["a", "c", "d", "e"]


def test_weights_must_fit_both_ways_and_nothing_is_half_loaded(tmp_path: Path) -> None:
    model = Tied()
    save_weights(model, tmp_path / "w")
    state = load_file(tmp_path / "w")
    state["stray"] = state.pop("small")
    state["norm.bias"] = torch.zeros(7)
    state["embedding.weight"] = torch.zeros(4, 3)
    save_file(state, tmp_path / "w")
    before = model.embedding.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "w")
    for part in (
        str(tmp_path / "w"),
        "missing small",
        "not in the model stray",
        "norm.bias is (7,)",
    ):
        assert part in str(caught.value)
    assert torch.equal(model.embedding.weight, before)


def test_many_names_are_shortened(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "w")
    with pytest.raises(CheckpointError, match=r"missing .*, .* and 3 more"):
        load_weights(Tied(), tmp_path / "w")


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = Tied()
    with torch.no_grad():
        model.small[0] = float("nan")
    save_weights(model, tmp_path / "w")
    with pytest.raises(CheckpointError, match="NaN or infinity in small"):
        load_weights(model, tmp_path / "w")


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"<html>", None])
def test_what_is_no_safetensors_file(tmp_path: Path, content: bytes | None) -> None:
    model, path = Tied(), tmp_path / "w"
    save_weights(model, path)
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    with pytest.raises(CheckpointError, match=rf"{path}: not a whole safetensors file"):
        load_weights(model, path)
    with pytest.raises(CheckpointError, match="absent"):
        load_weights(model, tmp_path / "absent")
