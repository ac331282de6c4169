"""`finetune/refcoco.py` as it is started, on one process and on two."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wholegrain
from finetune.outcome import CONSTANT, MODEL, NO_PHOTO, NO_WORDS
from wholegrain.data.corpus import Corpus
from wholegrain.data.decode import decode_image

Launch = Callable[..., str]


@pytest.fixture(scope="module")
def program(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.rootpath) / "finetune" / "refcoco.py"


@pytest.mark.ranks
def test_one_process_and_two_measure_the_same(
    tiny_finetune: dict[str, Any],
    pretrained: Any,
    tiny_corpora: Any,
    write_config: Callable[..., Path],
    tmp_path: Path,
    launch: Launch,
    program: Path,
) -> None:
    settings = {k: v for k, v in tiny_finetune.items() if k != "model"}
    path = str(tiny_corpora.expressions)
    out = tmp_path / "run"
    changes = {
        "out": out,
        "init": str(pretrained.out),
        "adapters": [{"kind": "mmca", "rank": 4, "embed_dim": 8, "gate_dim": 4, "blocks": 1}],
        "data.evaluate": [{"path": path, "split": "val"}, {"path": path, "split": "test"}],
    }
    config = write_config(settings, changes)
    # Two processes train and measure; then one finds nothing left to train, and measures.
    text = launch(
        *("--standalone", "--nproc-per-node", 2, program, "--config", config), program="torchrun"
    )
    assert text.count("Acc@0.5, merged box") == 8  # printed once, not by each process
    two = {
        str(file.relative_to(out)): file.read_bytes()
        for file in (out / "results.json", *(out / "predictions").iterdir())
    }
    assert set(two) == {"results.json", "predictions/val.jsonl", "predictions/test.jsonl"}
    (out / "results.json").unlink()
    launch(program, "--config", config)
    for name, content in two.items():
        assert (out / name).read_bytes() == content, name
    _check_counts(json.loads(two["results.json"]), path)
    _check_release(out / "release", Corpus.open(path).select("val"))


def _check_counts(results: dict[str, Any], path: str) -> None:
    for split, measured in results.items():
        corpus = Corpus.open(path).select(split)
        texts = sum(
            len(region.texts) for i in range(len(corpus)) for region in corpus.record(i).regions
        )
        assert set(measured) == {MODEL, NO_PHOTO, NO_WORDS, CONSTANT}
        for found in measured.values():
            assert found["merged"]["all"]["expressions"] == texts


def _check_release(release: Path, corpus: Corpus) -> None:
    model = wholegrain.load(release)
    record = corpus.record(0)
    photo = decode_image(corpus.image_bytes(0), record.id).pixels
    texts = [text for region in record.regions for text in region.texts][:2]
    for found, text in zip(model.ground(photo, texts), texts, strict=True):
        left, top, right, bottom = found.box
        assert 0 <= left <= right <= record.width
        assert 0 <= top <= bottom <= record.height
        assert 0 <= found.score <= 1
        assert found.text == text
