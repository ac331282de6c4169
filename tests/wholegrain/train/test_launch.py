"""The place that launchers give a process, and what is refused of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wholegrain.errors import ConfigError
from wholegrain.train.launch import Place, find_place, write_to_own_log

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}
# As srun of Slurm 22.05 sets them, for the second of two ranks of the second of two nodes.
STEP = {
    "SLURM_JOB_ID": "100007",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
BATCH = {"SLURM_JOB_ID": "100007", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}


def test_alone() -> None:
    environ: dict[str, str] = {}
    assert find_place(environ) == Place(0, 1, 0, 1, "alone")
    assert environ == {}


@pytest.mark.parametrize(
    ("more", "by"),
    [
        ({}, "torchrun"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate"),
        ({"TORCHELASTIC_RUN_ID": None, "CROSS_RANK": "1", "LOCAL_SIZE": "4"}, "deepspeed"),
        ({"TORCHELASTIC_RUN_ID": None}, "environment"),
    ],
)
def test_launchers_of_one_convention(more: dict[str, str | None], by: str) -> None:
    environ = {k: v for k, v in (TORCHRUN | more).items() if v is not None}
    if "LOCAL_SIZE" in environ:
        del environ["LOCAL_WORLD_SIZE"]
    assert find_place(environ) == Place(5, 8, 1, 4, by)
    assert environ["LOCAL_WORLD_SIZE"] == "4"


def test_srun_is_translated() -> None:
    environ = dict(STEP)
    assert find_place(environ) == Place(3, 4, 1, 2, "srun")
    made = {name: value for name, value in environ.items() if name not in STEP}
    assert made == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": str(15_000 + 100_009 % 17_000),
    }


def test_where_ranks_meet_can_be_told() -> None:
    environ = STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}
    find_place(environ)
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("10.0.0.1", "4000")


def test_one_node_meets_at_itself() -> None:
    one = {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    environ = STEP | one | {"SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "2"}
    assert find_place(environ) == Place(1, 2, 1, 2, "srun")
    assert environ["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(
    "environ",
    [
        BATCH,
        # The shell that salloc starts on a node of the job, and the batch script's own step.
        BATCH | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
        BATCH | {"SLURM_STEP_ID": "4294967291"},
        {k: v for k, v in STEP.items() if k != "SLURM_PROCID"},
    ],
)
def test_what_is_no_step_runs_once(environ: dict[str, str]) -> None:
    assert find_place(dict(environ)) == Place(0, 1, 0, 1, "alone")


def test_a_launcher_within_a_step_counts() -> None:
    assert find_place(STEP | TORCHRUN) == Place(5, 8, 1, 4, "torchrun")


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_partial_set_names_what_is_missing(name: str) -> None:
    environ = {k: v for k, v in TORCHRUN.items() if k != name}
    with pytest.raises(ConfigError, match=f"^{name} is not set, but "):
        find_place(environ)


@pytest.mark.parametrize(
    "name",
    [n for n in STEP if n not in {"SLURM_PROCID", "SLURM_STEP_ID", "SLURM_NTASKS"}],
)
def test_a_step_with_a_variable_taken_away(name: str) -> None:
    environ = {k: v for k, v in STEP.items() if k != name}
    with pytest.raises(ConfigError, match=f"^{name} is not set, although srun started"):
        find_place(environ)


@pytest.mark.parametrize(
    ("base", "wrong", "message"),
    [
        (TORCHRUN, {"RANK": "8"}, "RANK is 8, but WORLD_SIZE is 8"),
        (TORCHRUN, {"WORLD_SIZE": "0"}, "WORLD_SIZE is 0; a run has one process or more"),
        (TORCHRUN, {"RANK": "-1"}, "RANK is '-1'; it must be a number"),
        (TORCHRUN, {"RANK": "first"}, "RANK is 'first'; it must be a number"),
        (TORCHRUN, {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'; it must be a number"),
        (TORCHRUN, {"LOCAL_RANK": "4"}, "LOCAL_RANK is 4, but LOCAL_WORLD_SIZE is 4"),
        (TORCHRUN, {"LOCAL_WORLD_SIZE": "9"}, "LOCAL_WORLD_SIZE is 9, but WORLD_SIZE is 8"),
        (STEP, {"SLURM_PROCID": "4"}, "SLURM_PROCID is 4, but SLURM_STEP_NUM_TASKS is 4"),
        (STEP, {"SLURM_NODEID": "2"}, "SLURM_NODEID is 2, but SLURM_STEP_TASKS_PER_NODE counts 2"),
        (STEP, {"SLURM_STEP_NODELIST": "n[1"}, r"node list is 'n\[1'"),
    ],
)
def test_what_cannot_be_is_refused(
    base: dict[str, str], wrong: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find_place(base | wrong)


PROGRAM = """
import os, sys
from wholegrain import once
from wholegrain.train.launch import find_place, write_to_own_log
write_to_own_log(find_place(os.environ), os.environ)
print("a line", flush=True)
print("another", file=sys.stderr)
os.system("echo of a child")
once.say_once("error: heard by all")
"""


def test_ranks_but_the_first_write_to_logs_of_their_own(tmp_path: Path) -> None:
    said = {}
    for rank in ("0", "1", "1"):
        # An address where nobody is met: a rank then speaks for itself.
        place = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "MASTER_ADDR": "nowhere."}
        place |= {"MASTER_PORT": "1", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "3"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | place | {"WHOLEGRAIN_LOGS": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        said[rank] = (done.stdout, done.stderr.splitlines()[-1:])
    assert said["0"] == ("a line\nof a child\n", ["error: heard by all"])
    assert said["1"] == ("", ["error: heard by all"])
    assert [path.name for path in tmp_path.iterdir()] == ["rank-00001.log"]
    lines = (tmp_path / "rank-00001.log").read_text().splitlines()
    heads = [line for line in lines if line.startswith("=== ")]
    assert len(heads) == 2 and all(" job 7 start 4 rank 1 of 2 on " in head for head in heads)
    assert all(lines.count(line) == 2 for line in ("a line", "another", "of a child"))
    assert lines.count("error: heard by all") == 2


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    environ = {"WHOLEGRAIN_LOGS": str(tmp_path / "absent")}
    with pytest.raises(
        ConfigError, match=r"WHOLEGRAIN_LOGS is .*absent': rank-00001.log cannot be"
    ):
        write_to_own_log(Place(1, 2, 1, 2, "srun"), environ)
