"""One sample: what of a record becomes of it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wholegrain.data.augment import AugmentConfig
from wholegrain.data.batch import Sample
from wholegrain.data.decode import ImageError
from wholegrain.data.masking import MaskingConfig
from wholegrain.data.prepare import Job, Preparer
from wholegrain.data.record import Region
from wholegrain.data.sampling import ConceptSampling
from wholegrain.data.storage import StorageGone
from wholegrain.text import Tokenizer

Make = Callable[..., Any]


def _prepared(corpus: Any, tokenizer: Tokenizer, seed: int, **augment: Any) -> Sample:
    preparer = Preparer(tokenizer, AugmentConfig(resolution=64, **augment), MaskingConfig())
    sampling = ConceptSampling(max_regions=None, max_objects=None, captions_per_image=None)
    return preparer(corpus, 0, sampling, np.random.default_rng(seed))


def _with(corpus: Any, **changes: Any) -> Any:
    corpus.records[0] = dataclasses.replace(corpus.records[0], **changes)
    return corpus


def test_swap_exchanges_texts_of_mirrored_photos_only(
    memory_corpus: Make, tokenizer: Tokenizer
) -> None:
    texts = {"left": 0, "right": 0}
    corpus = _with(memory_corpus(1), captions=("a dog on the left, bright",), regions=())
    for seed in range(20):
        (concept,) = _prepared(corpus, tokenizer, seed, flip="swap", mode="none").concepts
        side = "right" if "right" in concept.text.split(",")[0] else "left"
        assert concept.text == f"a dog on the {side}, bright"
        assert concept.ids == tokenizer.encode(concept.text)
        texts[side] += 1
    assert min(texts.values()) > 3


@pytest.mark.parametrize("where", ["caption", "attribute"])
def test_an_ambiguous_text_anywhere_keeps_the_photo_as_it_is(
    memory_corpus: Make, tokenizer: Tokenizer, where: str
) -> None:
    corpus = memory_corpus(1)
    if where == "caption":
        corpus = _with(corpus, captions=("a child", "right behind the girl"))
    else:
        region = Region("object", (5.0, 5.0, 20.0, 20.0), ("car",), attributes=("L shaped",))
        corpus = _with(corpus, regions=(region,))
    plain = [_prepared(corpus, tokenizer, s, flip="never", colour=0.0) for s in range(12)]
    swap = {"flip": "swap", "flip_probability": 1.0, "colour": 0.0}
    for seed, sample in enumerate(plain):
        assert _prepared(corpus, tokenizer, seed, **swap).concepts[0].box == sample.concepts[0].box
        assert (_prepared(corpus, tokenizer, seed, **swap).image == sample.image).all()


@pytest.mark.parametrize("boxes", ["still", "move"])
def test_the_chosen_region_survives_every_augmentation(
    memory_corpus: Make, tokenizer: Tokenizer, boxes: str
) -> None:
    # In a corner and small: a turn by 30 degrees would take it out of sight.
    region = Region("region", (0.0, 0.0, 6.0, 5.0), ("a dog",))
    corpus = _with(memory_corpus(1), captions=(), regions=(region,))
    moved = set()
    for seed in range(60):
        sample = _prepared(
            corpus,
            tokenizer,
            seed,
            mode="none",
            flip="blind",
            randaugment_ops=3,
            randaugment_magnitude=10,
            randaugment_boxes=boxes,
        )
        (concept,) = sample.concepts
        assert concept.region == 0
        moved.add(concept.box)
    assert len(moved) == 2 if boxes == "still" else len(moved) > 10  # mirrored or not


def test_a_region_out_of_sight_brings_no_concept(memory_corpus: Make, tokenizer: Tokenizer) -> None:
    left = Region("region", (0.0, 0.0, 20.0, 40.0), ("a dog",))
    right = Region("region", (40.0, 0.0, 20.0, 40.0), ("a girl",))
    corpus = _with(memory_corpus(1), captions=(), regions=(left, right))
    counts = {1: 0, 2: 0}
    for seed in range(60):
        sample = _prepared(corpus, tokenizer, seed, mode="xvlm", flip="never", colour=0.0)
        counts[len(sample.concepts)] += 1
        for concept in sample.concepts:
            x, _, width, _ = concept.box
            assert x - width / 2 >= -1e-9 and x + width / 2 <= 1 + 1e-9
    assert min(counts.values()) > 5


def test_many_at_once_are_as_each_alone(memory_corpus: Make, tokenizer: Tokenizer) -> None:
    corpus = memory_corpus(9)
    corpus.images[3] = b"no image"
    corpus = _with(corpus, captions=("???",), regions=())
    rules = AugmentConfig(resolution=48, randaugment_ops=2, randaugment_boxes="move")
    preparer = Preparer(tokenizer, rules, MaskingConfig())
    sampling = ConceptSampling()

    def job(index: int) -> Job:
        return Job(corpus, index, sampling, np.random.default_rng(index), part=2)

    outcomes = preparer.prepare([job(index) for index in (4, 0, 3, 8, 4)])
    for index, outcome in zip((4, 0, 3, 8, 4), outcomes, strict=True):
        if index in (0, 3):
            assert isinstance(outcome, ImageError)
            assert outcome.cause == ("no text" if index == 0 else "not an image")
            with pytest.raises(ImageError, match=f"sample {index} "):
                preparer(corpus, index, sampling, np.random.default_rng(index))
            continue
        assert isinstance(outcome, Sample)
        alone = preparer(corpus, index, sampling, np.random.default_rng(index), part=2)
        assert torch.equal(outcome.image, alone.image)
        assert dataclasses.replace(outcome, image=alone.image) == alone
    assert preparer.prepare([]) == []


def test_storage_that_is_gone_is_nobodys_fault(memory_corpus: Make, tokenizer: Tokenizer) -> None:
    corpus = memory_corpus(3)

    def gone(i: int) -> bytes:
        raise StorageGone("s3://bucket/shard: gave no byte for 60 s")

    corpus.image_bytes = gone
    preparer = Preparer(tokenizer, AugmentConfig(resolution=48), None)
    with pytest.raises(StorageGone):
        preparer.prepare([Job(corpus, 0, ConceptSampling(), np.random.default_rng(0))])


PROGRAM = """
import hashlib, sys
import numpy as np, torch
from tests.wholegrain.data.conftest import MemoryCorpus, _image, _record
from wholegrain.data.augment import AugmentConfig
from wholegrain.data.masking import MaskingConfig
from wholegrain.data.permutation import keyed_rng
from wholegrain.data.prepare import Preparer
from wholegrain.data.sampling import ConceptSampling
from wholegrain.text import Tokenizer

