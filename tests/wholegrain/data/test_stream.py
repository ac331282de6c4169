"""The contract of the order: ids and tensors do not depend on who asks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wholegrain.data.augment import AugmentConfig
from wholegrain.data.batch import IMAGE, OBJECT, REGION, ConceptBatch
from wholegrain.data.budget import ConceptBudget
from wholegrain.data.corpus import Corpus
from wholegrain.data.masking import MaskingConfig
from wholegrain.data.record import Region
from wholegrain.data.sampling import ConceptSampling
from wholegrain.data.shard import ShardWriter
from wholegrain.data.skips import SkipPolicy
from wholegrain.data.stream import EvalStream, Source, Stream
from wholegrain.errors import ConfigError, DataError
from wholegrain.text import Tokenizer

STEPS = 9
Make = Callable[..., Any]


@pytest.fixture
def sources(memory_corpus: Make) -> list[Source]:
    """Two corpora whose epochs end at different steps, both within `STEPS`."""
    return [Source("a", memory_corpus(13, "a"), 5), Source("b", memory_corpus(10, "b"), 3)]


@pytest.fixture
def stream(tokenizer: Tokenizer) -> Callable[..., Stream]:
    def make(sources: list[Source], **changes: Any) -> Stream:
        settings: dict[str, Any] = {
            "seed": 3,
            "tokenizer": tokenizer,
            "augment": AugmentConfig(resolution=32, colour=0.3, flip="swap"),
            "sampling": ConceptSampling(),
            "masking": MaskingConfig(),
            "stop_step": STEPS,
        }
        return Stream(sources, **(settings | changes))

    return make


def _ids(batches: list[ConceptBatch]) -> list[list[str]]:
    return [batch.sample_ids for batch in batches]


def _same(a: ConceptBatch, b: ConceptBatch) -> None:
    for field in dataclasses.fields(ConceptBatch):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, torch.Tensor):
            assert torch.equal(x, y), field.name
        elif field.name != "extras":
            assert x == y, field.name
    assert a.extras.keys() == b.extras.keys()
    for key, x in a.extras.items():
        y = b.extras[key]
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, key


def _joined(parts: list[ConceptBatch]) -> ConceptBatch:
    """The slices of several ranks put together as one batch."""
    shifts = [sum(p.num_images for p in parts[:n]) for n in range(len(parts))]
    lengths = torch.cat([p.cu_seqlens.diff() for p in parts])
    extras: dict[str, Any] = {"step": parts[0].extras["step"]}
    for key in ("index", "part", "size", "region", "text_index"):
        extras[key] = torch.cat([p.extras[key] for p in parts])
    extras["texts"] = [text for p in parts for text in p.extras["texts"]]
    return ConceptBatch(
        images=torch.cat([p.images for p in parts]),
        concept_image=torch.cat([p.concept_image + s for p, s in zip(parts, shifts, strict=True)]),
        concept_box=torch.cat([p.concept_box for p in parts]),
        grain=torch.cat([p.grain for p in parts]),
        tokens=torch.cat([p.tokens for p in parts]),
        cu_seqlens=torch.cat([torch.zeros(1), lengths.cumsum(0)]).int(),
        masked_tokens=torch.cat([p.masked_tokens for p in parts]),
        masked_labels=torch.cat([p.masked_labels for p in parts]),
        sample_ids=[name for p in parts for name in p.sample_ids],
        max_length=max(p.max_length for p in parts),
        extras=extras,
    )


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_see_slices_of_the_same_global_batches(
    sources: list[Source], stream: Make, world: int
) -> None:
    alone = list(stream(sources))
    ranks = [list(stream(sources, rank=rank, world=world)) for rank in range(world)]
    assert len(alone) == STEPS
    for step, batch in enumerate(alone):
        joined = _joined([batches[step] for batches in ranks])
        assert joined.sample_ids == batch.sample_ids
        _same(joined, batch)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(sources: list[Source], stream: Make, workers: int) -> None:
    expected = list(stream(sources))
    found = list(stream(sources, workers=workers))
    assert _ids(found) == _ids(expected)
    for one, other in zip(found, expected, strict=True):
        _same(one, other)


def test_ranks_with_workers_resumed_mid_epoch(sources: list[Source], stream: Make) -> None:
    expected = list(stream(sources))
    settings = {"world": 2, "start_step": 4, "workers": 2}
    ranks = [list(stream(sources, rank=rank, **settings)) for rank in range(2)]
    for offset, batch in enumerate(expected[4:]):
        _same(_joined([batches[offset] for batches in ranks]), batch)


@pytest.mark.parametrize("start", [1, 2, 5, 8])  # epochs end within steps 2 (a) and 3 (b)
def test_a_resume_continues_exactly(sources: list[Source], stream: Make, start: int) -> None:
    expected = list(stream(sources))
    found = list(stream(sources, start_step=start))
    assert [batch.extras["step"] for batch in found] == list(range(start, STEPS))
    for one, other in zip(found, expected[start:], strict=True):
        _same(one, other)
    _same(stream(sources).batch(start), expected[start])


def test_no_sample_is_lost_or_seen_twice_in_an_epoch(sources: list[Source], stream: Make) -> None:
    names = [name for batch in stream(sources, stop_step=13) for name in batch.sample_ids]
    a = [name for name in names if name.startswith("a/")]
    b = [name for name in names if name.startswith("b/")]
    assert (len(a), len(b)) == (65, 39)
    for epoch in range(5):
        assert set(a[13 * epoch : 13 * (epoch + 1)]) == {f"a/{n}" for n in range(13)}
    for epoch in range(3):
        assert set(b[10 * epoch : 10 * (epoch + 1)]) == {f"b/{n}" for n in range(10)}
    assert a[:13] != a[13:26]


def test_the_composition_of_every_batch_is_that_of_the_mixture(
    sources: list[Source], stream: Make
) -> None:
    for batch in stream(sources):
        assert Counter(batch.extras["part"].tolist()) == {0: 5, 1: 3}
        assert Counter(name[0] for name in batch.sample_ids) == {"a": 5, "b": 3}


def test_a_sample_looks_different_in_its_next_epoch(memory_corpus: Make, stream: Make) -> None:
    batches = list(stream([Source("a", memory_corpus(6), 6)], stop_step=2))
    where = [batch.sample_ids.index("memory/2") for batch in batches]
    assert not torch.equal(batches[0].images[where[0]], batches[1].images[where[1]])


def test_another_seed_is_another_stream(sources: list[Source], stream: Make) -> None:
    assert _ids(list(stream(sources))) != _ids(list(stream(sources, seed=4)))


def test_the_global_generator_is_left_alone(sources: list[Source], stream: Make) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(stream(sources, stop_step=2, workers=workers))
        assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_holds_all_grains_and_sound_numbers(sources: list[Source], stream: Make) -> None:
    for batch in stream(sources):
        assert batch.images.shape == (8, 3, 32, 32)
        assert set(batch.grain.tolist()) == {IMAGE, REGION, OBJECT}
        assert (batch.concept_image.diff() >= 0).all()
        captions = batch.grain == IMAGE
        assert (batch.concept_box[captions] == torch.tensor([0.5, 0.5, 1, 1])).all()
        low = batch.concept_box[:, :2] - batch.concept_box[:, 2:] / 2
        high = batch.concept_box[:, :2] + batch.concept_box[:, 2:] / 2
        assert low.min() >= -1e-6 and high.max() <= 1 + 1e-6
        assert (batch.concept_box[:, 2:] > 0).all()
        hidden = batch.masked_labels >= 0
        assert torch.equal(batch.tokens[hidden], batch.masked_labels[hidden])
        assert torch.equal(batch.tokens[~hidden], batch.masked_tokens[~hidden])
        assert hidden.sum() >= batch.num_concepts  # at least one token of each text


def test_a_source_may_have_its_own_sampling(memory_corpus: Make, stream: Make) -> None:
    captions = ConceptSampling(max_regions=0, max_objects=0)
    mixture = [
        Source("a", memory_corpus(8, "a"), 4),
        Source("b", memory_corpus(8, "b"), 4, captions),
    ]
    for batch in stream(mixture, stop_step=2):
        part = batch.extras["part"][batch.concept_image]
        assert set(batch.grain[part == 1].tolist()) == {IMAGE}
        assert len(set(batch.grain[part == 0].tolist())) == 3


def test_a_world_that_does_not_divide_the_batch_is_refused_at_once(
    sources: list[Source], stream: Make
) -> None:
    with pytest.raises(ConfigError, match=r"8 samples .* 3 ranks"):
        stream(sources, world=3)


# Bad samples


def _spoiled(corpus: Any) -> Any:
    corpus.images[2] = corpus.images[2][:400]
    corpus.images[3] = b"<html>not found</html>"
    corpus.records[7] = dataclasses.replace(corpus.records[7], width=41)
    return corpus


def test_bad_samples_are_replaced_by_the_next_and_counted(
    memory_corpus: Make, stream: Make
) -> None:
    corpus = _spoiled(memory_corpus(12))
    training = stream([Source("a", corpus, 4)], stop_step=3)
    names = Counter(name for batch in training for name in batch.sample_ids)
    expected = Counter(f"memory/{n}" for n in range(12) if n not in (2, 3, 7))
    expected.update(["memory/4", "memory/4", "memory/8"])  # in place of 2 and 3, and of 7
    assert names == expected
    # Sample 3 is met twice: in its own place and on the way from 2 to 4.
    assert training.ledger.causes == {"truncated": 1, "not an image": 2, "wrong size": 1}
    assert training.ledger.read == 16


@pytest.mark.parametrize("changes", [{"workers": 2}, {"start_step": 1}])
def test_replacements_are_the_same_whoever_asks(
    memory_corpus: Make, stream: Make, changes: dict[str, int]
) -> None:
    sources = [Source("a", _spoiled(memory_corpus(12)), 4)]
    expected = list(stream(sources))[changes.get("start_step", 0) :]
    for one, other in zip(stream(sources, **changes), expected, strict=True):
        _same(one, other)


def test_a_replacement_is_no_copy(memory_corpus: Make, stream: Make) -> None:
    corpus = _spoiled(memory_corpus(12))
    batch = stream([Source("a", corpus, 12)], stop_step=1).batch(0)
    places = [n for n, name in enumerate(batch.sample_ids) if name == "memory/4"]
    images = {batch.images[place].numpy().tobytes() for place in places}
    assert len(places) == 3 and len(images) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_run_with_place_and_remedy(
    memory_corpus: Make, stream: Make, workers: int
) -> None:
    policy = SkipPolicy(max_share=0.05, always_allowed=2)
    training = stream([Source("a", _spoiled(memory_corpus(12)), 4)], skips=policy, workers=workers)
    with pytest.raises(DataError, match=r"sample \d+ \(memory/\d+\).*lint") as caught:
        list(training)
    assert type(caught.value) is DataError


def test_a_corpus_of_bad_samples_only_ends_at_once(memory_corpus: Make, stream: Make) -> None:
    corpus = memory_corpus(5)
    corpus.images = [b""] * 5
    with pytest.raises(DataError, match=r"'a': 5 samples in a row are bad.*no bytes"):
        list(stream([Source("a", corpus, 4)]))


def test_texts_without_words_are_left_out_and_a_record_of_them_is_bad(
    memory_corpus: Make, stream: Make
) -> None:
    corpus = memory_corpus(6)
    corpus.records[1] = dataclasses.replace(corpus.records[1], captions=("???",), regions=())
    corpus.records[2] = dataclasses.replace(corpus.records[2], captions=("!!", "..."))
    training = stream([Source("a", corpus, 6)], stop_step=1)
    batch = next(iter(training))
    assert training.ledger.causes == {"no text": 1}
    row = batch.sample_ids.index("memory/2")
    assert IMAGE not in batch.grain[batch.concept_image == row].tolist()


def test_swapping_sides_exchanges_words_with_the_pixels(
    memory_corpus: Make, tokenizer: Tokenizer, stream: Make
) -> None:
    corpus = memory_corpus(16)
    said = "left bright left"
    corpus.records = [dataclasses.replace(r, captions=(said,), regions=()) for r in corpus.records]
    augment = AugmentConfig(resolution=32, mode="none", colour=0.0, flip="swap")
    batch = stream([Source("a", corpus, 16)], augment=augment, stop_step=1).batch(0)
    straight = EvalStream(corpus, batch_size=16, tokenizer=tokenizer, resolution=32)
    plain = dict(zip((b := next(iter(straight))).sample_ids, b.images, strict=True))
    outcomes = set()
    for name, image, text in zip(
        batch.sample_ids, batch.images, batch.extras["texts"], strict=True
    ):
        flipped = text == "right bright right"
        outcomes.add(flipped)
        assert text == (said if not flipped else "right bright right")
        shown = image.flip(-1) if flipped else image
        assert torch.equal(shown, plain[name])
    assert outcomes == {True, False}
    careful = AugmentConfig(resolution=32, mode="none", colour=0.0, flip="careful")
    batch = stream([Source("a", corpus, 16)], augment=careful, stop_step=1).batch(0)
    for name, image in zip(batch.sample_ids, batch.images, strict=True):
        assert torch.equal(image, plain[name])


def _directed(corpus: Any, text: str) -> Any:
    """Every record speaks of one side in the phrase of its one region, and shows it there."""
    region = Region("region", (0.0, 4.0, 20.0, 30.0), (text,))
    corpus.records = [
        dataclasses.replace(r, captions=("a photo",), regions=(region,)) for r in corpus.records
    ]
    return corpus


def test_swapped_phrases_stay_true_of_their_mirrored_boxes(
    memory_corpus: Make, stream: Make
) -> None:
    corpus = _directed(memory_corpus(16), "the left bright child")
    augment = AugmentConfig(resolution=32, mode="none", colour=0.0, flip="swap")
    batch = stream([Source("a", corpus, 16)], augment=augment, stop_step=1).batch(0)
    seen = set()
    for grain, text, box in zip(
        batch.grain.tolist(), batch.extras["texts"], batch.concept_box, strict=True
    ):
        if grain == REGION:
            side = "left" if box[0] < 0.5 else "right"
            assert text == f"the {side} bright child"
            seen.add(side)
    assert seen == {"left", "right"}


@pytest.mark.parametrize(("text", "flipped"), [("the left child", False), ("bright", True)])
def test_careful_refuses_to_mirror_what_speaks_of_sides(
    memory_corpus: Make, stream: Make, text: str, flipped: bool
) -> None:
    corpus = _directed(memory_corpus(16), text)
    careful, never = (
        AugmentConfig(resolution=32, mode="none", colour=0.0, flip=flip)
        for flip in ("careful", "never")
    )
    # Also where the phrase itself is not taken: another epoch takes it of the same view.
    for rules in (ConceptSampling(), ConceptSampling(max_regions=0)):
        settings = {"sampling": rules, "stop_step": 1}
        batch, plain = (
            stream([Source("a", corpus, 16)], augment=augment, **settings).batch(0)
            for augment in (careful, never)
        )
        assert batch.sample_ids == plain.sample_ids
        mirrored = (batch.images == plain.images.flip(-1)).flatten(1).all(dim=1)
        assert torch.equal(batch.images[~mirrored], plain.images[~mirrored])
        assert bool(mirrored.any()) == flipped
        if rules.max_regions:
            places = batch.concept_box[batch.grain == REGION, 0]
            assert torch.equal(places > 0.5, mirrored)
        assert set(batch.extras["texts"]) <= {text, "a photo"}


# Budgets


@pytest.mark.parametrize("budget", [ConceptBudget(20), ConceptBudget(90, exact=True)])
def test_a_budget_does_not_depend_on_workers_or_on_where_one_begins(
    sources: list[Source], stream: Make, budget: ConceptBudget
) -> None:
    free = list(stream(sources))
    expected = list(stream(sources, budget=budget))
    assert [b.num_concepts for b in expected] == [budget.concepts] * STEPS
    assert _ids(expected) == _ids(free)
    for changes in ({"workers": 2}, {"start_step": 4}):
        found = list(stream(sources, budget=budget, **changes))
        for one, other in zip(found, expected[changes.get("start_step", 0) :], strict=True):
            _same(one, other)
    for kept, whole in zip(expected, free, strict=True):
        assert torch.equal(kept.images, whole.images)
        assert set(kept.extras["texts"]) <= set(whole.extras["texts"])


def test_every_rank_has_a_budget_of_its_own(sources: list[Source], stream: Make) -> None:
    budget = ConceptBudget(11, exact=True)
    for rank in range(2):
        batches = list(stream(sources, budget=budget, rank=rank, world=2))
        assert [b.num_concepts for b in batches] == [11] * STEPS


def test_the_slots_of_an_image_begin_with_its_caption(memory_corpus: Make, stream: Make) -> None:
    rules = ConceptSampling(max_concepts=3)
    for batch in stream([Source("a", memory_corpus(8), 4)], sampling=rules, stop_step=4):
        for image in range(4):
            grains = batch.grain[batch.concept_image == image].tolist()
            assert grains[0] == IMAGE and IMAGE not in grains[1:] and len(grains) <= 3


# Evaluation


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (3, 1), (8, 0)])
def test_evaluation_sees_every_text_once_on_any_number_of_ranks(
    memory_corpus: Make, tokenizer: Tokenizer, world: int, workers: int
) -> None:
    corpus = memory_corpus(11)
    found: Counter[tuple[int, int, int]] = Counter()
    for rank in range(world):
        for batch in EvalStream(
            corpus, batch_size=4, tokenizer=tokenizer, resolution=32, rank=rank, world=world,
            workers=workers,
        ):  # fmt: skip
            index = batch.extras["index"][batch.concept_image].tolist()
            region, text = batch.extras["region"].tolist(), batch.extras["text_index"].tolist()
            found.update(zip(index, region, text, strict=True))
    texts = [(-1, 0), (-1, 1), (0, 0), (0, 1), (1, 0), (2, 0)]
    assert found == Counter((i, r, t) for i in range(11) for r, t in texts)


def test_evaluation_leaves_nothing_to_chance(memory_corpus: Make, tokenizer: Tokenizer) -> None:
    def run() -> list[ConceptBatch]:
        return list(
            EvalStream(
                memory_corpus(7), batch_size=3, tokenizer=tokenizer, resolution=32,
                masking=MaskingConfig(), limit=5,
            )
        )  # fmt: skip

    first, second = run(), run()
    assert [batch.num_images for batch in first] == [3, 2]
    for one, other in zip(first, second, strict=True):
        _same(one, other)
    assert first[0].extras["texts"][:2] == [
        "a child number 0 on the stairs",
        "picture 0 of a girl",
    ]
    expected = torch.tensor([12 / 60, 12 / 40, 20 / 60, 20 / 40])
    expected[:2] = torch.tensor([10 / 60, 15 / 40])
    torch.testing.assert_close(first[0].concept_box[2], expected)


def test_evaluation_leaves_bad_samples_out(memory_corpus: Make, tokenizer: Tokenizer) -> None:
    evaluation = EvalStream(
        _spoiled(memory_corpus(8)), batch_size=1, tokenizer=tokenizer, resolution=32
    )
    names = [name for batch in evaluation for name in batch.sample_ids]
    assert names == [f"memory/{n}" for n in (0, 1, 4, 5, 6)]
    assert evaluation.ledger.skipped == 3
    assert len(evaluation) == 8


# The real thing


def test_a_corpus_on_disk_streams_like_one_in_memory(
    memory_corpus: Make, stream: Make, tmp_path: Path
) -> None:
    memory = memory_corpus(10)
    source = {"key": "test", "converter": "test", "arguments": {}}
    with ShardWriter(tmp_path / "corpus", source=source, max_samples=4) as writer:
        for record, image in zip(memory.records, memory.images, strict=True):
            writer.write(record, image, "jpg")
    corpus = Corpus.open(tmp_path / "corpus")
    expected = list(stream([Source("a", corpus, 4)]))
    memory.fingerprint = corpus.fingerprint
    for workers in (0, 2):
        found = stream([Source("a", corpus, 4)], workers=workers)
        for one, other in zip(found, expected, strict=True):
            _same(one, other)
    for one, other in zip(stream([Source("a", memory, 4)]), expected, strict=True):
        _same(one, other)


def test_a_changed_corpus_is_another_order(memory_corpus: Make, stream: Make) -> None:
    corpus = memory_corpus(20)
    before = _ids(list(stream([Source("a", corpus, 5)])))
    corpus.fingerprint = "other content"
    assert _ids(list(stream([Source("a", corpus, 5)]))) != before
