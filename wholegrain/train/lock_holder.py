"""Who holds a run folder, and what can be known of whether it still runs."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import secrets
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

_TOKEN = re.compile(r"[0-9a-f]{32}")
_LONGEST = 1 << 16  # bytes of a lock file that are looked at


@dataclass(frozen=True)
class Holder:
    """A process that holds, or held, a run folder."""

    token: str
    """Of this very hold; no two are the same."""
    host: str
    machine: str
    """Boot of the kernel and namespace of its process ids: where `pid` means something."""
    pid: int
    started: int
    """Clock ticks between the boot and the start of the process, which tell it from a later one
    with the same number."""
    cluster: str
    job: str
    """Of Slurm; empty outside of it."""
    restart: int
    """How often Slurm had requeued the job."""
    user: str
    since: str
    """Start of the hold, ISO 8601."""

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, started by {self.user} at {self.since}"

    def to_json(self) -> str:
        """As `read` reads it."""
        return json.dumps(asdict(self), indent=1)


def this_process() -> Holder:
    """A new hold by the process that asks."""
    environment = os.environ
    restarts = environment.get("SLURM_RESTART_COUNT", "0")
    return Holder(
        token=secrets.token_hex(16),
        host=platform.node(),
        machine=_machine(),
        pid=os.getpid(),
        started=status.started if (status := _status(os.getpid())) else 0,
        cluster=environment.get("SLURM_CLUSTER_NAME", ""),
        job=environment.get("SLURM_JOB_ID", ""),
        restart=int(restarts) if restarts.isdecimal() else 0,
        user=_user(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def read_holder(path: Path) -> tuple[Holder | None, os.stat_result]:
    """What a lock file says, None where it makes no sense, and the file's times.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    # Opening, unlike a bare stat, has a network file system look at what is there now.
    with path.open("rb") as file:
        return _parsed(file.read(_LONGEST)), os.fstat(file.fileno())


def _parsed(text: bytes) -> Holder | None:
    try:
        values = json.loads(text)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    kinds = {field.name: int if field.type == "int" else str for field in fields(Holder)}
    if values.keys() != kinds.keys():
        return None
    if any(type(values[name]) is not kind for name, kind in kinds.items()):
        return None
    holder = Holder(**values)
    # The token becomes part of a file's name, and a signal to number 0 or less goes to many.
    return holder if _TOKEN.fullmatch(holder.token) and holder.pid > 0 else None


def runs(holder: Holder, ours: Holder) -> bool | None:
    """Whether a holder still runs, as far as this process can know; None where it cannot.

    Args:
        holder: the process asked about.
        ours: this process.
    """
    if holder.machine == ours.machine:
        return _runs_here(holder)
    same_job = holder.job != "" and (holder.cluster, holder.job) == (ours.cluster, ours.job)
    # Slurm starts a job anew when its processes have ended.
    return False if same_job and holder.restart < ours.restart else None


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown {secrets.token_hex(8)}"  # like no other


def _runs_here(holder: Holder) -> bool | None:
    status = _status(holder.pid)
    if status is None:
        try:
            os.kill(holder.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # a system that hides the processes of other users
        except OverflowError:
            return False
        return None
    if status.started != holder.started:
        return False
    if status.over:
        # Killed; but a thread that writes goes on until the kernel is done with that.
        return None if status.threads > 1 else False
    return True


class _Status(NamedTuple):
    started: int
    over: bool
    """Whether it has ended and waits for its parent to learn of it."""
    threads: int


def _status(pid: int) -> _Status | None:
    """Of a process of this machine; None where there is none to be seen."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return None
    # The second field, the name, is in brackets and may hold anything.
    state, *rest = text.rpartition(")")[2].split()
    return _Status(int(rest[18]), state in {"Z", "X"}, threads)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return f"user {os.getuid()}"
