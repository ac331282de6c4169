"""The ranks of a run find each other, or say in one line why not."""

from __future__ import annotations

import errno
import os
import socket
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from wholegrain import once
from wholegrain.errors import ConfigError
from wholegrain.train.launch import Place


def join(
    place: Place, backend: str, timeout_s: float = 300.0, collective_s: float = 3600.0
) -> None:
    """Forms the process group of all ranks; one process alone needs none.

    Libraries that want a group, such as Accelerate and DeepSpeed, take the one that is there.

    Args:
        place: from `find_place`, which completed the environment.
        backend: of torch.distributed, for instance ``cpu:gloo,cuda:nccl``.
        timeout_s: within which all ranks must have come.
        collective_s: after which torch gives up an exchange between ranks.

    Raises:
        ConfigError: the port is taken, the address is unknown or out of reach, or ranks stay away;
            names them and the remedy.
    """
    if place.world == 1:
        return
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    _refuse_unknown(host, port)
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    store = _open_store(host, port, place.rank == 0 and not once.launcher_holds_store(), timeout_s)
    _meet(store, place, f"{host}:{port}", timeout_s)
    dist.init_process_group(
        backend,
        store=store,
        rank=place.rank,
        world_size=place.world,
        timeout=timedelta(seconds=collective_s),
    )


def _open_store(host: str, port: int, holds: bool, timeout_s: float) -> Store:
    """The store that rank 0, or its launcher, holds."""
    opened: list[Store] = []

    def open_it() -> None:
        limit = timedelta(seconds=timeout_s)
        opened.append(TCPStore(host, port, is_master=holds, timeout=limit, wait_for_workers=False))

    try:
        # torch says pages where there is nobody, and waits for ever for another program's answer.
        if holds:
            _refuse_taken(port)
        else:
            _find_listener(host, port, timeout_s)
        once.within(timeout_s, open_it)
    except (OSError, RuntimeError) as error:
        raise _no_meeting(error, host, port, holds, timeout_s) from error
    return PrefixStore(once.attempt(), opened[0])


def _refuse_taken(port: int) -> None:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()


def _find_listener(host: str, port: int, timeout_s: float) -> None:
    """Waits until somebody listens there."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=min(10.0, timeout_s)).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.1)


def _refuse_unknown(host: str, port: int) -> None:
    try:
        socket.getaddrinfo(host, port)
    except OSError as error:
        raise ConfigError(
            f"MASTER_ADDR is {host!r}, which this node does not know ({error.strerror}); set "
            "MASTER_ADDR to an address of rank 0's node that all nodes reach"
        ) from error


def _no_meeting(
    error: Exception, host: str, port: int, holds: bool, timeout_s: float
) -> ConfigError:
    reason = str(error).splitlines()[0]
    if holds and isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"MASTER_PORT is {port}, which another program on {host} uses; set MASTER_PORT to a "
            "free port"
        )
    if holds:
        return ConfigError(f"rank 0 cannot be met at {host}:{port} ({reason}); set MASTER_PORT")
    return ConfigError(
        f"rank 0 was not met at {host}:{port} within {timeout_s:g} s ({reason}); see what it says "
        "itself, or set MASTER_ADDR and MASTER_PORT to what all nodes reach"
    )


def _meet(store: Store, place: Place, where: str, timeout_s: float) -> None:
    """Waits until all ranks are there; names those that are not."""
    keys = [f"here/{rank}" for rank in range(place.world)]
    try:
        store.set(keys[place.rank], "")
        store.wait(keys, timedelta(seconds=timeout_s))
        return
    except (dist.DistError, RuntimeError) as error:
        cause = error
    try:
        away = [rank for rank, key in enumerate(keys) if not store.check([key])]
    except (dist.DistError, RuntimeError):
        raise ConfigError(
            f"rank 0 left {where} before all {place.world} ranks had joined; see what it says"
        ) from cause
    shown = ", ".join(map(str, away[:8])) + (", ..." if len(away) > 8 else "")
    raise ConfigError(
        f"{len(away)} of {place.world} ranks did not join at {where} within {timeout_s:g} s "
        f"(ranks {shown}); see what they say, and whether their nodes reach that address"
    ) from cause
