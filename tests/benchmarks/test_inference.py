"""Expressions together and one by one: the same boxes, and images encoded once where they can."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import inference
from benchmarks.grounding_recipes import Host, Method, Recipes
from benchmarks.inference import EXPRESSIONS, grounder_of, measure
from wholegrain.errors import ConfigError

CPU = torch.device("cpu")
RECIPES = Recipes.read()


@pytest.fixture
def recipes(tiny_model: dict[str, Any]) -> Recipes:
    adapter = {"kind": "mmca", "rank": 4, "embed_dim": 8, "gate_dim": 4, "blocks": 1}
    return dataclasses.replace(
        RECIPES,
        hosts={"small": Host("small", tiny_model)},
        methods={
            "cross": Method("cross", ("small",)),
            "mlp": Method("mlp", ("small",), ("cross",), {"box_head": {"kind": "mlp"}}),
            "mmca": Method("mmca", ("small",), ("cross",), {"adapters": [adapter]}),
        },
    )


def test_together_and_one_by_one_answer_the_same(recipes: Recipes) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    boxes = {}
    for method, passes in (("cross", 1), ("mlp", 1), ("mmca", 5)):
        grounder = grounder_of(recipes, "small", method, CPU)
        found = measure(grounder, photo, (1, 5), rounds=1)
        assert found["5"]["image_passes"] == passes
        assert found["1"]["image_passes"] == 1
        for one in found.values():
            assert one["pixels"] < 1e-3
            assert one["ratio"] == pytest.approx(one["one_by_one_s"] / one["together_s"])
        boxes[method] = [answer.box for answer in grounder.ground(photo, EXPRESSIONS[:5])]
    # The adapters do say something, so that equal boxes mean something.
    assert boxes["mmca"] != boxes["cross"]


def test_a_difference_is_seen(recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    grounder = grounder_of(recipes, "small", "mlp", CPU)
    photo = np.zeros((80, 60, 3), dtype=np.uint8)
    asked = grounder.ground

    def shifted(image: Any, texts: Any) -> Any:
        answers = asked(image, texts)
        move = 0.25 * (len(texts) > 1)
        return [
            dataclasses.replace(one, box=tuple(edge + move for edge in one.box)) for one in answers
        ]

    monkeypatch.setattr(grounder, "ground", shifted)
    found = measure(grounder, photo, (1, 2), rounds=1)
    assert found["2"]["pixels"] == pytest.approx(0.25, abs=1e-3)
    assert found["1"]["pixels"] == 0


def test_there_are_64_different_expressions() -> None:
    assert len(EXPRESSIONS) == len(set(EXPRESSIONS)) == 64


def test_the_program_writes_what_it_measured(
    recipes: Recipes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    twin = Method("same model, another loss", ("small",), ("cross",), {"loss": {"l1": 2.0}})
    more = dataclasses.replace(recipes, methods={**recipes.methods, "twin": twin})
    monkeypatch.setattr(Recipes, "read", classmethod(lambda cls: more))
    file = tmp_path / "inference.json"
    options = ["--counts", "1", "2", "--rounds", "1", "--device", "cpu", "--json", str(file)]
    assert inference.main(options) == 0
    written = json.loads(file.read_text(encoding="utf-8"))
    assert [row["method"] for row in written["rows"]] == ["cross", "mlp", "mmca"]
    assert all(set(row["counts"]) == {"1", "2"} for row in written["rows"])


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"--counts is \[65\]"):
        inference.main(["--counts", "65"])
    with pytest.raises(ConfigError, match="--rounds is 0"):
        inference.main(["--rounds", "0"])
