"""A checkpoint is whole or it does not exist."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from wholegrain.errors import CheckpointError
from wholegrain.train import checkpoint
from wholegrain.train.checkpoint import MARKER, Checkpoint


def trained(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def saved(run: Path, step: int, keep: int = 9) -> Checkpoint:
    return checkpoint.save(run, step, *trained(), {"facts": {"seed": 0}}, keep, {"a.json": "{}"})


def test_round_trip(tmp_path: Path) -> None:
    model, optimizer = trained()
    found = checkpoint.save(tmp_path, 12, model, optimizer, {"facts": {"x": 1}}, 1, {"a": "b"})
    assert found.folder == tmp_path / "checkpoints" / "step_000012"
    assert found.step == 12
    assert found.state() == {"step": 12, "facts": {"x": 1}}
    assert (found.folder / "a").read_text() == "b"
    other, moments = trained(seed=1)
    found.load(other, moments)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    for key, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(moments.state_dict()["state"][key][name], value), name


def test_the_newest_are_kept_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (5, 10, 999_999, 1_000_000):
        saved(tmp_path, step, keep=2)
    assert [found.step for found in checkpoint.complete(tmp_path)] == [999_999, 1_000_000]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.step == 1_000_000


def test_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None


def test_a_folder_without_its_marker_is_ignored_and_can_be_written_again(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    (saved(tmp_path, 6).folder / MARKER).unlink()
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert newest.step == 3
    saved(tmp_path, 6)
    assert [found.step for found in checkpoint.complete(tmp_path)] == [3, 6]


def test_a_failure_while_saving_leaves_the_older_one_and_no_rubbish_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 3)

    def full(*given: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="no space"):
            saved(tmp_path, 6, keep=1)
    assert [found.step for found in checkpoint.complete(tmp_path)] == [3]
    saved(tmp_path, 6, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000006"]


def test_the_marker_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(checkpoint, "_flush", lambda path: flushed.append(path.name))
    saved(tmp_path, 3)
    assert flushed[-2:] == [MARKER, "checkpoints"]
    assert set(flushed[:-2]) == {"model.safetensors", "optimizer.pt", "state.json", "a.json"}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, name: str, share: float) -> None:
    found = saved(tmp_path, 3)
    path = found.folder / name
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=f"step_000003/{name}"):
        found.state()
        found.load(*trained())


def test_an_optimizer_of_another_model_is_refused(tmp_path: Path) -> None:
    found = saved(tmp_path, 3)
    model, _ = trained()
    other = torch.optim.AdamW([nn.Parameter(torch.zeros(2))])
    with pytest.raises(CheckpointError, match=r"optimizer\.pt is damaged or of another config"):
        found.load(model, other)


def test_a_pickle_among_the_tensors_never_runs(tmp_path: Path) -> None:
    import os
    import pickle

    trace = tmp_path / "ran"

    class Mine:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(trace),)

    found = saved(tmp_path, 3)
    for write in (torch.save, lambda o, path: path.write_bytes(pickle.dumps(o))):
        write(Mine(), found.folder / "optimizer.pt")
        with pytest.raises(CheckpointError, match=r"optimizer\.pt"):
            found.load(*trained())
    assert not trace.exists()


def test_state_is_plain_json(tmp_path: Path) -> None:
    text = (saved(tmp_path, 3).folder / "state.json").read_text()
    assert json.loads(text) == {"step": 3, "facts": {"seed": 0}}
