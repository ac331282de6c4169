"""A pretraining run: what it leaves, how it is stopped and taken up again, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pretrain.__main__ import main
from pretrain.config import PretrainConfig
from pretrain.run import prepare, pretraining_stage
from wholegrain.config import load_config
from wholegrain.errors import run_cli
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.train.engine import Engine
from wholegrain.train.journal import tag

PROGRAM = Path(__file__).with_name("signalled_program.py")
Launch = Callable[..., str]


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics without what a clock says."""
    entries = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in entry.items() if not tag("train", k).startswith("speed/")}
        for entry in entries
    ]


def weights(out: Path, step: int = 6) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoints" / f"step_{step:06d}" / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """To the last bit."""
    assert metrics(one) == metrics(other)
    expected = weights(one)
    for name, value in weights(other).items():
        assert torch.equal(value, expected[name]), name


def test_a_run_leaves_everything_behind(pretrained: Any) -> None:
    out = pretrained.out
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "release",
        "report.html",
    }
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"step_000004", "step_000006"}
    lines = metrics(out)
    assert [(line["step"], line["split"]) for line in lines] == [
        *((step, "train") for step in range(1, 7)),
        (6, "val"),
    ]
    losses = {"contrastive", "matching", "masked_language", "box_l1", "box_giou", "box_vote"}
    assert losses | {"loss", "gradient_norm", "learning_rate", "skipped"} <= lines[0].keys()
    figures = {"match_accuracy", "masked_token_accuracy", "box_acc@0.5_region", "box_iou"}
    assert figures | {"image_to_text_r@1", "text_to_image_r@1"} <= lines[-1].keys()
    assert any((out / "tensorboard").iterdir())
    report = (out / "report.html").read_text()
    assert "match_accuracy" in report
    card = (out / "release" / "README.md").read_text()
    assert "python -m pretrain --config" in card


def test_the_release_is_the_last_checkpoint(pretrained: Any) -> None:
    import wholegrain

    expected = weights(pretrained.out)
    released = load_file(pretrained.out / "release" / "model.safetensors")
    assert all(torch.equal(released[name], value) for name, value in expected.items())
    model = wholegrain.load(pretrained.out / "release")
    picture = torch.zeros(40, 60, 3, dtype=torch.uint8).numpy()
    (found,) = model.ground(picture, ["the red ball"])
    assert 0 <= found.box[0] <= found.box[2] <= 60
    assert 0 <= found.box[1] <= found.box[3] <= 40


def test_killed_and_continued_it_is_the_same_run(
    pretrained: Any, tmp_path: Path, launch: Launch
) -> None:
    out = tmp_path / "run"
    given = ["--config", pretrained.config, f"--out={out}"]
    # The checkpoint is of step 4: what was done after it is lost, and done again.
    launch(PROGRAM, "SIGKILL", 5, *given, status=-9)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"step_000004"}
    assert metrics(out)[-1]["step"] == 5
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "spl')  # as a kill in the middle of a line leaves it
    text = launch("-m", "pretrain", *given)
    assert "pretrain 4/6" not in text
    assert "pretrain 5/6" in text
    assert_same_run(out, pretrained.out)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1"])
def test_asked_to_stop_it_saves_itself_and_continues(
    pretrained: Any, tmp_path: Path, launch: Launch, number: str
) -> None:
    out = tmp_path / "run"
    given = ["--config", pretrained.config, f"--out={out}"]
    text = launch(PROGRAM, number, 3, *given, status=75)
    assert "stopped at step 3" in text
    assert "run again to continue" in text
    assert "Traceback" not in text
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"step_000003"}
    assert not (out / "release").exists()
    assert main([str(word) for word in given]) == 0
    assert_same_run(out, pretrained.out)


@pytest.mark.ranks
def test_torchrun_takes_up_a_run_of_one_process(
    pretrained: Any, tmp_path: Path, launch: Launch
) -> None:
    out = pretrained.copy_to(tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "step_000006")
    shutil.rmtree(out / "release")
    given = ["-m", "pretrain", "--config", pretrained.config, f"--out={out}"]
    launch("--standalone", "--nproc-per-node", 2, *given, program="torchrun")
    after, before = metrics(out), metrics(pretrained.out)
    assert after[:4] == before[:4]
    assert [line["step"] for line in after] == [line["step"] for line in before]
    # The same images, captions and boxes: what is averaged over them differs by dropout, by the
    # norms' statistics and by whose negatives are whose, not by more.
    for mine, whole in zip(after[4:6], before[4:6], strict=True):
        assert mine["learning_rate"] == whole["learning_rate"]
        assert mine["masked_language"] == pytest.approx(whole["masked_language"], rel=0.05)
        assert mine["contrastive"] == pytest.approx(whole["contrastive"], rel=0.5)
    assert json.loads((out / "environment.json").read_text())["processes"] == 2
    assert (out / "release" / "checksums.json").exists()


@pytest.mark.ranks
def test_accelerate_launch(pretrained: Any, tmp_path: Path, launch: Launch) -> None:
    out = tmp_path / "run"
    launch(
        *("launch", "--multi_gpu", "--num_processes", 2, "--num_machines", 1),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "pretrain"),
        *("--config", pretrained.config, f"--out={out}", "--run.steps=2", "--run.accumulation=2"),
        program="accelerate",
    )
    assert [line["step"] for line in metrics(out)] == [1, 2, 2]
    assert json.loads((out / "environment.json").read_text())["processes"] == 2


def test_accelerate_that_starts_one_process_for_two_is_refused(
    pretrained: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # What `accelerate launch --cpu --num_processes 2` leaves in the environment.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert run_cli(main, ["--config", str(pretrained.config), "--dry-run"]) == 2
    assert "torchrun --standalone" in capsys.readouterr().err


def test_a_finished_run_only_reports_again(pretrained: Any, tmp_path: Path) -> None:
    out = pretrained.copy_to(tmp_path / "run")
    (out / "report.html").unlink()
    before = (out / "metrics.jsonl").read_bytes()
    assert main(["--config", str(pretrained.config), f"--out={out}"]) == 0
    assert (out / "report.html").exists()
    assert (out / "metrics.jsonl").read_bytes() == before
    assert_same_run(out, pretrained.out)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--run.seed=1", "run.seed was 0, is now 1"),
        ("--run.batch_size=8", "run.batch_size was 4, is now 8"),
        ("--optim.lr=0.5", "optim.lr was 0.001, is now 0.5"),
        ("--model.embed_dim=8", "model.embed_dim was 16, is now 8"),
    ],
)
def test_a_run_of_another_config_is_refused(
    pretrained: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    out = pretrained.copy_to(tmp_path / "run")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    given = ["--config", str(pretrained.config), f"--out={out}", override]
    assert run_cli(main, given) == 2
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_another_corpus_is_refused(
    pretrained: Any, tiny_corpora: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = pretrained.copy_to(tmp_path / "run")
    other = f"--data.train=[{{path: {tiny_corpora.expressions}}}]"
    assert run_cli(main, ["--config", str(pretrained.config), f"--out={out}", other]) == 2
    message = capsys.readouterr().err
    facts = json.loads((out / "checkpoints/step_000006/state.json").read_text())["facts"]
    from wholegrain.data.corpus import Corpus

    now = Corpus.open(tiny_corpora.expressions).select("train").fingerprint
    for part in ("step_000006", "corpora", facts["corpora"]["data.train[0]"], now):
        assert part in message


def test_a_truncated_checkpoint_is_refused_by_name_and_an_unfinished_one_passed_over(
    pretrained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = pretrained.copy_to(tmp_path / "run")
    newest = out / "checkpoints" / "step_000006"
    content = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(content[: len(content) // 2])
    given = ["--config", str(pretrained.config), f"--out={out}"]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert f"{newest} is not whole: model.safetensors has" in said
    assert "the run continues from step 4" in said
    assert (out / "checkpoints" / "step_000006.damaged").is_dir()
    assert_same_run(out, pretrained.out)
    (newest / "COMPLETE").unlink()
    assert main(given) == 0
    assert_same_run(out, pretrained.out)


def test_dry_run_shows_the_plan_and_saves_nothing(
    pretrained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["--config", str(pretrained.config), f"--out={out}", "--dry-run"]) == 0
    text = capsys.readouterr().out
    for part in (
        "corpora",
        "(24)",
        "epochs       1.0 of 24",
        "samples      24",
        "6 steps, 24 images",
    ):
        assert part in text
    for part in ("memory", "s a step", "losses       contrastive", "parameters"):
        assert part in text
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_compiles_has_its_model_compiled(
    pretrained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("wholegrain.train.speed.compile_blocks", asked.append)
    given = ["--config", str(pretrained.config), "--dry-run"]
    assert main(given) == 0 and not asked
    assert main([*given, "--run.compile=true"]) == 0
    assert [type(model) for model in asked] == [MultiGrainModel]


def test_updates_keep_the_temperature_in_the_configs_bounds(pretrained: Any) -> None:
    given = ["--objective.min_temperature=0.2", "--objective.max_temperature=0.25"]
    config = load_config(PretrainConfig, pretrained.config, given)
    engine = Engine(config.run)
    stage = pretraining_stage(*prepare(config, engine, None), engine)
    assert stage.limits == {"model.temperature": (0.2, 0.25)}


def test_print_config_can_be_run_again(
    pretrained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config", str(pretrained.config), "--run.steps=77", "--print-config"]
    assert main(given) == 0
    printed = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(printed)
    assert main(["--config", str(tmp_path / "again.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert "steps: 77" in printed
    # The resolved config beside the checkpoints also knows the tokenizer's size.
    resolved = (pretrained.out / "config.yaml").read_text()
    assert main(["--config", str(pretrained.out / "config.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == resolved


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--run.stepz=3", "unknown key 'run.stepz'; did you mean 'steps'"),
        ("--run.steps=soon", "'run.steps' is 'soon'"),
        ("--data.validation.split=vall", "'vall'"),
        ("--data.train=[]", "data.train is empty"),
        ("--data.train=[{path: /nowhere}]", "/nowhere"),
        ("--run.checkpoint_activations=true", "checkpoint_activations needs an image encoder of"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(
    pretrained: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    given = ["--config", str(pretrained.config), f"--out={tmp_path / 'run'}", override]
    assert run_cli(main, given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_is_no_run(
    pretrained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").touch()
    assert run_cli(main, ["--config", str(pretrained.config), f"--out={tmp_path}"]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
