"""A real Slurm of two virtual nodes on this machine: arrays that end, and one that is cancelled.

Skipped where Slurm and munge are not installed (Debian: ``slurm-wlm munge``), or not as root.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo", "scancel")
PATH = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
NODES = 2

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={run}/munge/socket
StateSaveLocation={run}/state
SlurmdSpoolDir={run}/spool-%n
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd-%n.pid
SlurmctldLogFile={run}/slurmctld.log
SlurmdLogFile={run}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
KillWait=2
MessageTimeout=30
ReturnToService=2
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 \\
  Port=[{first}-{last}] CPUs=8 RealMemory=64000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Slurm:
    """A running cluster; its commands take no other's."""

    run_folder: Path

    def command(self, *command: object, **more: str) -> str:
        """Runs one of Slurm's commands and returns what it printed."""
        done = subprocess.run(
            list(map(str, command)),
            env=os.environ | {"SLURM_CONF": f"{self.run_folder}/slurm.conf", "PATH": PATH, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}"
        return done.stdout.strip()


def free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(20_000, 60_000, 97):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for place, each in enumerate(sockets):
                each.bind(("127.0.0.1", first + place))
            return first
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
    raise AssertionError("no free ports")


def start(run: Path) -> None:
    """Starts the daemons of a cluster whose files all lie in one folder."""
    run.chmod(0o755)
    for name in ("munge", "state", *(f"spool-n{n + 1}" for n in range(NODES))):
        (run / name).mkdir()
    host = socket.gethostname().split(".")[0]
    port = free_ports(NODES + 1)
    (run / "slurm.conf").write_text(
        CONFIG.format(host=host, run=run, port=port, nodes=NODES, first=port + 1, last=port + NODES)
    )
    (run / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    key = run / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
    files["seed-file"] = "seed"
    slurm = Slurm(run)
    slurm.command(
        "munged", "--force", *(f"--{name}={run}/munge/{file}" for name, file in files.items())
    )
    slurm.command("slurmctld", "-f", run / "slurm.conf")
    for node in range(NODES):
        slurm.command("slurmd", "-N", f"n{node + 1}", "-f", run / "slurm.conf")
    for _ in range(120):
        if slurm.command("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").count("n") == NODES:
            return
        time.sleep(0.25)
    raise AssertionError((run / "slurmctld.log").read_text()[-3000:])


def stop(run: Path) -> None:
    """Ends the daemons that `start` started, and no others."""
    for file in [*run.glob("slurm*.pid"), run / "munge" / "pid"]:
        try:
            number = int(file.read_text())
            os.kill(number, 15)
        except (OSError, ValueError):
            continue
        for _ in range(80):
            if not Path(f"/proc/{number}").exists():
                break
            time.sleep(0.1)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    missing = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}; install slurm-wlm and munge to have this test run")
    if os.getuid() != 0:
        pytest.skip("the daemons of a private Slurm are started as root only")
    # A short path: that of munge's socket may have 107 characters.
    run = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        start(run)
        yield Slurm(run)
    finally:
        stop(run)
        shutil.rmtree(run, ignore_errors=True)


class Jobs:
    """Submits the script from the repository; logs lie beside the corpus."""

    def __init__(self, slurm: Slurm, repository: Path, given: Any, folder: Path) -> None:
        self.slurm, self.out, self.logs = slurm, folder / "out", folder / "logs"
        self.logs.mkdir()
        self._script = repository / "slurm" / "convert_array.sh"
        self._arguments = [*given.arguments, "--out", self.out]

    def submit(self, numbers: str, *options: str) -> str:
        return self.slurm.command(
            *("sbatch", "--parsable", f"--array={numbers}", *options),
            f"--output={self.logs}/%x-%A_%a.log",
            *(f"--chdir={self._script.parents[1]}", self._script, *self._arguments),
            PYTHON=sys.executable,
        )

    def said(self) -> str:
        return "".join(path.read_text() for path in sorted(self.logs.iterdir()))

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.iterdir()}


@pytest.fixture
def jobs(slurm: Slurm, repository: Path, given: Any, tmp_path: Path) -> Jobs:
    return Jobs(slurm, repository, given, tmp_path)


@pytest.mark.slow
def test_an_array(jobs: Jobs, given: Any) -> None:
    job = jobs.submit("0-3", "--wait")
    assert jobs.files() == given.files, jobs.said()
    names = sorted(path.name for path in jobs.logs.iterdir())
    assert names == [f"convert-{job}_{number}.log" for number in range(4)]


@pytest.mark.slow
def test_a_cancelled_array_is_submitted_again(jobs: Jobs, given: Any) -> None:
    job = jobs.submit("1-3")
    work = jobs.out.with_name("out.work")
    until = time.monotonic() + 60
    while not list(work.glob("part-*.json")) and not jobs.out.exists():
        assert time.monotonic() < until, jobs.said()
        time.sleep(0.01)
    jobs.slurm.command("scancel", "--signal=KILL", "--full", job)
    jobs.slurm.command("scancel", job)
    jobs.submit("0-1", "--wait")
    assert jobs.files() == given.files, jobs.said()
    assert not work.exists()
