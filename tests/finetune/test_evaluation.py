"""Each expression is answered once, on one process and on two, with the same figures."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import finetune.evaluation as subject
from finetune.evaluation import EvalBatch, evaluate, hide_photo, hide_words, load_batch
from finetune.samples import corpus_expressions
from tests.finetune import rank_program as program
from wholegrain.data.corpus import Corpus
from wholegrain.data.record import Record
from wholegrain.errors import DataError
from wholegrain.text import Tokenizer

PROGRAM = Path(program.__file__)


def _true_boxes(batch: EvalBatch) -> tuple[Tensor, Tensor]:
    boxes = torch.tensor([one.box for one in batch.expressions], dtype=torch.float64)
    corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    return corners, torch.ones(len(boxes))


def test_true_boxes_score_full(corpus: Corpus) -> None:
    calls = []
    found = evaluate(
        _true_boxes, corpus, resolution=16, max_images=3, on_batch=lambda *x: calls.append(x)
    )
    assert found.summary().values["mean_iou"] == 1.0
    assert [one.id for one in found.predictions] == [one.id for one in corpus_expressions(corpus)]
    assert calls == [(i + 1, 4) for i in range(4)]
    assert not torch.is_inference_mode_enabled()


def test_workers_change_nothing(corpus: Corpus) -> None:
    batching = program.BATCHING
    plain = evaluate(program.predict, corpus, workers=0, **batching)
    threaded = evaluate(program.predict, corpus, workers=3, **batching)
    assert plain.predictions == threaded.predictions


@pytest.mark.ranks
def test_two_processes_give_identical_figures(
    corpus_folder: Path, tmp_path: Path, repository: Path
) -> None:
    # Threads sum in another order; the processes below have one each, so this one has too.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = evaluate(program.predict, Corpus.open(corpus_folder), **program.BATCHING)
    torch.set_num_threads(threads)
    expected = alone.write(tmp_path / "alone.jsonl").read_bytes()
    environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(PROGRAM), str(corpus_folder), str(tmp_path)]
    running = [
        subprocess.Popen([*arguments, str(rank), "2"], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1].decode() for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], errors
    for rank in range(2):
        assert (tmp_path / f"predictions-{rank}.jsonl").read_bytes() == expected
        assert json.loads((tmp_path / f"figures-{rank}.json").read_text()) == alone.to_dict()
    # One process failed the second time: it says why, the other says which.
    assert (tmp_path / "error-1").read_text() == "out of memory"
    assert "process 1 of 2 failed" in (tmp_path / "error-0").read_text()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda rows: rows[1:], "1 missing (image/0/0/0)"),
        (lambda rows: np.concatenate([rows, rows[:2]]), "2 answered more than once (image/0/0/0"),
    ],
)
def test_lost_and_repeated_answers_are_errors(
    rows, message: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = subject._gather
    monkeypatch.setattr(subject, "_gather", lambda *given: rows(gather(*given)))
    with pytest.raises(DataError) as caught:
        evaluate(_true_boxes, corpus, resolution=16)
    assert message in str(caught.value)


def test_answers_that_are_no_answers(corpus: Corpus) -> None:
    def nan(batch: EvalBatch) -> tuple[Tensor, Tensor]:
        boxes, scores = _true_boxes(batch)
        boxes[1, 2] = float("nan")
        return boxes, scores

    with pytest.raises(DataError, match=r"image/1/0/0 \('thing 0 of 1, phrase 0'\).*not finite"):
        evaluate(nan, corpus, resolution=16)
    with pytest.raises(ValueError, match=r"need boxes \(\d+, 4\)"):
        evaluate(lambda batch: (torch.zeros(1, 4), torch.zeros(1)), corpus, resolution=16)


def test_batch_holds_each_image_once(corpus: Corpus) -> None:
    expressions = corpus_expressions(corpus)[:7]
    batch = load_batch(corpus, expressions, 16)
    images = list(dict.fromkeys(one.record for one in expressions))
    assert batch.images.shape == (len(images), 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert [images[row] for row in batch.image_index] == [one.record for one in expressions]
    assert batch.sizes.tolist() == [
        [corpus.record(i).width, corpus.record(i).height] for i in images
    ]


def test_texts_are_encoded_as_everywhere_and_one_without_words_is_cls(corpus: Corpus) -> None:
    batch = load_batch(corpus, corpus_expressions(corpus)[:4], 16)
    tokenizer = Tokenizer.train(batch.texts, 60)
    ids, mask = batch.encode_texts(tokenizer, 5)
    expected_ids, expected_mask = tokenizer.encode_batch(batch.texts, 5)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(mask, expected_mask)
    ids, mask = replace(batch, texts=["?", batch.texts[1], "..."]).encode_texts(tokenizer, 5)
    assert torch.equal(ids[1], expected_ids[1])
    for row in (0, 2):
        assert ids[row].tolist() == [tokenizer.cls_id, *[tokenizer.pad_id] * 4]
        assert mask[row].tolist() == [True, *[False] * 4]
    ids, mask = replace(batch, texts=["?"]).encode_texts(tokenizer, 5)
    assert (ids.tolist(), mask.tolist()) == ([[tokenizer.cls_id]], [[True]])


def test_to_pixels_undoes_the_squeeze(corpus: Corpus) -> None:
    expressions = corpus_expressions(corpus)
    batch = load_batch(corpus, expressions, 16)
    unit = torch.tensor(
        [
            [(x + w / 2) / one.width, (y + h / 2) / one.height, w / one.width, h / one.height]
            for one in expressions
            for x, y, w, h in [one.box]
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(batch.to_pixels(unit), _true_boxes(batch)[0])
    beyond = batch.to_pixels(torch.tensor([[0.5, 0.5, 3.0, 3.0]]).expand(len(expressions), 4))
    assert beyond[-1].tolist() == [0, 0, expressions[-1].width, expressions[-1].height]


def test_hidden_inputs_cannot_be_seen(corpus: Corpus) -> None:
    batch = load_batch(corpus, corpus_expressions(corpus), 16)
    seen: list[EvalBatch] = []

    def spy(given: EvalBatch) -> tuple[Tensor, Tensor]:
        seen.append(given)
        return program.predict(given)

    hide_photo(spy)(batch)
    hide_words(spy)(batch)
    without_photo, without_words = seen
    assert without_photo.texts == batch.texts
    assert without_photo.images.shape == batch.images.shape
    assert (without_photo.images == without_photo.images[:1, :, :1, :1]).all()
    assert set(without_words.texts) == {"the thing"}
    assert (without_words.images == batch.images).all()


class Damaged:
    """A corpus view whose third image is not what its record says."""

    def __init__(self, corpus: Corpus, image: bytes) -> None:
        self._corpus, self._image = corpus, image

    def __len__(self) -> int:
        return len(self._corpus)

    def record(self, index: int, /) -> Record:
        return self._corpus.record(index)

    def image_bytes(self, index: int, /) -> bytes:
        return self._image if index == 3 else self._corpus.image_bytes(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_stops_the_evaluation(corpus: Corpus, workers: int) -> None:
    """A figure over the rest would not be the benchmark's."""
    for image in (b"<html>", corpus.image_bytes(5)):
        with pytest.raises(DataError, match="image/3"):
            evaluate(_true_boxes, Damaged(corpus, image), resolution=16, workers=workers)
