"""The comparison of grounding methods: its configs, its runs, and that it goes on where it was."""

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import benchmarks.grounding
import benchmarks.grounding_cells
from benchmarks import grounding_cost
from benchmarks.grounding import Found, compare, write
from benchmarks.grounding_cells import CommandError, Workplace, run_command
from benchmarks.grounding_recipes import (
    PRETRAINED,
    REFERENCE,
    SCRATCH,
    STARTS,
    Budget,
    Cell,
    Host,
    Method,
    Recipes,
    choose,
)
from finetune import refcoco
from finetune.config import FinetuneConfig
from pretrain import __main__ as pretrain
from pretrain.config import PretrainConfig
from wholegrain.config import from_dict
from wholegrain.errors import ConfigError
from wholegrain.model.multigrain import MultiGrainModel

RECIPES = Recipes.read()
PAIRS = RECIPES.pairs(RECIPES.compared_hosts, RECIPES.methods)
METHODS = {"fusion", "adapters", "box_head", "loss"}


def settings_of(data: str, host: str, method: str, start: str, seed: int = 0) -> dict[str, Any]:
    base = Path("base/release") if start == PRETRAINED else None
    cell = Cell(data, host, method, start, seed)
    return RECIPES.finetuning(cell, Path("corpora"), 7, base)


@pytest.mark.parametrize(("host", "method"), PAIRS)
def test_every_run_is_a_config_and_its_model_can_be_built(host: str, method: str) -> None:
    for data in RECIPES.data:
        config = from_dict(FinetuneConfig, settings_of(data, host, method, PRETRAINED))
        assert config.init == "base/release"
    config = from_dict(FinetuneConfig, settings_of("scenes", host, method, SCRATCH))
    assert config.model is not None
    assert (config.run.steps, config.hidden_input_baselines) == (7, False)
    with torch.device("meta"):
        model = MultiGrainModel(config.model)
        if config.fusion is not None:
            model.new_fusion(config.fusion, config.box_head)
        elif config.box_head is not None:
            model.new_box_head(config.box_head)
        for adapter in config.adapters:
            model.add_adapter(adapter)
    assert len(model.adapters) == (method in ("mmca", "mma"))
    assert (model.fusion is not None) == method.startswith(("ca2m", "scan"))


@pytest.mark.parametrize("host", RECIPES.compared_hosts)
@pytest.mark.parametrize("data", RECIPES.data)
def test_every_base_is_a_config(data: str, host: str) -> None:
    settings = RECIPES.pretraining(data, host, Path("corpora"), 5)
    config = from_dict(PretrainConfig, settings)
    assert (config.run.steps, config.run.seed) == (5, 0)
    assert (
        config.model == from_dict(FinetuneConfig, settings_of(data, host, "cross", SCRATCH)).model
    )


def test_all_methods_get_the_same_but_for_what_they_are() -> None:
    for start in STARTS:
        for host in RECIPES.compared_hosts:
            common = [
                {
                    key: value
                    for key, value in settings_of("scenes", host, name, start).items()
                    if key not in METHODS
                }
                for name, method in RECIPES.methods.items()
                if host in method.hosts
            ]
            assert len(common) > 2
            assert all(one == common[0] for one in common)
    # Seeds and starts do change something.
    one, other = (settings_of("scenes", "vit", "cross", SCRATCH, seed) for seed in (0, 1))
    assert one["run"]["seed"] != other["run"]["seed"]


def test_every_method_meets_the_reference_on_a_host_of_few() -> None:
    hosts = RECIPES.compared_hosts
    assert all((host, REFERENCE) in PAIRS for host in hosts)
    assert {method for _, method in PAIRS} == set(RECIPES.methods)
    # No host can be left out: each carries a method that no other does.
    for host in hosts:
        assert {m for h, m in PAIRS if h != host} < set(RECIPES.methods)
    assert len(RECIPES.budgets["full"].seeds) >= 3


def test_a_method_without_the_reference_is_refused(tmp_path: Path) -> None:
    text = RECIPES.file.read_text(encoding="utf-8")
    file = tmp_path / "recipes.yaml"
    file.write_text(text.replace("hosts: [vit, vit_base]", "hosts: [vit, elsewhere]"))
    with pytest.raises(ConfigError, match=r"methods\.scan\.hosts: 'elsewhere' is not there"):
        Recipes.read(file)
    file.write_text(text.replace("against: [cross, mlp]", "against: [mlp]"))
    with pytest.raises(ConfigError, match=r"against lacks 'cross'"):
        Recipes.read(file)


def test_names_are_checked() -> None:
    assert choose("--methods", ["mmca", "cross", "mmca"], RECIPES.methods) == ["mmca", "cross"]
    with pytest.raises(ConfigError, match=r"--methods: 'mcca' is not there; choose among cross"):
        choose("--methods", ["mcca"], RECIPES.methods)


