"""The few-shot program: its shipped configurations, and how it starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.few_shot import main
from finetune.shots.config import FewShotConfig
from finetune.shots.layouts import DOMAINS, ELEVEN
from wholegrain.config import load_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "finetune").glob("few_shot*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_configs(path: Path, tmp_path: Path, capsys: Any) -> None:
    config = load_config(FewShotConfig, path)
    assert main(["--config", str(path), "--print-config"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(FewShotConfig, printed) == config
    published = {
        "few_shot": ("base_to_novel", 8, 5, ELEVEN),
        "few_shot_cross": ("cross_dataset", 4, 1, ELEVEN[1:]),
        "few_shot_domain": ("domain_generalisation", 4, 1, DOMAINS),
    }
    seen = (config.protocol, config.adapter.blocks, config.optim.epochs, config.targets)
    assert seen == published[path.stem]
    assert (config.adapter.gradient_trick, config.adapter.alpha, config.shots) == (True, 0.001, 16)
    others = [load_config(FewShotConfig, other).out for other in CONFIGS if other != path]
    assert config.out not in others


def test_the_program_starts_as_a_script(repository: Path, launch: Callable[..., str]) -> None:
    config = repository / "configs" / "finetune" / "few_shot.yaml"
    printed = launch("finetune/few_shot.py", "--config", config, "--data.sets=[caltech]", status=2)
    assert "data.sets has 'caltech', which is no data set; did you mean 'caltech101'?" in printed
    assert "Traceback" not in printed
