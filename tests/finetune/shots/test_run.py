"""A few-shot run: it learns, goes on after an interruption, and shares its work among processes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import CLIPModel

from finetune.few_shot import main
from finetune.shots import run as stage
from finetune.shots.config import FewShotConfig
from finetune.shots.results import harmonic_mean
from wholegrain.config import from_dict, load_config
from wholegrain.errors import ConfigError, DataError

Settings = Callable[..., dict[str, Any]]


def configured(tmp_path: Path, values: dict[str, Any]) -> list[str]:
    path = tmp_path / "few_shot.yaml"
    path.write_text(yaml.safe_dump(values))
    return ["--config", str(path)]


def results(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "run" / "results.json").read_text())
    return found


def test_base_to_novel_learns(tmp_path: Path, settings: Settings, capsys: Any) -> None:
    assert main(configured(tmp_path, settings())) == 0
    found = results(tmp_path)
    plain, learnt = (found["tables"][m]["sets"]["colours"] for m in ("zero_shot", "mma"))
    assert learnt["base"]["mean"] >= plain["base"]["mean"] + 25
    assert learnt["base"]["count"] == learnt["novel"]["count"] == 16
    assert len(learnt["base"]["seeds"]) == 2
    assert plain["base"]["std"] is None
    mean = found["tables"]["mma"]["mean"]
    assert mean["hm"] == pytest.approx(harmonic_mean(mean["base"], mean["novel"]))
    assert found["sets"]["colours"]["classes"] == 4
    text = (tmp_path / "run" / "table.txt").read_text()
    assert f"{learnt['base']['mean']:.2f} +- " in text
    assert text in capsys.readouterr().out
    assert load_config(FewShotConfig, tmp_path / "run" / "config.yaml").shots == 4


def test_a_model_of_this_library_learns(
    tmp_path: Path, settings: Settings, release_folder: Path
) -> None:
    host = {"kind": "wholegrain", "path": str(release_folder)}
    values = settings(host=host, precision="bf16", seeds=[1], optim={"lr": 0.1})
    assert main(configured(tmp_path, values)) == 0
    tables = results(tmp_path)["tables"]
    plain, learnt = (tables[m]["sets"]["colours"]["base"]["mean"] for m in ("zero_shot", "mma"))
    assert learnt >= plain + 25


def test_cells_know_the_texts_and_the_host(
    tmp_path: Path, settings: Settings, clip_folder: Path
) -> None:
    def keys(**changes: Any) -> list[str]:
        config = from_dict(FewShotConfig, settings(seeds=[1], **changes))
        run = stage.FewShotRun(config, torch.device("cpu"))
        return [
            run._cell(training, name, part)[1]
            for training in run.trainings
            for name, part in training.measured
        ]

    first = keys()
    assert len(set(first)) == 4  # zero-shot and learnt, base and novel
    assert keys(data={"workers": 2}, eval_batch_size=3) == first
    # Zero-shot figures depend on the host and the texts alone.
    assert [a == b for a, b in zip(first, keys(shots=2), strict=True)] == [True, True, False, False]
    other = tmp_path / "clip"
    shutil.copytree(clip_folder, other)
    model = CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1e-3
    model.save_pretrained(other)
    changed = (
        {"template": "a picture of a {}."},
        {"precision": "bf16"},
        {"host": {"path": str(other)}},
    )
    for change in changed:
        assert not set(keys(**change)) & set(first), change


class TestRestart:
    @pytest.fixture
    def learnt(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Seeds that were trained."""
        seeds: list[int] = []
        learn = stage.learn

        def counted(encoders: Any, lesson: Any, optim: Any, seed: int) -> list[float]:
            seeds.append(seed)
            return learn(encoders, lesson, optim, seed)

        monkeypatch.setattr(stage, "learn", counted)
        return seeds

    @pytest.fixture
    def quick(self, tmp_path: Path, settings: Settings) -> list[str]:
        return configured(tmp_path, settings(optim={"epochs": 1}))

    def test_an_interrupted_run_goes_on(
        self,
        tmp_path: Path,
        quick: list[str],
        learnt: list[int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        measure, calls = stage.accuracy, [0]

        def failing(*arguments: Any) -> Any:
            calls[0] += 1
            if calls[0] == 4:  # zero-shot twice, then seed 1 on base; its adapters are kept
                raise KeyboardInterrupt
            return measure(*arguments)

        monkeypatch.setattr(stage, "accuracy", failing)
        with pytest.raises(KeyboardInterrupt):
            main(quick)
        assert not (tmp_path / "run" / "results.json").exists()
        assert learnt == [1]
        monkeypatch.setattr(stage, "accuracy", measure)
        assert main(quick) == 0
        assert learnt == [1, 2]
        went_on = results(tmp_path)["tables"]
        assert main([*quick, f"--out={tmp_path / 'other'}"]) == 0
        whole = json.loads((tmp_path / "other" / "results.json").read_text())["tables"]
        assert went_on == whole

    def test_a_finished_run_does_nothing_again(
        self, tmp_path: Path, quick: list[str], learnt: list[int]
    ) -> None:
        assert main(quick) == 0
        before = results(tmp_path)["tables"]
        (tmp_path / "run" / "results.json").unlink()
        assert main([*quick, "--data.workers=1"]) == 0
        assert learnt == [1, 2]
        assert results(tmp_path)["tables"] == before

    @pytest.mark.parametrize("kept", [0, 5, 0.5])
    @pytest.mark.parametrize("host", ["clip", "wholegrain"])
    def test_damaged_adapters_are_trained_again(
        self,
        tmp_path: Path,
        settings: Settings,
        release_folder: Path,
        learnt: list[int],
        capsys: pytest.CaptureFixture[str],
        host: str,
        kept: float,
    ) -> None:
        values = settings(optim={"epochs": 1}, zero_shot=False)
        if host == "wholegrain":
            values["host"] = {"kind": host, "path": str(release_folder)}
        run = configured(tmp_path, values)
        assert main(run) == 0
        before = results(tmp_path)["tables"]
        (adapters,) = (tmp_path / "run" / "cells").glob("colours-seed1-*.safetensors")
        whole = adapters.read_bytes()
        adapters.write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else int(kept)])
        for cell in adapters.parent.glob("colours-seed1-on-*"):
            cell.unlink()
        capsys.readouterr()
        assert main(run) == 0
        assert learnt == [1, 2, 1]
        assert results(tmp_path)["tables"] == before
        assert adapters.read_bytes() == whole
        said = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
        assert said == [
            f"{adapters}: is damaged; these adapters are trained again, and it is overwritten"
        ]

    def test_other_settings_find_no_cells(self, quick: list[str], learnt: list[int]) -> None:
        assert main(quick) == 0
        assert main([*quick, "--shots=3"]) == 0
        assert learnt == [1, 2, 1, 2]
        # A further seed leaves the others be.
        assert main([*quick, "--seeds=[1, 2, 5]"]) == 0
        assert learnt == [1, 2, 1, 2, 5]

    def test_two_processes_share_the_work(
        self,
        tmp_path: Path,
        quick: list[str],
        learnt: list[int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for rank, expected in (("0", [2]), ("1", [2, 1])):
            for name, value in (
                ("RANK", rank),
                ("LOCAL_RANK", rank),
                ("WORLD_SIZE", "2"),
                ("LOCAL_WORLD_SIZE", "2"),
                ("MASTER_ADDR", "localhost"),
                ("MASTER_PORT", "29511"),
            ):
                monkeypatch.setenv(name, value)
            assert not (tmp_path / "run" / "results.json").exists()
            assert main(quick) == 0
            assert learnt == expected
        assert len(results(tmp_path)["tables"]["mma"]["sets"]["colours"]["base"]["seeds"]) == 2

    def test_a_dry_run_keeps_nothing(self, tmp_path: Path, quick: list[str], capsys: Any) -> None:
        assert main([*quick, "--dry-run"]) == 0
        assert not (tmp_path / "run").exists()
        out = capsys.readouterr().out
        assert "8 images, 1 x 2 steps; 2 of 2 measurements missing, 32 test images" in out
        assert "parameters learn; a step of colours-seed2: loss " in out


def test_one_source_and_other_sets(tmp_path: Path, settings: Settings, colours_root: Path) -> None:
    own = {"colours": {"folder": "colours"}, "again": {"folder": "colours"}}
    values = settings(
        protocol="cross_dataset",
        source="colours",
        seeds=[1],
        optim={"epochs": 1},
        data={"own": own, "sets": ["again"]},
    )
    assert main(configured(tmp_path, values)) == 0
    table = results(tmp_path)["tables"]["mma"]
    assert list(table["sets"]) == ["colours", "again"]
    # The same images under another name, and the source does not count into the mean.
    assert table["sets"]["again"]["all"] == table["sets"]["colours"]["all"]
    assert table["mean"] == {"all": table["sets"]["again"]["all"]["mean"]}
    assert table["sets"]["again"]["all"]["count"] == 32


def test_the_lists_of_shots_are_used(
    tmp_path: Path, settings: Settings, colours_root: Path
) -> None:
    values = settings(data={"listed_shots": True}, seeds=[1])
    with pytest.raises(DataError, match=r"shot_4-seed_1\.json"):
        main(configured(tmp_path, values))
    assert not (tmp_path / "run").exists()


def test_a_foreign_folder_and_an_absent_device_are_refused(
    tmp_path: Path, settings: Settings
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds no run"):
        main(configured(tmp_path, settings()))
    with pytest.raises(ConfigError, match="device is 'cuda:77'"):
        main(configured(tmp_path, settings(device="cuda:77", out=str(tmp_path / "x"))))
