"""A run folder that every rank can write to and that is one folder for all of them."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from wholegrain.errors import ConfigError

Exchange = Callable[[str], Sequence[str]]
"""Collective: gives each rank's text to all, in the order of the ranks."""

_SHOWN = 4


def check_run_folder(
    out: Path,
    rank: int,
    world: int,
    exchange: Exchange | None = None,
    *,
    need_bytes: int = 0,
    wait_s: float = 15.0,
) -> None:
    """Makes the run folder and sees that all ranks can use it; every rank calls it.

    Rank 0 leaves a file with a random name there that all others must find.

    Args:
        out: the run folder.
        rank, world: of this process.
        exchange: how ranks tell each other; None takes the default process group.
        need_bytes: what should be free, for instance for one checkpoint; 0 asks for nothing.
        wait_s: how long a network file system may take to show the file.

    Raises:
        ConfigError: on all ranks alike: it is no folder, cannot be written, is full, or is not the
            same everywhere; names the ranks and their hosts.
    """
    exchange = exchange or (_by_default_group if world > 1 else lambda text: [text])
    token = out / f".seen-{secrets.token_hex(16)}"
    # A broken rank still takes part in both exchanges: else the others would wait for it.
    wrong = _made(out, token, need_bytes) if rank == 0 else ""
    try:
        name, wrong_there = exchange(f"{token.name}\n{wrong}")[0].split("\n", 1)
        if not wrong_there and rank > 0:
            wrong = _seen(out / name, out / f"{name}-{rank}", wait_s)
        told = exchange(wrong and f"{platform.node()}\n{wrong}")
    finally:
        if rank == 0:
            with suppress(OSError):  # what matters has been said
                token.unlink()
    _raise_together(out, told)


def _made(out: Path, token: Path, need_bytes: int) -> str:
    """What is wrong with the folder on rank 0, which makes it and writes the token."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write(token)
        free = shutil.disk_usage(out).free
    except OSError as error:
        return _cause(error)
    if free < need_bytes:
        return (
            f"has {free / 2**30:.1f} GiB free and needs {need_bytes / 2**30:.1f} GiB for one "
            "checkpoint; make room or name another out"
        )
    return ""


def _seen(token: Path, own: Path, wait_s: float) -> str:
    """What is wrong with the folder on another rank, which looks for the token."""
    deadline = time.monotonic() + wait_s
    while not _found(token):
        if time.monotonic() > deadline:
            return (
                "is not the folder that rank 0 writes to; name one on storage that all hosts share"
            )
        time.sleep(0.1)
    try:
        _write(own)
        own.unlink()
    except OSError as error:
        return _cause(error)
    return ""


def _found(token: Path) -> bool:
    # A network file system may remember for a minute that there is no such file or folder; to be
    # asked for a listing has it look again.
    for folder in (token.parent.parent, token.parent):
        with suppress(OSError), os.scandir(folder) as entries:
            next(entries, None)
    try:
        return token.read_bytes() != b""
    except OSError:
        return False


def _write(path: Path) -> None:
    with path.open("xb") as file:
        file.write(b"A rank wrote this to see whether the folder can be written to.\n")
        file.flush()
        os.fsync(file.fileno())  # only then a full or remote disk says so


def _cause(error: OSError) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "is a file or lies below one; name a folder"
    return f"cannot be written to ({error.strerror or error}); make room there or name another out"


def _raise_together(out: Path, told: Sequence[str]) -> None:
    """Raises where any rank told of something wrong; of several, the first one's words count."""
    wrong = {rank: text.split("\n", 1) for rank, text in enumerate(told) if text}
    if not wrong:
        return
    what = next(iter(wrong.values()))[1]
    places = [f"rank {rank} ({host})" for rank, (host, _) in wrong.items()]
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    raise ConfigError(f"out {str(out)!r} {what}; seen by {', '.join(places[:_SHOWN])}{more}")


def _by_default_group(text: str) -> Sequence[str]:
    texts = [""] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    return texts