torch.set_num_threads(int(sys.argv[1]))
order = range(12) if sys.argv[2] == "forward" else range(11, -1, -1)
corpus = MemoryCorpus("m", [_record("m", n) for n in range(12)], [_image(n) for n in range(12)])
tokenizer = Tokenizer.train(["a child on the stairs picture of a girl"] * 3, 60)
rules = AugmentConfig(resolution=96, randaugment_ops=3, randaugment_boxes="move", flip="swap")
preparer = Preparer(tokenizer, rules, MaskingConfig())
found = {}
for index in order:
    for epoch in (0, 1):
        rng = keyed_rng("sample", "m", 7, epoch, index)
        sample = preparer(corpus, index, ConceptSampling(), rng)
        digest = hashlib.sha256(sample.image.numpy().tobytes())
        digest.update(repr(sample.concepts).encode())
        found[index, epoch] = digest.hexdigest()
print(len(set(found.values())), sorted(found.items()))
"""


def test_two_processes_make_the_same_bytes(repository: Path) -> None:
    """Another hash seed, another number of threads, another order of samples."""
    printed = []
    for seed, threads, order in (("1", "1", "forward"), ("2", "2", "backward")):
        command = [sys.executable, "-c", PROGRAM, threads, order]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            command, cwd=repository, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0] == printed[1]
    assert printed[0].startswith("24 ")  # and no two samples or epochs are alike
