"""Writes safetensors files piece by piece, with the checksum of what was meant to be written.

The layout is that of safetensors, whose library does all reading. Its own writer takes a file in
one call: the checksum would need a second pass, which takes for right whatever the storage made of
the bytes; the system's error number is lost; and the file is its owner's alone. Here the
interpreter's lock is held between pieces only, so that a thread that writes does not stop training.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_PIECE = 4 << 20
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Sum:
    """What a file must be."""

    sha256: str
    bytes: int


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Sum:
    """Writes a safetensors file and flushes it to the storage.

    Args:
        path: of the file.
        tensors: on the host, contiguous.
        metadata: texts that go into the header.

    Raises:
        OSError: the storage does not take it.
    """
    # Large elements first: then every tensor lies at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _write(path, _pieces(text, [tensors[name] for name in names]))


def write_text(path: Path, text: str) -> Sum:
    """Writes a file of text and flushes it to the storage."""
    return _write(path, [memoryview(text.encode())])


def flush_folder(folder: Path) -> None:
    """Flushes the names in a folder to the storage."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with _named(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sum(path: Path) -> Sum:
    """What a file is."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return Sum(digest.hexdigest(), file.tell())


def _pieces(header: bytes, tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for tensor in tensors:
        content = tensor.reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(content), _PIECE):
            yield content[start : start + _PIECE]


def _write(path: Path, pieces: Iterable[memoryview]) -> Sum:
    digest, count = hashlib.sha256(), 0
    with _named(path), open(path, "wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            count += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return Sum(digest.hexdigest(), count)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of writing say which file they are about, as those of opening do."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
