"""A run changes of a model's execution what it is asked to."""

from typing import Any

import pytest

from wholegrain.train import speed
from wholegrain.train.config import RunConfig


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, []),
        ({"checkpoint_activations": True}, ["checkpoint_blocks"]),
        ({"compile": True}, ["compile_blocks"]),
        # In this order, which `checkpoint_blocks` asks for.
        (
            {"compile": True, "checkpoint_activations": True},
            ["checkpoint_blocks", "compile_blocks"],
        ),
    ],
)
def test_a_model_is_prepared_as_the_run_asks(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, bool], expected: list[str]
) -> None:
    model: Any = object()
    done: list[tuple[str, Any]] = []
    for name in ("checkpoint_blocks", "compile_blocks"):
        monkeypatch.setattr(speed, name, lambda given, name=name: done.append((name, given)))
    speed.prepare_model(model, RunConfig(**asked))
    assert done == [(name, model) for name in expected]
