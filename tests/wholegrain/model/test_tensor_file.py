"""What is written piece by piece is what the safetensors library reads."""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from wholegrain.model import tensor_file
from wholegrain.model.tensor_file import Sum, file_sum, write_tensors, write_text

DTYPES = tuple(tensor_file._DTYPES)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=6
    )
)
def test_the_library_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[torch.dtype, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    tensors = {
        f"part.{number} “ä”": torch.randint(0, 2, shape).to(dtype)
        for number, (dtype, shape) in enumerate(kinds)
    }
    written = write_tensors(path, tensors, {"key": "value"})
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert read[name].dtype == expected.dtype
        assert torch.equal(read[name], expected)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"key": "value"}
    assert written == file_sum(path) == Sum(written.sha256, path.stat().st_size)


def test_a_tensor_larger_than_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_PIECE", 1000)
    tensors = {"a": torch.randn(777), "b": torch.randn(3).bfloat16()}
    written = write_tensors(tmp_path / "x", tensors, {})
    assert written == file_sum(tmp_path / "x")
    read = load_file(tmp_path / "x")
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_others_may_read_it_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    write_tensors(tmp_path / "x", {"a": torch.zeros(2)}, {})
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_what_storage_refuses_names_the_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"x\.safetensors") as caught:
            write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG


def test_text_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    assert write_text(tmp_path / "x", "grün") == file_sum(tmp_path / "x")
    assert (tmp_path / "x").read_text(encoding="utf-8") == "grün"
    assert len(flushed) == 1
