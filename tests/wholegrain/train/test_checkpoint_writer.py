"""Checkpoints are written beside the training, by several ranks, or not at all."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.programs import run_program
from tests.wholegrain.train.toy_state import Toy
from wholegrain.errors import CheckpointError
from wholegrain.model.tensor_file import Sum
from wholegrain.train import checkpoint, checkpoint_writer
from wholegrain.train.checkpoint import MARKER, Checkpoint, verify
from wholegrain.train.checkpoint_writer import HostCopies, Writer

LONG_S = 30.0


class Ranks:
    """The writers of all ranks of a run, each with a thread of its own."""

    def __init__(self, run: Path, world: int = 1, **settings: Any) -> None:
        self.run, self.world, self.said = run, world, list[str]()
        given = {"keep": 2, "keep_every": 0, "background": True, "patience_s": LONG_S} | settings
        self.writers = [
            Writer(run, rank=rank, world=world, say=self.said.append, **given)
            for rank in range(world)
        ]

    def begin(self, toy: Toy, *ranks: int) -> None:
        for rank in ranks or range(self.world):
            toy.save(self.writers[rank], rank, self.world)

    def save(self, toy: Toy) -> None:
        self.begin(toy)
        for writer in self.writers:
            writer.wait()

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in (self.run / "checkpoints").iterdir())

    @property
    def newest(self) -> Checkpoint:
        newest = checkpoint.latest(self.run)
        assert newest is not None
        assert verify(newest) is None
        return newest


class Gate:
    """Holds back the writing of files until it is opened, or lets it fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.held = {"model.safetensors"}
        self.errors: dict[str, OSError] = {}
        write = checkpoint_writer.write_tensors

        def gated(path: Path, *given: Any) -> Sum:
            if path.name in self.held:
                self.reached.set()
                assert self.open.wait(LONG_S)
            if path.name in self.errors:
                raise self.errors[path.name]
            return write(path, *given)

        monkeypatch.setattr(checkpoint_writer, "write_tensors", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.open.set()


def test_saving_waits_for_the_copy_alone(tmp_path: Path, gate: Gate) -> None:
    ranks, toy = Ranks(tmp_path), Toy().advance(3)
    ranks.begin(toy)
    assert gate.reached.wait(LONG_S)
    before = toy.digest()
    toy.advance(5)
    assert checkpoint.complete(tmp_path) == []
    gate.open.set()
    ranks.writers[0].wait()
    assert Toy().load(ranks.newest).digest() == before
    assert toy.digest() != before


def test_the_next_save_waits_for_the_one_before(tmp_path: Path, gate: Gate) -> None:
    ranks, toy = Ranks(tmp_path), Toy().advance(3)
    ranks.begin(toy)
    held = 0.2
    threading.Timer(held, gate.open.set).start()
    ranks.begin(toy.advance(6))
    assert ranks.writers[0].stall_s > held / 2
    ranks.writers[0].wait()
    assert [found.step for found in checkpoint.complete(tmp_path)] == [3, 6]


def test_without_a_background_saving_ends_on_disk(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, background=False)
    ranks.begin(Toy().advance(3))
    assert ranks.newest.step == 3


def test_memory_of_the_host_is_used_again() -> None:
    copies = HostCopies()
    sources = {"a": torch.randn(4, 3).t(), "b": torch.tensor(2.0, requires_grad=True)}
    first = copies.take(sources)
    assert all(torch.equal(first[name], sources[name]) for name in sources)
    assert all(copy.is_contiguous() and not copy.requires_grad for copy in first.values())
    second = copies.take({"a": sources["a"] + 1, "c": torch.zeros(3)})
    assert second["a"].data_ptr() == first["a"].data_ptr()
    assert second.keys() == {"a", "c"}
    assert copies.take({"a": torch.zeros(5)})["a"].shape == (5,)


def test_memory_that_names_share_is_written_once(tmp_path: Path) -> None:
    ranks, weight = Ranks(tmp_path), torch.randn(3)
    ranks.writers[0].save(1, {"a": weight, "tied": weight}, [], {}, {})
    ranks.writers[0].wait()
    assert load_file(ranks.newest.weights).keys() == {"a"}


def test_all_ranks_wait_for_the_whole(tmp_path: Path) -> None:
    ranks, toy = Ranks(tmp_path, world=4), Toy().advance(3)
    ranks.begin(toy, 3, 1)  # before rank 0 has made the folder
    time.sleep(0.05)
    ranks.begin(toy, 0, 2)
    for writer in ranks.writers[1:]:
        writer.wait()
        assert ranks.newest.step == 3
    ranks.writers[0].wait()
    assert ranks.names == ["step_000003"]
    holders = [name for name in ranks.newest.sums() if name.startswith("optimizer-")]
    assert holders == [f"optimizer-0000{rank}-of-00004.safetensors" for rank in range(4)]
    assert Toy().load(ranks.newest).digest() == toy.digest()
    assert ranks.said == []


def test_a_rank_that_holds_nothing_writes_nothing(tmp_path: Path) -> None:
    ranks, toy = Ranks(tmp_path, world=2), Toy().advance(3)
    toy.save(ranks.writers[0])
    ranks.writers[1].save(3, None, [], None, {})
    ranks.writers[0].wait()
    ranks.writers[1].wait()
    assert [name for name in ranks.newest.sums() if "optimizer" in name] == [
        "optimizer-00000-of-00002.safetensors"
    ]
    assert Toy().load(ranks.newest).digest() == toy.digest()


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_another_number_of_ranks_goes_on(tmp_path: Path, after: int) -> None:
    Ranks(tmp_path, world=2).save(Toy().advance(3))
    toy = Toy().load(Ranks(tmp_path, world=after).newest)
    ranks = Ranks(tmp_path, world=after)
    ranks.save(toy.advance(6))
    assert Toy().load(ranks.newest).digest() == Toy().advance(6).digest()


def test_the_newest_and_every_nth_are_kept(tmp_path: Path) -> None:
    ranks, toy = Ranks(tmp_path, keep=2, keep_every=10), Toy()
    for step in (4, 8, 10, 12, 16, 20, 24, 28):
        ranks.save(toy.advance(step))
    assert ranks.names == ["step_000010", "step_000020", "step_000024", "step_000028"]
    only = Ranks(tmp_path / "other", keep=1)
    for step in (30, 32):
        only.save(toy.advance(step))
    assert only.names == ["step_000032"]


def test_older_ones_go_only_when_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks, toy = Ranks(tmp_path, keep=1, background=False), Toy()
    ranks.save(toy.advance(3))
    seen: list[list[str]] = []
    monkeypatch.setattr(
        shutil, "rmtree", lambda path: seen.append([Path(path).name, *map(str, ranks.names)])
    )
    ranks.save(toy.advance(6))
    assert seen == [[".removed-step_000003", ".removed-step_000003", "step_000006"]]


def test_the_marker_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is whole by its marker is on the storage by then, names included."""
    flushed: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    Ranks(tmp_path, background=False).save(Toy().advance(3))
    order = [Path(path).name for path in flushed]
    aside = Path(flushed[0]).parent.name
    assert aside.startswith(".step_000003.partial-1-")
    assert order[-4:] == ["checksums.json", MARKER, aside, "checkpoints"]
    assert set(order[:-4]) == {
        "model.safetensors",
        "optimizer-00000-of-00001.safetensors",
        "state.json",
        "a.json",
    }


@pytest.mark.parametrize("world", [1, 3])
def test_the_same_step_again_replaces(tmp_path: Path, world: int) -> None:
    Ranks(tmp_path, world).save(Toy().advance(3))
    other = Toy().advance(3)
    with torch.no_grad():
        other.bias.add_(1)
    ranks = Ranks(tmp_path, world)
    ranks.save(other)
    assert Toy().load(ranks.newest).digest() == other.digest()
    assert ranks.names == ["step_000003"]


def test_a_replacement_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks, toy = Ranks(tmp_path, background=False), Toy().advance(3)
    ranks.save(toy)
    rename = Path.rename

    def broken(path: Path, target: Path) -> Path:
        if target.name == "step_000003" and ".partial" in path.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", broken)
        ranks.begin(toy)
    assert "Input/output error" in failure_of(ranks.writers[0])
    assert ranks.names == [".save-2.failed", "step_000003"]
    assert Toy().load(ranks.newest).digest() == toy.digest()


def test_rests_of_an_earlier_run_are_swept_before_the_first_save(tmp_path: Path) -> None:
    rest = tmp_path / "checkpoints" / ".step_000003.partial-1-beef"
    rest.mkdir(parents=True)
    (rest / "part-00001.json").write_text(json.dumps({"files": {}}))
    assert Ranks(tmp_path, world=2).names == []


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")


def failure_of(writer: Writer) -> str:
    with pytest.raises(CheckpointError) as caught:
        writer.wait()
    return str(caught.value)


def test_a_failure_is_said_once_and_training_goes_on(tmp_path: Path, gate: Gate) -> None:
    gate.open.set()
    ranks, toy = Ranks(tmp_path, world=3), Toy().advance(3)
    ranks.save(toy)
    gate.errors["model.safetensors"] = FULL
    began = time.perf_counter()
    ranks.begin(toy.advance(6))
    first = failure_of(ranks.writers[0])
    others = [failure_of(writer) for writer in ranks.writers[1:]]
    assert time.perf_counter() - began < LONG_S / 3  # by the record, not by patience
    assert "checkpoint of step 6 was not saved: model.safetensors: No space left on dev" in first
    assert "MiB are free, 0 MiB are to be written by rank 0" in first
    assert f"the newest is {tmp_path}/checkpoints/step_000003" in first
    assert all("not saved: rank 0 gave it up, and says why; " in other for other in others)
    assert len(ranks.said) == 1
    assert ranks.said[0].endswith("training goes on, and the next save is tried as due")
    assert ranks.names == [".save-2.failed", "step_000003"]
    assert ranks.newest.step == 3
    gate.errors.clear()
    ranks.save(toy.advance(9))
    assert ranks.names == ["step_000003", "step_000009"]
    assert len(ranks.said) == 1


def test_a_rank_that_fails_is_named(tmp_path: Path, gate: Gate) -> None:
    gate.open.set()
    ranks = Ranks(tmp_path, world=3)
    broken = "optimizer-00001-of-00003.safetensors"
    gate.errors[broken] = OSError(errno.EIO, os.strerror(errno.EIO), broken)
    ranks.begin(Toy().advance(3))
    said = [failure_of(writer) for writer in ranks.writers]
    assert f"not saved: rank 1: {broken}: Input/output error; the newest is none yet" in said[0]
    assert f"not saved: {broken}: Input/output error" in said[1]
    assert "rank 0 gave it up" in said[2]
    assert len(ranks.said) == 1
    assert ranks.names == [".save-1.failed"]


def test_ranks_that_are_missing_are_named(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, world=4, patience_s=2.0)
    ranks.begin(Toy().advance(3), 0, 2)
    assert "not saved: rank 1, 3 wrote no part within 1 s (is " in failure_of(ranks.writers[0])
    assert "rank 0 gave it up" in failure_of(ranks.writers[2])
    ranks.begin(Toy().advance(3), 1, 3)  # late, they learn it at once
    assert "rank 0 gave it up" in failure_of(ranks.writers[1])
    assert "rank 0 gave it up" in failure_of(ranks.writers[3])
    assert len(ranks.said) == 1
    ranks.save(Toy().advance(6))
    assert ranks.names == ["step_000006"]


def test_a_rank_0_that_never_comes(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, world=2, patience_s=0.1)
    ranks.begin(Toy().advance(3), 1)
    assert "rank 0 has made no folder for it within 0.1 s" in failure_of(ranks.writers[1])


def test_a_rank_that_still_writes_when_the_others_gave_up(tmp_path: Path, gate: Gate) -> None:
    ranks = Ranks(tmp_path, world=2, patience_s=2.0)
    gate.held = {"optimizer-00001-of-00002.safetensors"}
    ranks.begin(Toy().advance(3))
    assert "rank 1 wrote no part" in failure_of(ranks.writers[0])
    gate.open.set()
    assert "rank 0 gave it up" in failure_of(ranks.writers[1])
    assert ranks.names == [".save-1.failed"]
    ranks.save(Toy().advance(6))
    assert ranks.names == ["step_000006"]


def test_closing_raises_nothing_and_does_not_wait_long_for_the_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_writer, "_CLOSING_S", 0.1)
    ranks = Ranks(tmp_path, world=2)
    ranks.begin(Toy().advance(3), 0)
    began = time.perf_counter()
    ranks.writers[0].close()
    assert time.perf_counter() - began < LONG_S / 3
    assert len(ranks.said) == 1


def test_what_cannot_be_removed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks, toy = Ranks(tmp_path, keep=1), Toy()
    ranks.save(toy.advance(3))

    def busy(path: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    monkeypatch.setattr(shutil, "rmtree", busy)
    ranks.save(toy.advance(6))
    assert len(ranks.said) == 1
    assert ".removed-step_000003: cannot be removed (Device or resource busy)" in ranks.said[0]
    assert [found.step for found in checkpoint.complete(tmp_path)] == [6]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(CheckpointError, match=r"checkpoints: File exists; make the run folder wri"):
        Ranks(tmp_path)


def test_rank_0_gives_weights_and_state(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank 0 saves weights and state"):
        Ranks(tmp_path).writers[0].save(3, None, [], {}, {})


def test_a_file_that_grows_too_large(tmp_path: Path) -> None:
    """The kernel's own refusal in the middle of a file; nothing of it remains."""
    ranks, toy = Ranks(tmp_path, background=False), Toy(rows=100_000)
    ranks.save(toy.advance(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        ranks.begin(toy.advance(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "model.safetensors: File too large" in failure_of(ranks.writers[0])
    assert ranks.names == [".save-2.failed", "step_000001"]
    ranks.save(toy.advance(3))
    assert ranks.names == ["step_000001", "step_000003"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("foreseen", [True, False])
@pytest.mark.parametrize("world", [1, 2])
def test_a_full_disk(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, foreseen: bool, world: int
) -> None:
    ranks = Ranks(small_disk, world, keep=9)
    small, large = Toy(), Toy(rows=400_000)  # 4.6 MiB of weights, twice that of moments
    ranks.save(small.advance(3))
    free = shutil.disk_usage(small_disk).free
    if not foreseen:
        usage = shutil.disk_usage

        def boundless(path: Path) -> object:
            return usage("/") if ".partial" in str(path) else usage(path)

        monkeypatch.setattr(shutil, "disk_usage", boundless)
    ranks.begin(large.advance(6))
    said = failure_of(ranks.writers[0])
    assert "No space left on device (" in said
    assert " MiB are to be written by rank " in said
    for writer in ranks.writers[1:]:
        failure_of(writer)
    assert len(ranks.said) == 1
    assert shutil.disk_usage(small_disk).free >= free - 8192
    assert ranks.newest.step == 3
    ranks.save(small.advance(9))
    assert ranks.names == ["step_000003", "step_000009"]


@pytest.mark.slow
@pytest.mark.ranks
def test_kills_at_any_moment_lose_nothing(tmp_path: Path, repository: Path) -> None:
    """50 times SIGKILL for one to three ranks, which resume what another number of them wrote."""
    program = "tests.wholegrain.train.checkpoint_program"
    command = [sys.executable, "-m", program, str(tmp_path), "50", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = run_program(command, timeout_s=300, env=environment, cwd=repository)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert found["steps"] == sorted(found["steps"])
    assert found["steps"][-1] > found["steps"][0]
    assert found["rests"]["partial"] >= 5, "hardly any kill fell into a save"
