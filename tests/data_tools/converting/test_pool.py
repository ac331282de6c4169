import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data_tools.converting.judge import Judge
from data_tools.converting.meter import Meter
from data_tools.converting.plan import ConvertOptions, Plan
from data_tools.converting.pool import Watch, write_parts
from data_tools.prepare import prepare
from data_tools.sources.base import Bad, Draft, Source
from tests.programs import wait_until
from wholegrain.data.part import read_part
from wholegrain.errors import DataError

Run = Callable[..., Any]
PREPARE = "data_tools.converting.part.prepare"


def preparing(act: Callable[[Draft], None]) -> Callable[..., Any]:
    """``prepare`` that does something first; forked processes have it too."""

    def first(draft: Draft, *rest: Any) -> Any:
        act(draft)
        return prepare(draft, *rest)

    return first


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_dies_is_named_and_the_run_goes_on_later(
    scale: Any,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    data_tools: Run,
    contents: Run,
    monkeypatch: pytest.MonkeyPatch,
    sign: signal.Signals,
) -> None:
    def die(draft: Draft) -> None:
        if draft.id == "flickr30k/49":  # 49 = 7 x 7: in part 1
            os.kill(os.getpid(), sign)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(PREPARE, preparing(die))
        ran = data_tools(*scale.command(out, "--processes", "2"))
    assert ran.status == 2
    assert f"the process that wrote part 1 was ended by {sign.name}" in ran.err
    assert "run the same command again" in ran.err and not out.exists()
    assert data_tools(*scale.command(out, "--processes", "2")).status == 0
    assert contents(out) == undisturbed


def test_an_error_of_the_program_is_shown(
    scale: Any,
    tmp_path: Path,
    data_tools: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: Draft) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(PREPARE, preparing(fail))
    ran = data_tools(*scale.command(tmp_path / "out", "--processes", "2"))
    assert ran.status == 2 and "ended with exit status 1" in ran.err


def test_an_error_of_the_user_comes_from_any_process(
    scale: Any, tmp_path: Path, data_tools: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Draft) -> None:
        raise DataError("the source is gone; bring it back")

    monkeypatch.setattr(PREPARE, preparing(fail))
    ran = data_tools(*scale.command(tmp_path / "out", "--processes", "3"))
    assert (ran.status, ran.err) == (2, "error: the source is gone; bring it back\n")


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_no_orphan_works_on(
    scale: Any, tmp_path: Path, data_tools: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PREPARE, preparing(lambda _: time.sleep(0.1)))
    parent = os.fork()
    if not parent:
        try:
            data_tools(*scale.command(tmp_path / "out", "--processes", "3"))
        finally:
            os._exit(0)
    children: list[int] = []

    def all_started() -> bool:
        listed = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        children[:] = map(int, listed.split())
        return len(children) == 3

    try:
        wait_until(all_started, "three processes are started")
    finally:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    wait_until(lambda: not any(map(alive, children)), "orphans end")
    assert len(list((tmp_path / "out.work").glob("part-*.json"))) < 15


def test_a_pool_hears_of_all_samples(tmp_path: Path) -> None:
    def read(start: int, stop: int, left_out: Counter[str]) -> Iterator[Draft | Bad]:
        left_out["units"] += stop - start
        return (Bad(str(n), "cause", f"detail of {n}") for n in range(start, stop))

    source = Source("s", {}, 25, read)
    plan = Plan(source, ConvertOptions(tmp_path / "out", shard_size=4, max_bad=1.0))
    judge = Judge(tmp_path / "out", 1.0, plan.total)
    meter = Meter(Console(quiet=True), "s", plan.total, plan.parts)
    write_parts(plan, tmp_path, plan.own_parts(), 3, Watch(tmp_path, judge, meter))
    assert judge.causes == {"cause": 25}
    assert meter.line().startswith("25 of 25 samples, 7 of 7 parts")
    notes = [read_part(tmp_path, part)["notes"] for part in range(7)]  # type: ignore[index]
    assert [len(note["skipped"]) for note in notes] == [4] * 6 + [1]
    assert [note["left_out"] for note in notes] == [{"units": 4}] * 6 + [{"units": 1}]


@pytest.mark.parametrize("processes", [1, 3])
def test_a_run_stops_as_soon_as_all_is_lost(tmp_path: Path, processes: int) -> None:
    def read(start: int, stop: int, left_out: Counter[str]) -> Iterator[Draft | Bad]:
        for number in range(start, stop):
            time.sleep(0.001)
            yield Bad(str(number), "cause", f"detail of {number}")

    plan = Plan(Source("s", {}, 100_000, read), ConvertOptions(tmp_path / "out", shard_size=50_000))
    judge = Judge(tmp_path / "out", 0.001, plan.total)
    meter = Meter(Console(quiet=True), "s", plan.total, plan.parts)
    watch = Watch(tmp_path, judge, meter)
    with pytest.raises(DataError, match=r"more than 0\.1% of 100000"):
        write_parts(plan, tmp_path, plan.own_parts(), processes, watch)
    assert 100 < judge.causes["cause"] < 20_000
    assert read_part(tmp_path, 0) is None


def test_a_full_disk_leaves_nothing_half_written(
    scale: Any,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    launch_many: Callable[..., Any],
    contents: Run,
) -> None:
    import resource

    out, log = tmp_path / "out", tmp_path / "log"
    # Less than a shard, and enough for the shards but not for the index of all rows.
    for processes, most in ((1, 5_000), (2, 5_000), (2, max(map(len, undisturbed.values())) - 1)):
        launcher = launch_many(
            preexec_fn=lambda most=most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        )
        log.unlink(missing_ok=True)
        assert launcher.run(scale.command(out, "--processes", processes), log) == 2
        assert "cannot be written" in log.read_text() and "free space" in log.read_text()
        assert not out.exists()
        assert not list((tmp_path / "out.work").glob(f".*.partial-*{os.getpid()}*"))
    assert launch_many().run(scale.command(out), log) == 0
    assert contents(out) == undisturbed
