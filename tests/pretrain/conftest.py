"""One finished run of six steps that many tests look at."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pretrain.__main__ import main


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """As the processes that tests start: sums in another order would differ in the last bit."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Finished:
    """A finished run."""

    config: Path
    out: Path

    def copy_to(self, out: Path) -> Path:
        """A copy that a test may change; `out` is no part of what a run learns."""
        shutil.copytree(self.out, out)
        return out


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_pretrain: dict[str, Any]
) -> Finished:
    """`tiny_pretrain` run to its end in this process; nobody writes there."""
    folder = tmp_path_factory.mktemp("pretrained")
    config, out = folder / "config.yaml", folder / "run"
    config.write_text(yaml.safe_dump({**tiny_pretrain, "out": str(out)}))
    assert main(["--config", str(config)]) == 0
    return Finished(config, out)
