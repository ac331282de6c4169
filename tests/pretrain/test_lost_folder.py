"""A pretraining whose run folder was taken over leaves no release in it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain import run as stage
from wholegrain.train.open_run import OpenRun
from wholegrain.train.run_lock import LockLost


@pytest.mark.parametrize("lost_after", ["prepare", "fit", None])
def test_nothing_is_written_into_a_folder_that_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_after: str | None
) -> None:
    done: list[str] = []

    def check() -> None:
        if lost_after in done:
            raise LockLost("the run folder was taken over")

    def noted(name: str, result: Any = None) -> Any:
        return lambda *given, **more: done.append(name) or result

    settings = SimpleNamespace(run=None, optim=None)
    monkeypatch.setattr(stage, "prepare", noted("prepare", (settings, None, None)))
    monkeypatch.setattr(stage, "pretraining_stage", noted("stage"))
    for name in ("prepare_run_folder", "fit", "finish"):
        monkeypatch.setattr(stage, name, noted(name))
    command: Any = SimpleNamespace(config=settings)
    engine: Any = SimpleNamespace(world=1, is_main=True)
    whole = ["prepare", "stage", "prepare_run_folder", "fit", "finish"]
    if lost_after is None:
        stage.train(command, engine, OpenRun(tmp_path, None, check))
        assert done == whole
        return
    with pytest.raises(LockLost):
        stage.train(command, engine, OpenRun(tmp_path, None, check))
    assert done == (whole[:2] if lost_after == "prepare" else whole[:4])
