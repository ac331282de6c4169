"""The data benchmark compares like with like, and its figures are what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import data, data_corpora
from benchmarks.data_plain import plain_batches
from wholegrain.data.corpus import Corpus
from wholegrain.text import Tokenizer


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_corpora, "_DRAWN", 34)
        return data_corpora.make_corpora(tmp_path_factory.mktemp("data"), None, [256])


@pytest.fixture(scope="module")
def corpus(corpora: dict[str, Path]) -> Corpus:
    return Corpus.open(corpora["as stored"])


@pytest.fixture(scope="module")
def tokenizer(corpus: Corpus) -> Tokenizer:
    return data_corpora.make_tokenizer(corpus)


def test_the_corpora_hold_the_same_photos(corpora: dict[str, Path], corpus: Corpus) -> None:
    smaller = Corpus.open(corpora["longer side 256"])
    assert len(corpus) == len(smaller) == 34
    assert {(corpus.record(i).width, corpus.record(i).height) for i in range(34)} == {(640, 480)}
    assert {smaller.record(i).width for i in range(34)} == {256}
    mean = np.mean([len(corpus.image_bytes(i)) for i in range(34)])
    assert 40_000 < mean < 250_000  # as a photo of that size has


def test_the_yardstick_decodes_the_very_crops_that_the_pipeline_draws(
    corpus: Corpus, tokenizer: Tokenizer
) -> None:
    views = data.drawn_views(corpus, tokenizer, data.OURS, turn=0)
    stream = data.make_stream(corpus, tokenizer, data.OURS, range(3))
    assert [sample for sample, *_ in views] == stream.batch(0).extras["index"].tolist()
    assert len({(view.left, view.top, view.width) for _, view, _, _ in views}) > 20
    assert data.drawn_views(corpus, tokenizer, data.OURS, turn=0) == views
    assert data.drawn_views(corpus, tokenizer, data.OURS, turn=1) != views


def test_every_way_works_through_photos(corpus: Corpus, tokenizer: Tokenizer) -> None:
    ways = [
        data.Way("whole", data.decode_whole(corpus, tokenizer, 1)),
        data.Way("crops", data.decode_views(corpus, tokenizer, data.OURS, 1)),
        data.Way("ours", data.ours(corpus, tokenizer, data.OURS)),
        data.Way("plain", data.straightforward(corpus, tokenizer)),
    ]
    times = data.compare(ways, rounds=1)
    assert all(len(found) == 1 and found[0] > 0 for found in times.values())
    assert data.ratio({"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 2.0]}, "a", "b") == 1.0


def test_the_straightforward_pipeline_reads_each_photo_once(
    corpus: Corpus, tokenizer: Tokenizer
) -> None:
    assert list(plain_batches(corpus, tokenizer, 64, 8)) == [8, 8, 8, 8]
