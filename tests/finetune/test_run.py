"""Finetuning runs in this process: what learns, how they continue, and what they refuse."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from finetune.config import FinetuneConfig
from finetune.refcoco import main
from finetune.run import grounding_stage, open_split
from finetune.start import starting_model
from wholegrain.config import load_config
from wholegrain.data.record import Record
from wholegrain.data.shard import ShardWriter
from wholegrain.errors import run_cli
from wholegrain.hub.additions import load_additions
from wholegrain.train import checkpoint
from wholegrain.train.engine import Engine
from wholegrain.train.journal import tag
from wholegrain.train.optim import Optimizer

MMCA = {"kind": "mmca", "rank": 4, "embed_dim": 8, "gate_dim": 4, "blocks": 1}
Settings = dict[str, Any]
Write = Callable[..., Path]


@pytest.fixture
def settings(tiny_finetune: Settings, pretrained: Any) -> Settings:
    """From the pretrained release."""
    return {k: v for k, v in tiny_finetune.items() if k != "model"} | {
        "init": str(pretrained.out / "release")
    }


def metrics(out: Path) -> list[dict[str, Any]]:
    entries = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in entry.items() if not tag("train", k).startswith("speed/")}
        for entry in entries
    ]


def trained(out: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.latest(out)
    assert found is not None
    return load_file(found.weights)


def test_only_head_and_adapters_change_where_the_host_is_to_stay(
    settings: Settings, write_config: Write, pretrained: Any, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    changes = {"out": out, "train_host": False, "adapters": [MMCA], "optim.adapter_lr_factor": 3.0}
    assert main(["--config", str(write_config(settings, changes))]) == 0
    before = load_file(pretrained.out / "release" / "model.safetensors")
    after = load_file(out / "release" / "model.safetensors")
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed
    assert all(name.startswith("box_head.") for name in changed)
    added = after.keys() - before.keys()
    # They began as an update of nothing.
    assert any(after[name].abs().max() > 0 for name in added if name.endswith("up.weight"))
    # What was learnt is there by itself, too, and gives the release back on its base.
    model, _, _ = load_additions(out / "additions", pretrained.out / "release")
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items())


def test_adapters_have_a_rate_of_their_own(
    settings: Settings, write_config: Write, tmp_path: Path
) -> None:
    changes = {"out": tmp_path, "adapters": [MMCA], "optim.adapter_lr_factor": 3.0}
    config = load_config(FinetuneConfig, write_config(settings, changes))
    corpus = open_split(config.data.train)
    model, tokenizer = starting_model(config, corpus)
    stage = grounding_stage(config, corpus, model, tokenizer, Engine(config.run))
    optimizer = Optimizer(stage.module, config.optim, config.run.steps, stage.adapters)
    rate = optimizer.begin_step(1)
    adapters = {id(parameter) for parameter in model.adapters.parameters()}
    for group in optimizer.adamw.param_groups:
        inside = [id(parameter) in adapters for parameter in group["params"]]
        assert all(inside) or not any(inside)
        assert (group["lr"] == pytest.approx(3 * rate)) == all(inside)
    grouped = {id(p) for group in optimizer.adamw.param_groups for p in group["params"]}
    assert adapters <= grouped


def test_a_run_continues_and_is_then_only_published_again(
    settings: Settings, write_config: Write, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    changes = {"adapters": [MMCA], "run.save_every": 2, "run.validate_every": 2}
    # What the loss learns goes on as well: a rate that moves it visibly in three steps.
    changes["loss.self_paced"] = {"lr": 0.1, "sigma": 1.5}
    changes["data.validation"] = settings["data"]["evaluate"][0]
    config = str(write_config(settings, changes))
    assert main(["--config", config, f"--out={whole}"]) == 0
    assert [(e["step"], e["split"]) for e in metrics(whole)] == [
        (1, "train"),
        (2, "train"),
        (2, "val"),
        (3, "train"),
        (3, "val"),
    ]
    assert {"acc@0.5", "mean_iou"} <= metrics(whole)[-1].keys()
    # As if it had been killed after the checkpoint of step 2.
    assert main(["--config", config, f"--out={stopped}"]) == 0
    (stopped / "checkpoints" / "step_000003" / "COMPLETE").unlink()
    for name in ("results.json", "report.html"):
        (stopped / name).unlink()
    for _ in range(2):
        assert main(["--config", config, f"--out={stopped}"]) == 0
        assert metrics(stopped) == metrics(whole)
        expected = trained(whole)
        assert all(torch.equal(value, expected[n]) for n, value in trained(stopped).items())
        assert (stopped / "results.json").read_bytes() == (whole / "results.json").read_bytes()
        assert (stopped / "report.html").exists()
    sigmas = [e["self_paced/sigma_l1"] for e in metrics(whole) if e["split"] == "train"]
    assert len(set(sigmas)) > 1, "it learns"


def test_dry_run_saves_nothing(
    settings: Settings, write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config", str(write_config(settings, {"out": tmp_path / "run"})), "--dry-run"]
    assert main(given) == 0
    text = capsys.readouterr().out
    for part in ("3 steps, 12 images", "losses       box_l1", "trained"):
        assert part in text
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_print_config(
    settings: Settings, write_config: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(write_config(settings)), "--print-config"]) == 0
    printed = capsys.readouterr().out
    path = tmp_path / "printed.yaml"
    path.write_text(printed)
    assert main(["--config", str(path), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--data.evaluate=[{path: P, split: valid}]", "'valid'"),
        ("--data.evaluate=[{path: P, split: val}, {path: P, split: val}]", "2 entries are called"),
        ("--data.train={path: /nowhere}", "/nowhere"),
        ("--init=/nowhere", "init is '/nowhere'"),
        ("--adapters=[{kind: mmca, blocks: 9}]", "adapters.blocks is 9"),
        ("--adapterss=null", "unknown key 'adapterss'; did you mean 'adapters'"),
        ("--train_host=perhaps", "'train_host' is 'perhaps'"),
        ("--run.batch_size=0", "'run.batch_size' is 0"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(
    settings: Settings,
    write_config: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    config = write_config(settings, {"out": tmp_path / "run", "adapters": [MMCA]})
    override = override.replace("path: P", f"path: {settings['data']['train']['path']}")
    assert run_cli(main, ["--config", str(config), override]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_the_folder_of_another_run_is_refused(
    settings: Settings,
    write_config: Write,
    pretrained: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = pretrained.copy_to(tmp_path / "run")
    assert run_cli(main, ["--config", str(write_config(settings)), f"--out={out}"]) == 2
    error = capsys.readouterr().err
    assert "holds a run of another config" in error
    assert "init was 'absent'" in error


@pytest.mark.parametrize("given", ["--data.evaluate=[{path: P}]", "--data.validation={path: P}"])
@pytest.mark.parametrize("only_planned", [True, False])
def test_a_split_without_expressions_is_found_before_training(
    tiny_finetune: Settings,
    write_config: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: str,
    only_planned: bool,
) -> None:
    empty, out = tmp_path / "captions", tmp_path / "run"
    with ShardWriter(empty, source={"name": "test", "key": "0"}) as writer:
        file = io.BytesIO()
        Image.new("RGB", (9, 9)).save(file, "PNG")
        writer.write(Record("a", "s", "val", 9, 9, captions=("a cup",)), file.getvalue(), "png")
    options = [given.replace("P", str(empty)), *(["--dry-run"] if only_planned else [])]
    config = str(write_config(tiny_finetune, {"out": out}))
    assert run_cli(main, ["--config", config, *options]) == 2
    assert f"{empty} has no text for a box of grain region in its 1 r" in capsys.readouterr().err
    assert not list(out.glob("checkpoints/*"))


def test_nothing_to_evaluate_is_fine(
    settings: Settings, write_config: Write, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = write_config(settings, {"out": out, "data.evaluate": [], "run.steps": 1})
    assert main(["--config", str(config)]) == 0
    assert json.loads((out / "results.json").read_text()) == {}
    assert (out / "release").is_dir()
