"""A release answers a corpus, and its file re-evaluates to the same figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.config import FinetuneConfig
from finetune.evaluate import evaluate_file
from finetune.evaluation import evaluate
from finetune.grounding import predictor
from finetune.predict import main
from finetune.start import starting_model
from wholegrain.config import from_dict
from wholegrain.data.corpus import Corpus
from wholegrain.errors import ConfigError, DataError, ReleaseError
from wholegrain.hub.additions import save_additions
from wholegrain.hub.card import Card
from wholegrain.hub.release import load_release, save_release
from wholegrain.model.config import MlpBoxHead


def test_every_expression_is_answered_once(
    pretrained: Any, tiny_corpora: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "predictions.jsonl"
    given = ["--model", str(pretrained.out / "release"), "--corpus", str(tiny_corpora.expressions)]
    assert main([*given, "--split", "test", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    found = evaluate_file(out)
    assert found.table() in printed
    lines = out.read_text().splitlines()
    assert len(lines) == found.summary().expressions > 8
    assert found.summary().images == 8


def test_additions_answer_in_place_of_what_their_base_has(
    pretrained: Any, tiny_corpora: Any, tmp_path: Path
) -> None:
    base = pretrained.out / "release"
    model, tokenizer, info = load_release(base)
    model.new_box_head(MlpBoxHead())
    additions = save_additions(tmp_path / "additions", model, base)
    corpus = Corpus.open(tiny_corpora.expressions).select("test")
    predict = predictor(model, tokenizer, info.extras["max_tokens"], torch.device("cpu"))
    expected = evaluate(predict, corpus, resolution=model.config.vision.image_size)
    plain, ours = tmp_path / "plain.jsonl", tmp_path / "ours.jsonl"
    given = ["--model", str(base), "--corpus", str(tiny_corpora.expressions), "--split", "test"]
    assert main([*given, "--out", str(plain)]) == 0
    assert main([*given, "--out", str(ours), "--additions", str(additions)]) == 0
    written = expected.write(tmp_path / "expected.jsonl").read_text()
    assert ours.read_text() == written != plain.read_text()


def test_object_names_are_another_question(
    pretrained: Any, tiny_corpora: Any, tmp_path: Path
) -> None:
    out = tmp_path / "predictions.jsonl"
    given = ["--model", str(pretrained.out / "release"), "--corpus", str(tiny_corpora.val)]
    assert main([*given, "--grain", "object", "--out", str(out)]) == 0
    assert evaluate_file(out).summary().images == 8


def test_what_is_not_there_is_named(pretrained: Any, tiny_corpora: Any, tmp_path: Path) -> None:
    release, corpus = str(pretrained.out / "release"), str(tiny_corpora.expressions)
    with pytest.raises(ReleaseError, match="nowhere"):
        main(["--model", str(tmp_path / "nowhere"), "--corpus", corpus])
    with pytest.raises(DataError, match="testC"):
        main(["--model", release, "--corpus", corpus, "--split", "testC"])


def test_an_output_that_cannot_be_written_ends_it_before_any_work(tmp_path: Path) -> None:
    given = ["--model", str(tmp_path / "nowhere"), "--corpus", str(tmp_path / "nothing")]
    for out in (tmp_path, Path("/proc/p.jsonl")):
        with pytest.raises(ConfigError, match=f"--out is {out}, "):
            main([*given, "--out", str(out)])


SCAN = {
    "vision": {
        "kind": "vit",
        "image_size": 32,
        "patch_size": 8,
        "width": 24,
        "depth": 2,
        "heads": 2,
    },
    "fusion": {"kind": "scan", "scales": 2, "selector_width": 8},
    "box_head": {"kind": "mlp"},
}


def test_an_exit_says_where_it_stopped_and_what_that_costs(
    tiny_finetune: dict[str, Any],
    tiny_corpora: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = from_dict(FinetuneConfig, tiny_finetune | {"model": tiny_finetune["model"] | SCAN})
    corpus = Corpus.open(config.data.train.path).select("train")
    model, tokenizer = starting_model(config, corpus)
    release = save_release(tmp_path / "release", model, tokenizer, card=Card("scan"))
    given = ["--model", str(release), "--corpus", str(tiny_corpora.expressions), "--split", "test"]
    printed = []
    for exit_at in ([], ["--exit-quality", "1"], ["--exit-quality", "0"]):
        out = tmp_path / f"{len(printed)}.jsonl"
        assert main([*given, "--out", str(out), *exit_at]) == 0
        text = capsys.readouterr().out
        assert evaluate_file(out).table() in text, "its own accuracy"
        cells = [line.split("│") for line in text.splitlines() if line.startswith("│")]
        printed.append([[float(cell) for cell in row[1:4]] for row in cells])
    never, whole, coarse = printed
    assert never == whole
    assert [row[2] for row in whole] == [0, 100]
    assert [row[2] for row in coarse] == [100, 0]
    assert whole[0][1] == coarse[0][1] == 100, "the coarsest scale is read whole"
    assert coarse[1][1] == 0


def test_only_a_model_of_several_scales_has_an_exit(pretrained: Any, tiny_corpora: Any) -> None:
    given = ["--model", str(pretrained.out / "release"), "--corpus", str(tiny_corpora.expressions)]
    with pytest.raises(ConfigError, match="reads all at once"):
        main([*given, "--exit-quality", "0.5"])
