"""The shipped scripts of the stages, submitted to a real Slurm in miniature."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pretrain import test_recipes
from tests.pretrain.test_recipes import overrides
from tests.slurm.cluster import Slurm, submit

corpora = test_recipes.corpora

SCRIPTS = ("pretrain_4m", "pretrain_16m", "finetune_refcoco")
OF_SBATCH = ("--signal=B:USR1@300", "--requeue", "--open-mode=append", "--nodes=", "--output=")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_sets_the_environment_and_starts_one_entry(repository: Path, name: str) -> None:
    path = repository / "slurm" / f"{name}.sh"
    text = path.read_text()
    for option in OF_SBATCH:
        assert f"\n#SBATCH {option}" in text
    assert path.stat().st_mode & 0o100
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -eo pipefail" and "set -u" in lines
    logic = ("if", "for", "while", "case", "function", "trap", "until")
    assert not any(line.startswith(logic) or "$(" in line for line in lines)
    starts = [line for line in lines if "${PYTHON:-python}" in line]
    assert len(starts) == 1 and starts[0].startswith("exec ")
    (config,) = re.findall(r"--config (\S+) ", text[text.index("exec ") :])
    assert (repository / config).exists()
    assert text.endswith('"$@"\n')


@pytest.mark.slow
@pytest.mark.ranks
def test_the_4m_script_pretrains_on_two_nodes(
    slurm: Slurm, repository: Path, corpora: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "job.log"
    words = overrides("4m", corpora, each=2)[2:]  # the script itself names the recipe
    words += ["--run.steps=3", "--optim.warmup=1", f"--out={out}"]
    script = repository / "slurm" / "pretrain_4m.sh"
    job = submit(
        *(slurm, repository, log, "--wait", "--nodes=2", "--gpus-per-node=1", script, *words)
    )
    assert slurm.facts(job)["JobState"] == "COMPLETED", log.read_text()
    assert (out / "release" / "model.safetensors").exists()
    assert json.loads((out / "environment.json").read_text())["processes"] == 2
    # The script's own engine: each rank keeps a part of the optimizer's state.
    parts = sorted((out / "checkpoints" / "step_000003").glob("optimizer-*.safetensors"))
    assert [part.name for part in parts] == [
        f"optimizer-0000{rank}-of-00002.safetensors" for rank in range(2)
    ]
    assert "configs/pretrain/4m.yaml" in (out / "release" / "README.md").read_text()
    said = log.read_text()
    assert f"job {job}, start 1: 2 ranks on 2 nodes (n[1-2]), 8 CPUs a rank" in said
    (of_rank,) = (out / "logs").iterdir()
    assert of_rank.name == "rank-00001.log"
    assert f" job {job} start 1 rank 1 of 2 on " in of_rank.read_text().splitlines()[0]


@pytest.mark.slow
@pytest.mark.ranks
def test_the_16m_script_plans_on_one_node(
    slurm: Slurm, repository: Path, corpora: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "job.log"
    words = [*overrides("16m", corpora, each=2)[2:], f"--out={out}", "--dry-run"]
    script = repository / "slurm" / "pretrain_16m.sh"
    submit(*(slurm, repository, log, "--wait", "--nodes=1", "--gpus-per-node=2", script, *words))
    said = log.read_text()
    assert "2 ranks x 1 part x " in said and "losses " in said, said
    assert said.count("2 ranks x 1 part x ") == 1
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.ranks
def test_the_finetuning_script(
    slurm: Slurm,
    repository: Path,
    tiny_finetune: dict[str, Any],
    write_config: Callable[..., Path],
    tmp_path: Path,
) -> None:
    out, log = tmp_path / "run", tmp_path / "job.log"
    config = write_config(tiny_finetune, {"run.steps": 2, "hidden_input_baselines": False})
    script = repository / "slurm" / "finetune_refcoco.sh"
    words = ["--config", config, f"--out={out}"]
    # A user's mistake ends the job: it would be the same one after a requeue.
    mistaken = submit(
        *(slurm, repository, log, "--cpus-per-gpu=2", script, *words, "--optim.lrr=1")
    )
    facts = slurm.ended(mistaken)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0")
    assert log.read_text().count("unknown key 'optim.lrr'") == 1
    job = submit(*(slurm, repository, log, "--cpus-per-gpu=2", script, *words))
    assert slurm.ended(job)["JobState"] == "COMPLETED", log.read_text()
    assert (out / "release" / "model.safetensors").exists()
