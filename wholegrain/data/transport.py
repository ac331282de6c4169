"""Objects with tensors from one process to another, over a socket between them.

Tensors of some size go into one anonymous file of memory (``memfd``), whose descriptor travels with
the message: no copy through the socket, and nothing to clean up when either side is killed.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LARGE_BYTES = 1 << 16
_ALIGNMENT = 64


def send(socket: Connection, value: object) -> None:
    """Sends a picklable value; its CPU tensors arrive with the same contents, dtype and shape."""
    file = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    _TensorPickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
    raw = [buffer.raw() for buffer in buffers]
    places: list[tuple[int, int]] = []
    end = 0
    for view in raw:
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        places.append((start, end := start + view.nbytes))
    socket.send_bytes(pickle.dumps(places))
    socket.send_bytes(file.getbuffer())
    if not places:
        return
    descriptor = os.memfd_create("wholegrain", os.MFD_CLOEXEC)
    try:
        os.truncate(descriptor, end)
        for view, (start, _) in zip(raw, places, strict=True):
            _write(descriptor, view, start)
        send_handle(socket, descriptor, None)
    finally:
        os.close(descriptor)


def receive(socket: Connection) -> Any:
    """What the other side sent.

    Raises:
        EOFError, OSError: it ended before it had sent all.
    """
    # Both ends are processes of one run, the other forked from this one: nothing foreign is loaded.
    places = pickle.loads(socket.recv_bytes())  # noqa: S301
    data = socket.recv_bytes()
    views: list[memoryview] = []
    if places:
        descriptor = recv_handle(socket)
        try:
            shared = memoryview(mmap.mmap(descriptor, places[-1][1]))
        finally:
            os.close(descriptor)
        views = [shared[start:stop] for start, stop in places]
    return pickle.loads(data, buffers=views)  # noqa: S301


class _TensorPickler(pickle.Pickler):
    """Pickles a tensor as its bytes, out of band where they are many."""

    def reducer_override(self, value: object) -> Any:
        if not isinstance(value, Tensor) or value.device.type != "cpu":
            return NotImplemented
        array = value.detach().contiguous().numpy()
        small = array.nbytes < _LARGE_BYTES
        data = array.tobytes() if small else pickle.PickleBuffer(array.data)
        restore: Callable[..., Tensor] = _restored
        return restore, (data, array.dtype.str, tuple(value.shape))


def _restored(data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> Tensor:
    writable = bytearray(data) if isinstance(data, bytes) else data
    return torch.from_numpy(np.frombuffer(writable, dtype=dtype).reshape(shape))


def _write(descriptor: int, view: memoryview, start: int) -> None:
    done = 0
    while done < view.nbytes:
        done += os.pwrite(descriptor, view[done:], start + done)
