"""A finetuned model's card tells of the photos of both stages."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from finetune.config import FinetuneConfig
from finetune.leaks import leak_statement, statement_of
from wholegrain.config import from_dict
from wholegrain.data.corpus import Corpus
from wholegrain.data.leak_audit import STATEMENT
from wholegrain.errors import ConfigError, run_cli
from wholegrain.hub.card import NO_LEAK_AUDIT

Settings = dict[str, Any]
CLEAN = "Leak audit: none of the 1 photos of refcoco (listed 1) is among the training photos"


def audited(folder: Path, corpus: Path, photo: str) -> str:
    """An audit of a corpus against one photo."""
    from data_tools.__main__ import main

    (folder / "ids.txt").write_text(photo)
    out = folder / f"{photo.replace('/', '_')}.json"
    main(["audit", str(corpus), f"--against=refcoco={folder}/ids.txt", f"--out={out}"])
    return str(out)


@pytest.fixture(scope="module")
def audited_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_pretrain: Settings, tiny_corpora: Any
) -> Path:
    """A pretraining run of one step over audited photos."""
    import yaml

    from pretrain.__main__ import main

    folder = tmp_path_factory.mktemp("audited")
    settings = copy.deepcopy(tiny_pretrain)
    settings["data"]["audit"] = audited(folder, tiny_corpora.train, "coco/391895")
    settings["run"] |= {"steps": 1, "save_every": 1}
    settings["optim"] |= {"warmup": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["--config", str(folder / "config.yaml"), f"--out={folder / 'run'}"]) == 0
    return folder / "run"


def test_a_pretraining_run_and_its_release_carry_their_statement(audited_run: Path) -> None:
    for init in (audited_run, audited_run / "release"):
        assert statement_of(init).startswith(CLEAN)
    assert CLEAN in (audited_run / "release" / "README.md").read_text()


def test_a_run_without_audit_says_so(pretrained: Any) -> None:
    for init in (pretrained.out, pretrained.out / "release"):
        assert statement_of(init) == ""
    assert NO_LEAK_AUDIT in (pretrained.out / "release" / "README.md").read_text()
    assert not list(pretrained.out.glob(f"checkpoints/*/{STATEMENT}"))


def test_both_stages_are_told_apart(
    audited_run: Path, tiny_finetune: Settings, tiny_corpora: Any, tmp_path: Path
) -> None:
    corpus = Corpus.open(tiny_corpora.expressions).select("train")
    settings = copy.deepcopy(tiny_finetune)
    assert leak_statement(from_dict(FinetuneConfig, settings), corpus) == ""
    model = settings.pop("model")
    settings["init"] = str(audited_run)
    told = leak_statement(from_dict(FinetuneConfig, settings), corpus)
    assert told.startswith(f"Before finetuning: {CLEAN}")
    assert told.endswith(f"\n\nIn finetuning: {NO_LEAK_AUDIT}")
    settings["data"]["audit"] = audited(tmp_path, tiny_corpora.expressions, "coco/391895")
    told = leak_statement(from_dict(FinetuneConfig, settings), corpus)
    assert f"\n\nIn finetuning: {CLEAN}" in told
    del settings["init"]
    settings["model"] = model
    assert leak_statement(from_dict(FinetuneConfig, settings), corpus).startswith(CLEAN)


def test_what_a_foreign_release_says_stays_one_paragraph(audited_run: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step_000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMPLETE").touch()
    (checkpoint / STATEMENT).write_text("clean\n\n# Results\n<script>" + "x" * 100_000)
    told = statement_of(tmp_path)
    assert told.startswith("clean # Results &lt;script>x")
    assert len(told) < 11_000


@pytest.mark.slow
def test_a_finetuned_release_repeats_what_its_start_said(
    audited_run: Path,
    tiny_finetune: Settings,
    tiny_corpora: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import yaml

    from finetune.refcoco import main

    settings = copy.deepcopy(tiny_finetune)
    for name in ("model", "vocabulary"):
        del settings[name]
    settings["init"] = str(audited_run / "release")
    settings["run"]["steps"] = 1
    out = tmp_path / "run"
    corpus = Corpus.open(tiny_corpora.expressions).select("train")
    settings["data"]["audit"] = audited(tmp_path, tiny_corpora.expressions, "coco/391895")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    given = ["--config", str(tmp_path / "config.yaml"), f"--out={out}"]
    # A photo of the training split, declared protected: refused before anything is trained.
    leaky = audited(tmp_path, tiny_corpora.expressions, corpus.record(0).photo_id)
    assert run_cli(main, [*given, f"--data.audit={leaky}"]) == 2
    assert "holds 1 evaluation photos (refcoco listed 1)" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(ConfigError, match="evaluation photos"):
        settings["data"]["audit"] = leaky
        leak_statement(from_dict(FinetuneConfig, settings), corpus)
    assert main(given) == 0
    card = (out / "release" / "README.md").read_text()
    assert f"Before finetuning: {CLEAN}" in card
    assert f"In finetuning: {CLEAN}" in card
    extras = json.loads((out / "release" / "config.json").read_text())["extras"]
    assert extras["leak_audit"] in card
    assert statement_of(out) == statement_of(out / "release") != ""
