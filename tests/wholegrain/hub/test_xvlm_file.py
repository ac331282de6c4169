"""Files are read as data or refused with what they are; written ones appear whole."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.wholegrain.hub.published_xvlm import published
from wholegrain.errors import CheckpointError, DataError
from wholegrain.hub.import_xvlm import read_xvlm
from wholegrain.hub.xvlm_file import XvlmFile, read_xvlm_file, write_xvlm_file


@pytest.mark.parametrize("wrapped", [True, False])
def test_read(tmp_path: Path, wrapped: bool) -> None:
    state = published("vit")
    content: Any = {"model": state, "config": {"image_res": 224}} if wrapped else state
    torch.save(content, tmp_path / "a.th")
    read = read_xvlm(tmp_path / "a.th")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.write_text, (self.target, "it ran")


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_that_runs_code_is_refused_unrun(tmp_path: Path, legacy: bool) -> None:
    target, path = tmp_path / "ran", tmp_path / "bomb.th"
    torch.save(
        {"model": {"temp": torch.zeros(1)}, "config": Bomb(target)},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(CheckpointError) as caught:
        read_xvlm(path)
    assert not target.exists()
    message = str(caught.value)
    assert message.startswith(f"{path}: not a checkpoint of tensors")
    assert "which is code rather than data" in message
    assert "weights_only" not in message, "no advice to take the protection off"


def test_a_bare_pickle_bomb(tmp_path: Path) -> None:
    target, path = tmp_path / "ran", tmp_path / "bomb.pkl"
    path.write_bytes(pickle.dumps(Bomb(target), protocol=2))
    with pytest.raises(CheckpointError):
        read_xvlm(path)
    assert not target.exists()


def cut(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("4m_base_model_state_step_199999.th", b"inside")


def compressed(path: Path) -> None:
    """What would unpack to any size."""
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_bytes(b"\n <!DOCTYPE html><html>"), "it is a web page"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "it is a web page"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1"), "Git LFS"),
        (
            lambda path: path.write_bytes(b"\x80\x04garbage"),
            "its content is damaged",
        ),
        (lambda path: path.write_bytes(b"PK\x03\x04 and no more"), "cut short or damaged"),
        (cut, "cut short or damaged"),
        (zipped, "unpack it and give the checkpoint inside"),
        (compressed, "its parts are compressed"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: None, "No such file"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "a.th"
    make(path)
    with pytest.raises(CheckpointError, match=rf"a\.th: not a checkpoint.*{message}"):
        read_xvlm(path)


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {"model": [1, 2]}, {"model": {"a": 3}}, {1: torch.zeros(1)}]
)
def test_files_without_a_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.th")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_xvlm(tmp_path / "a.th")


def test_names_of_data_parallel_training_lose_their_prefix(tmp_path: Path) -> None:
    torch.save({"model": {"module.a": torch.ones(1), "module.b": torch.ones(2)}}, tmp_path / "a.th")
    assert set(read_xvlm(tmp_path / "a.th")) == {"a", "b"}


def test_the_stored_configuration_is_read(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(1)}, "config": {"image_res": 384}}, tmp_path / "a.th")
    assert read_xvlm_file(tmp_path / "a.th").config == {"image_res": 384}
    torch.save({"a": torch.ones(1)}, tmp_path / "bare.th")
    assert read_xvlm_file(tmp_path / "bare.th").config == {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1).expand(1 << 40), "claims shape"),
        (torch.eye(3).to_sparse(), "is sparse, quantised or without values"),
        (torch.empty(3, device="meta"), "is sparse, quantised or without values"),
    ],
)
def test_tensors_that_claim_more_than_they_hold(
    tmp_path: Path, value: torch.Tensor, message: str
) -> None:
    torch.save({"model": {"temp": value}}, tmp_path / "a.th")
    with pytest.raises(CheckpointError, match=f"tensor 'temp' {message}"):
        read_xvlm(tmp_path / "a.th")


FILE = XvlmFile({"a": torch.arange(6.0).view(2, 3)}, {"image_res": 8})


def test_write_and_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.th"
    write_xvlm_file(path, FILE)
    found = read_xvlm_file(path)
    assert torch.equal(found.state["a"], FILE.state["a"]) and found.config == FILE.config
    assert [each.name for each in path.parent.iterdir()] == ["a.th"]


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.th"
    path.write_text("precious")
    with pytest.raises(DataError, match=r"a\.th: the file exists; remove it, or ask to overwrite"):
        write_xvlm_file(path, FILE)
    assert path.read_text() == "precious"
    write_xvlm_file(path, FILE, overwrite=True)
    assert read_xvlm_file(path).config == FILE.config


@pytest.mark.parametrize("overwrite", [True, False])
def test_only_a_plain_file_is_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("folder", "link"):
        with pytest.raises(DataError, match="exists and is no plain file"):
            write_xvlm_file(tmp_path / name, FILE, overwrite=overwrite)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.th"
    path.write_text("earlier")

    def fail(content: object, stream: Any) -> None:
        stream.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos\nmore")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(DataError, match=r"a\.th: cannot be written \(\[enforce fail"):
        write_xvlm_file(path, FILE, overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == ["a.th"]
    assert path.read_text() == "earlier"


def test_no_place_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_xvlm_file(tmp_path / "file" / "a.th", FILE)
