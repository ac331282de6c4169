"""Launchers that start the same entry; torchrun and accelerate have their tests with the stages."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.ranks
@pytest.mark.slow
def test_deepspeed_starts_a_stage(
    tiny_pretrain: dict[str, Any], write_config: Callable[..., Any], launch: Callable[..., str]
) -> None:
    config = write_config(tiny_pretrain)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = launch(
        *("--num_accelerators", 2, "--master_port", port),
        *("--module", "pretrain", "--config", config, "--dry-run"),
        program="deepspeed",
    )
    assert said.count("2 ranks x 1 part x 2 images = 4 images a step; 6 steps, 24 images") == 1
