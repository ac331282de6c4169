"""What a run leaves behind, from predictions that a test makes up."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.config import FinetuneConfig
from finetune.evaluate import evaluate_file
from finetune.evaluation import EvalBatch
from finetune.outcome import (
    CONSTANT,
    MODEL,
    NO_PHOTO,
    NO_WORDS,
    Outcome,
    cases_of,
    measure_all,
    publish,
    result_table,
)
from finetune.start import starting_model
from wholegrain.config import from_dict
from wholegrain.data.corpus import Corpus
from wholegrain.report import Estimate
from wholegrain.train.command import Command

Settings = dict[str, Any]


def predict(batch: EvalBatch) -> tuple[Tensor, Tensor]:
    """Right where the text is short, else the upper left quarter; deaf and blind otherwise."""
    true = torch.tensor([one.box for one in batch.expressions], dtype=torch.float64)
    corners = torch.cat([true[:, :2], true[:, :2] + true[:, 2:]], dim=1)
    quarter = torch.tensor([0.25, 0.25, 0.5, 0.5]).expand(len(true), 4)
    knows = torch.tensor([len(text) < 30 and text != "the thing" for text in batch.texts])
    if batch.images.flatten(2).float().std(dim=2).max() == 0:
        knows = torch.zeros_like(knows)
    boxes = torch.where(knows[:, None], corners, batch.to_pixels(quarter))
    return boxes, torch.full((len(true),), 0.5)


@pytest.fixture(scope="module")
def config(tiny_finetune: Settings) -> FinetuneConfig:
    return from_dict(FinetuneConfig, copy.deepcopy(tiny_finetune))


@pytest.fixture(scope="module")
def splits(tiny_corpora: Any) -> dict[str, Corpus]:
    corpus = Corpus.open(tiny_corpora.expressions)
    return {split: corpus.select(split) for split in ("train", "val", "test")}


def test_the_model_stands_beside_its_baselines(
    config: FinetuneConfig, splits: dict[str, Corpus]
) -> None:
    asked = {name: splits[name] for name in ("val", "test")}
    results = measure_all(config, predict, splits["train"], asked, resolution=64)
    assert list(results) == ["val", "test"]
    assert list(results["val"]) == [MODEL, NO_PHOTO, NO_WORDS, CONSTANT]
    accuracy = {name: found.summary().accuracy for name, found in results["val"].items()}
    assert accuracy[MODEL] > max(accuracy[name] for name in (NO_PHOTO, NO_WORDS, CONSTANT))
    # Without its photo or its words the model gives the one box that it knows by heart.
    assert accuracy[NO_PHOTO] == accuracy[NO_WORDS]
    table = result_table("val", results["val"], "the command")
    assert [row[0] for row in table.rows] == list(results["val"])
    assert table.baselines == (1, 2, 3)
    first = table.rows[0][1]
    assert isinstance(first, Estimate)
    assert first.value == accuracy[MODEL]
    assert first.low <= first.value <= first.high


def test_hidden_inputs_can_be_left_out(tiny_finetune: Settings, splits: dict[str, Corpus]) -> None:
    settings = copy.deepcopy(tiny_finetune) | {"hidden_input_baselines": False}
    config = from_dict(FinetuneConfig, settings)
    results = measure_all(config, predict, splits["train"], {"val": splits["val"]}, resolution=64)
    assert list(results["val"]) == [MODEL, CONSTANT]


def test_published_files_agree_with_each_other(
    config: FinetuneConfig,
    splits: dict[str, Corpus],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = {"/elsewhere/val": splits["val"]}
    results = measure_all(config, predict, splits["train"], asked, resolution=64)
    model, tokenizer = starting_model(config, splits["train"])
    command = Command(config, print_config=False, dry_run=False, line="finetune --x=1")
    outcome = Outcome(command, splits["train"], asked, model, tokenizer, results)
    publish(outcome, tmp_path / "run", world=1)
    printed = capsys.readouterr().out
    assert printed.count("% Acc@0.5, merged box") == 4
    # A label that is a path does not lead out of the folder.
    (predictions,) = (tmp_path / "run" / "predictions").iterdir()
    assert not Path("/elsewhere").exists()
    stored = json.loads((tmp_path / "run" / "results.json").read_text())
    assert evaluate_file(predictions).to_dict() == stored["/elsewhere/val"][MODEL]
    card = (tmp_path / "run" / "release" / "README.md").read_text()
    accuracy = results["/elsewhere/val"][MODEL].summary().accuracy
    assert f"{accuracy:.3f}"[:5] in card
    report = (tmp_path / "run" / "report.html").read_text()
    for part in (CONSTANT, NO_PHOTO, "finetune --x=1", "data:image/"):
        assert part in report
    # Published again, as a finished run does it.
    publish(outcome, tmp_path / "run", world=1)


def test_cases_show_best_and_worst(config: FinetuneConfig, splits: dict[str, Corpus]) -> None:
    results = measure_all(config, predict, splits["train"], {"val": splits["val"]}, resolution=64)
    cases = cases_of("val", results["val"][MODEL], splits["val"])
    best, worst = cases["val: best"], cases["val: worst"]
    assert best[0].iou == pytest.approx(1.0)
    assert worst[0].iou == min(results["val"][MODEL].iou["merged"])
    assert [case.iou for case in best] == sorted((case.iou for case in best), reverse=True)
    assert [case.iou for case in worst] == sorted(case.iou for case in worst)
    for case in (*best, *worst, *cases["val: a sample"]):
        assert case.image.shape == (64, 64, 3)
        assert case.text
