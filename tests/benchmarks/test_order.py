"""The order's benchmark opens a corpus of the size that it says."""

import json
from pathlib import Path

import pytest

from benchmarks import order
from wholegrain.data.corpus import Corpus


def test_it_measures_a_corpus_of_that_many_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "SECONDS", 0.05)
    order.make_corpus(tmp_path, 10**7)
    assert len(Corpus.open(tmp_path)) == 10**7
    assert len(Corpus.open(tmp_path).shards) == 10**4
    figures = order.measure(tmp_path)
    assert figures["rows"] == 10**7
    assert figures["uniform_positions_per_s"] > 0 and figures["block-wise_positions_per_s"] > 0
    json.dumps(figures)
