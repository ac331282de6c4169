"""A real Slurm of two virtual nodes on this machine, started as root without systemd.

Three partitions lie over the same nodes: jobs of `high` preempt those of `low`, which Slurm then
requeues, and those of `spot`, which it warns first. Each node has two GPUs that can be scheduled
and behind which there is no device.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo", "scancel", "scontrol")
PATH = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
NODES = ("n1", "n2")

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
SchedulerParameters=bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
SlurmdParameters=config_overrides
KillWait=6
MessageTimeout=30
FirstJobId={job}
SlurmdTimeout=5
ReturnToService=2
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 \\
  Port=[{first}-{last}] CPUs=8 RealMemory=64000 Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 \\
  PreemptMode=REQUEUE GraceTime=0
PartitionName=spot Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 \\
  PreemptMode=REQUEUE GraceTime=40
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why there can be no cluster here."""
    absent = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    if absent:
        return f"no {', '.join(absent)}; install slurm-wlm and munge to have this test run"
    if os.getuid() != 0:
        return "the daemons of a private Slurm are started as root only"
    return None


@dataclass
class Slurm:
    """A running cluster; its commands take no other's."""

    run_folder: Path

    def command(self, *command: object, status: int | None = 0, **more: str) -> str:
        """Runs one of Slurm's commands and returns what it printed.

        Args:
            command: its words.
            status: the exit status that is right; None takes any.
            more: variables beside those of this process.
        """
        # The tests' own launcher is no part of what they submit.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        done = subprocess.run(
            list(map(str, command)),
            env=inherited | {"SLURM_CONF": f"{self.run_folder}/slurm.conf", "PATH": PATH, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert status is None or done.returncode == status, (
            f"{command}: {done.returncode}\n{done.stdout}"
        )
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """What the controller knows of a job: JobState, Restarts, ExitCode and so on."""
        said = self.command("scontrol", "show", "job", "--oneliner", job)
        return dict(re.findall(r"(\w+)=(\S*)", said))

    def start_soon(self, job: str, restarts: int, said: Callable[[], str]) -> None:
        """Has a job that is requeued for so many times start, which Slurm holds for two minutes.

        Not at once: a node refuses what was revoked there in the same second.
        """

        def runs() -> bool:
            facts = self.facts(job)
            held = (facts["JobState"], facts["Reason"]) == ("PENDING", "BeginTime")
            if held and facts["StartTime"] != "Unknown":
                wait = datetime.fromisoformat(facts["StartTime"]) - datetime.now()
                # More than once: the end of the start before sets the time anew.
                if wait.total_seconds() > 10:
                    self.command("scontrol", "update", f"jobid={job}", "StartTime=now+3")
            return facts["JobState"] == "RUNNING" and int(facts["Restarts"]) == restarts

        until(runs, 60, lambda: f"{self.facts(job)}\n{said()}", pause=0.25)

    def ended(self, job: str, seconds: float = 90) -> dict[str, str]:
        """Waits until a job has come to its end and returns its facts."""
        states = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        until(lambda: self.facts(job)["JobState"] in states, seconds, lambda: str(self.facts(job)))
        return self.facts(job)

    def kill_node(self, name: str) -> None:
        """Ends a node's daemon and all that runs there, as when it loses its power."""
        kill(int((self.run_folder / f"slurmd-{name}.pid").read_text()))
        for number in processes(self, SLURMD_NODENAME=name):
            kill(parent_of(number), number)

    def start_node(self, name: str) -> None:
        """Starts a node's daemon."""
        self.command("slurmd", "-N", name, "-f", self.run_folder / "slurm.conf")

    def idle(self) -> None:
        """Waits until all nodes are free."""

        def free() -> bool:
            said = self.command("sinfo", "-h", "-N", "-p", "low", "-t", "idle", "-o", "%N")
            return set(said.split()) == set(NODES)

        until(free, 30, lambda: self.command("sinfo", "-N", "-l"))


def until(
    holds: Callable[[], bool],
    seconds: float,
    said: Callable[[], str] = lambda: "",
    pause: float = 0.05,
) -> None:
    """Waits until something holds; fails with what `said` tells."""
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, said()
        time.sleep(pause)


def processes(slurm: Slurm, **values: str) -> list[int]:
    """Processes of jobs of this cluster with these variables."""
    wanted = {**values, "SLURM_CONF": f"{slurm.run_folder}/slurm.conf"}.items()
    numbers = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [number for number in numbers if wanted <= variables(number).items()]


def variables(number: int) -> dict[str, str]:
    """The environment that a process was started with; empty where it is gone."""
    try:
        entries = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(entry.decode().split("=", 1) for entry in entries if b"=" in entry)


def parent_of(number: int) -> int:
    """0 for a process that is gone."""
    try:
        status = Path(f"/proc/{number}/status").read_text()
    except OSError:
        return 0
    return int(re.findall(r"PPid:\s+(\d+)", status)[0])


def kill(*numbers: int, signal: int = 9) -> None:
    """Signals processes, as far as they are still there."""
    for number in numbers:
        if number > 1:
            try:
                os.kill(number, signal)
            except ProcessLookupError:
                continue


def free_ports(count: int) -> int:
    """The first of so many free ports in a row; each process of the tests looks elsewhere."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for first in range(20_000 + 1_000 * number, 30_000, 97):
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


def start(run: Path) -> Slurm:
    """Starts the daemons of a cluster whose files all lie in one folder."""
    run.chmod(0o755)
    for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
        (run / name).mkdir()
    host = socket.gethostname().split(".")[0]
    port = free_ports(len(NODES) + 1)
    first, last = port + 1, port + len(NODES)
    # Jobs find their port by their number: clusters of two test processes must not count alike.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    job = 1 + 1000 * int(worker)
    (run / "slurm.conf").write_text(
        CONFIG.format(
            host=host, run=run, port=port, nodes=len(NODES), first=first, last=last, job=job
        )
    )
    (run / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    (run / "gres.conf").write_text(f"NodeName=n[1-{len(NODES)}] Name=gpu File=/dev/tty[1-2]\n")
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
    for node in NODES:
        slurm.start_node(node)
    slurm.idle()
    return slurm


def stop(run: Path) -> None:
    """Ends the daemons that `start` started, and no others."""
    slurm = Slurm(run)
    slurm.command("scancel", "--partition=low", status=None)
    slurm.command("scancel", "--partition=high", status=None)
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
    kill(*processes(slurm))


def submit(slurm: Slurm, repository: Path, log: Path, *words: object, **more: str) -> str:
    """Submits a script in the repository and returns the job's number.

    Args:
        slurm: the cluster.
        repository: where it is submitted.
        log: what the job prints.
        words: options of sbatch, the script, and its arguments.
        more: variables of the job. Virtual nodes have no names that resolve, so that their ranks
            are told where to meet.
    """
    given = {"PYTHON": sys.executable, "MASTER_ADDR": "127.0.0.1", **more}
    return slurm.command(
        *("sbatch", "--parsable", f"--output={log}", f"--chdir={repository}"), *words, **given
    )