class Programs:
    """Commands of the comparison in this process, each noted down; as `run_command` calls them."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.mains = {
            "pretrain": pretrain.main,
            "finetune.refcoco": refcoco.main,
            "benchmarks.grounding_cost": grounding_cost.main,
        }

    def __call__(
        self, words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        flag, program, *rest = words
        assert flag == "-m"
        self.ran.append(program)
        if program in self.mains:
            assert self.mains[program](rest) == 0
        else:
            run_command(words, log, environment)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    runner = Programs()
    for module in (benchmarks.grounding, benchmarks.grounding_cells):
        monkeypatch.setattr(module, "run_command", runner)
    return runner


@pytest.fixture
def place(tmp_path: Path, tiny_model: dict[str, Any], tiny_corpora: Any) -> Workplace:
    recipes = dataclasses.replace(
        RECIPES,
        hosts={"small": Host("small", tiny_model)},
        methods={
            "cross": Method("cross", ("small",)),
            "mlp": Method("mlp", ("small",), ("cross",), {"box_head": {"kind": "mlp"}}),
        },
        data={"scenes": dataclasses.replace(RECIPES.data["scenes"], vocabulary=200)},
    )
    budget = Budget(pretrain_steps=2, steps=2, seeds=(0,), rounds=2, photos=3)
    return Workplace(recipes, budget, "scenes", tmp_path / "work", tiny_corpora.train.parent)


def run(place: Workplace) -> Found:
    pairs = place.recipes.pairs(place.recipes.hosts, place.recipes.methods)
    return compare(place, pairs, [SCRATCH], place.budget.seeds)


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_was(
    place: Workplace, programs: Programs, tmp_path: Path
) -> None:
    found = run(place)
    assert programs.ran == ["finetune.refcoco"] * 2 + ["benchmarks.grounding_cost"] * 3
    _check_rows(found)
    _check_files(found, place, tmp_path / "out" / "grounding")

    programs.ran.clear()
    assert run(place) == found
    assert programs.ran == []

    # A run that was cut off has no JSON: it alone is made again, and comes out the same.
    (place.folder / "cells" / "scenes.small.mlp.from_nothing.0.json").unlink()
    again = run(place)
    assert programs.ran == ["finetune.refcoco"]
    assert [row["figures"] for row in again.rows] == [row["figures"] for row in found.rows]


@pytest.mark.slow
def test_another_recipe_is_another_run(
    place: Workplace, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    del programs.mains["finetune.refcoco"]  # as a user would run it
    cell = Cell("scenes", "small", "mlp", PRETRAINED, 0)
    kept = place.cell(cell)
    assert programs.ran == ["pretrain", "finetune.refcoco"]
    log = next((place.folder / "runs").glob("*.log")).read_text(encoding="utf-8")
    assert log.startswith("$ python -m finetune.refcoco --config ")
    assert not list((place.folder / "runs").glob("*/checkpoints"))

    programs.mains["finetune.refcoco"] = refcoco.main
    programs.ran.clear()
    longer = dataclasses.replace(place, budget=dataclasses.replace(place.budget, steps=3))
    other = longer.cell(cell)
    assert programs.ran == ["finetune.refcoco"]  # the base is the same
    assert other.digest != kept.digest
    assert "was made by another recipe, base or corpus: again" in capsys.readouterr().out


def _check_rows(found: Found) -> None:
    assert [row["method"] for row in found.rows] == ["cross", "mlp"]
    for row in found.rows:
        assert row["expressions"] > row["photos"] == 8
        assert set(row["against"]) == ({"cross"} if row["method"] == "mlp" else set())
        cost = row["cost"]
        assert (cost["parameters_added"] == 0) == (row["method"] == "cross")
        assert cost["parameters_used"] < cost["parameters"]
        # Sixteen together share the image's pass.
        assert cost["macs"]["16"] < cost["macs"]["1"]
        assert cost["seconds"]["16"] < 16 * cost["seconds"]["1"]
        assert cost["kept"] is None
    assert set(found.baselines) == {"best constant box", "whole photo"}


def _check_files(found: Found, place: Workplace, out: Path) -> None:
    out.parent.mkdir()
    write(out, found, place)
    report = json.loads(out.with_name("grounding.json").read_text(encoding="utf-8"))
    assert report["rows"] == json.loads(json.dumps(found.rows))
    assert report["budget"]["steps"] == 2
    lines = list(csv.DictReader(out.with_name("grounding.csv").open(encoding="utf-8")))
    assert len(lines) == 2
    assert float(lines[1]["acc@0.5 less cross"]) == pytest.approx(
        float(lines[1]["acc@0.5"]) - float(lines[0]["acc@0.5"])
    )
    ElementTree.parse(out.with_name("grounding.svg"))


def test_a_failed_command_is_told_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="ended with status 3") as caught:
        run_command(["-c", "print('what went wrong'); raise SystemExit(3)"], tmp_path / "log")
    assert "what went wrong" in str(caught.value).splitlines()[-1]


def test_real_photos_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WHOLEGRAIN_TEST_DATA", raising=False)
    with pytest.raises(ConfigError, match="--flickr is None; give the folder"):
        benchmarks.grounding.main(["--data", "flickr", "--work", str(tmp_path)])
