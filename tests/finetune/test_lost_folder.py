"""A finetuning whose run folder was taken over leaves no results in it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune import run as stage
from wholegrain.train.open_run import OpenRun
from wholegrain.train.run_lock import LockLost


@pytest.mark.parametrize("lost_after", ["starting_model", "measure_all", None])
def test_nothing_is_written_into_a_folder_that_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_after: str | None
) -> None:
    done: list[str] = []

    def check() -> None:
        if lost_after in done:
            raise LockLost("the run folder was taken over")

    def noted(name: str, result: Any = None) -> Any:
        return lambda *given, **more: done.append(name) or result

    model = SimpleNamespace(config=SimpleNamespace(vision=SimpleNamespace(image_size=32)))
    results = {
        "open_training": (None, ""),
        "open_splits": {},
        "starting_model": (model, None),
        "prepare_model": None,
        "grounding_stage": SimpleNamespace(files={}),
        "prepare_run_folder": None,
        "fit": None,
        "predictor": None,
        "measure_all": {},
        "publish": None,
    }
    for name, result in results.items():
        monkeypatch.setattr(stage, name, noted(name, result))
    data = SimpleNamespace(evaluate=(), max_tokens=8)
    config = SimpleNamespace(run=None, optim=None, data=data)
    command: Any = SimpleNamespace(config=config)
    engine: Any = SimpleNamespace(world=1, is_main=True, device="cpu")
    if lost_after is None:
        stage.train(command, engine, OpenRun(tmp_path, None, check))
        assert done[-1] == "publish"
        return
    with pytest.raises(LockLost):
        stage.train(command, engine, OpenRun(tmp_path, None, check))
    withheld = "prepare_run_folder" if lost_after == "starting_model" else "publish"
    assert withheld not in done
