"""A release answers a corpus, and its file re-evaluates to the same figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.evaluate import evaluate_file
from finetune.predict import main
from wholegrain.errors import DataError, ReleaseError


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
