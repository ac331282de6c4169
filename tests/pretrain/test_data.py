"""What a run reads: the same global batches on any number of ranks."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.config import PretrainConfig
from pretrain.data import PretrainData, open_data
from wholegrain.config import from_dict
from wholegrain.data.batch import IMAGE
from wholegrain.errors import ConfigError, DataError
from wholegrain.text import Tokenizer

Settings = dict[str, Any]


def opened(settings: Settings, **data: Any) -> PretrainData:
    settings = copy.deepcopy(settings)
    run = data.pop("run", {})
    settings["data"] |= data
    settings["run"] |= run
    return open_data(from_dict(PretrainConfig, settings))


def ids(data: PretrainData, start: int, stop: int, world: int = 1) -> list[list[str]]:
    """Samples of each part of the global batches, the ranks' slices put together."""
    ranks = [list(data.stream(start, stop, rank, world)) for rank in range(world)]
    return [
        [name for batch in parts for name in batch.sample_ids] for parts in zip(*ranks, strict=True)
    ]


def test_global_batches_do_not_depend_on_ranks_or_on_where_one_begins(
    tiny_pretrain: Settings,
) -> None:
    data = opened(tiny_pretrain)
    whole = ids(data, 0, 7)
    assert all(len(batch) == 4 for batch in whole)
    # 24 images: an epoch of 6 batches holds each once.
    assert len({name for batch in whole[:6] for name in batch}) == 24
    for world in (2, 4):
        assert ids(data, 0, 7, world) == whole
    assert ids(data, 3, 7, 2) == whole[3:]
    assert ids(opened(tiny_pretrain, run={"seed": 1}), 0, 7) != whole


def test_parts_of_an_accumulated_batch_are_the_batch(tiny_pretrain: Settings) -> None:
    whole = ids(opened(tiny_pretrain), 0, 4)
    parts = ids(opened(tiny_pretrain, run={"accumulation": 2}), 0, 8, 2)
    assert [parts[2 * i] + parts[2 * i + 1] for i in range(4)] == whole


def test_the_order_does_not_depend_on_where_the_corpus_lies(
    tiny_pretrain: Settings, tiny_corpora: Any, tmp_path: Path
) -> None:
    moved = shutil.copytree(tiny_corpora.train, tmp_path / "elsewhere")
    here, there = opened(tiny_pretrain), opened(tiny_pretrain, train=[{"path": str(moved)}])
    assert ids(here, 0, 3) == ids(there, 0, 3)
    assert here.fingerprints() == there.fingerprints()


def test_each_batch_has_the_composition_of_the_mixture(
    tiny_pretrain: Settings, tiny_corpora: Any
) -> None:
    train = [
        {"path": str(tiny_corpora.train), "per_batch": 3},
        {"path": str(tiny_corpora.val), "split": "val", "per_batch": 1},
    ]
    data = opened(tiny_pretrain, train=train)
    assert list(data.fingerprints()) == ["data.train[0]", "data.train[1]"]
    for batch in data.stream(0, 9, 0, 1):
        assert sorted(batch.extras["part"].tolist()) == [0, 0, 0, 1]
    with pytest.raises(ConfigError, match=r"data\.train\[0\]\.per_batch 3 does not divide into "):
        opened(tiny_pretrain, train=train, run={"accumulation": 2})


CAPTIONS = {"captions_per_image": 1, "max_regions": 0, "max_objects": 0}
BOXES = {"captions_per_image": 0, "max_regions": 2, "max_objects": 2}


def test_one_folder_serves_two_entries_of_a_mixture(
    tiny_pretrain: Settings, tiny_corpora: Any
) -> None:
    path = str(tiny_corpora.train)
    train = [
        {"path": path, "per_batch": 2, "sampling": CAPTIONS},
        {"path": path, "per_batch": 2, "sampling": BOXES},
    ]
    data = opened(tiny_pretrain, train=train, max_tokens=5)
    assert len(data.corpora) == 1
    assert len(set(data.fingerprints().values())) == 1
    orders: list[list[str]] = [[], []]
    for batch in data.stream(0, 12, 0, 1):
        part = batch.extras["part"]
        # Images and regions in one update.
        assert set(batch.grain[part[batch.concept_image] == 0].tolist()) == {IMAGE}
        assert IMAGE not in batch.grain[part[batch.concept_image] == 1].tolist()
        assert int(batch.cu_seqlens.diff().max()) <= 5  # data.max_tokens holds for overrides too
        for name, number in zip(batch.sample_ids, part.tolist(), strict=True):
            orders[number].append(name)
    # Each entry goes through all 24 images, in an order of its own.
    assert [len(set(names)) for names in orders] == [24, 24]
    assert orders[0] != orders[1]
    assert data.most_concepts(1) == 2 * 1 + 2 * 4


def test_concepts_of_a_batch_are_bounded(tiny_pretrain: Settings) -> None:
    free = opened(tiny_pretrain)
    data = opened(tiny_pretrain, max_concepts=8)
    assert [data.most_concepts(world) for world in (1, 2, 4)] == [8, 4, 2]
    assert opened(tiny_pretrain, max_concepts=800).most_concepts(2) == free.most_concepts(2)
    for world in (1, 2):
        ranks = [data.stream(0, 6, rank, world) for rank in range(world)]
        assert max(batch.num_concepts for stream in ranks for batch in stream) == 8 // world
    assert ids(data, 0, 6, 2) == ids(free, 0, 6)
    with pytest.raises(ConfigError, match=r"data\.max_concepts 6 does not divide into 4 ranks x 1"):
        opened(tiny_pretrain, max_concepts=6).most_concepts(4)


def region_updates(corpora: Any, **changes: Any) -> Settings:
    path = str(corpora.train)
    train = [
        {"path": path, "per_batch": 2, "sampling": BOXES},
        {"path": path, "per_batch": 2, "sampling": BOXES | {"captions_per_image": 1}},
    ]
    return {"train": train, "images": 4, "texts": 16, **changes}


def test_region_batches_hold_exactly_so_many_texts(
    tiny_pretrain: Settings, tiny_corpora: Any
) -> None:
    updates = region_updates(tiny_corpora)
    data = opened(tiny_pretrain, region_updates=updates, sampling=CAPTIONS)
    assert list(data.fingerprints()) == [
        "data.train[0]",
        "data.region_updates.train[0]",
        "data.region_updates.train[1]",
    ]
    assert data.most_concepts(1) == 16 and data.most_concepts(2) == 8
    whole = list(data.region_stream(0, 6, 0, 1))
    ranks = [list(data.region_stream(0, 6, rank, 2)) for rank in range(2)]
    for batch, *halves in zip(whole, *ranks, strict=True):
        assert batch.num_images == 4 and batch.num_concepts == 16
        assert [half.num_images for half in halves] == [2, 2]
        assert [half.num_concepts for half in halves] == [8, 8]
        # The images do not depend on the number of ranks.
        assert [name for half in halves for name in half.sample_ids] == batch.sample_ids
        assert len(batch.extras["boxed"]) == int((batch.grain != IMAGE).sum()) > 0
    # Other images than the image batches', which have no box loss at all, not one of no boxes.
    images = list(data.stream(0, 6, 0, 1))
    assert [b.sample_ids for b in images] != [b.sample_ids for b in whole]
    assert all(batch.extras["boxed"] is None for batch in images)
    for changes, message in (
        (
            {"texts": 6},
            r"region_updates\.texts 6 does not divide into 4 ranks x 1 accumulated parts",
        ),
        ({"images": 2, "train": updates["train"][:1]}, r"global batch of 2 samples .* 4 ranks"),
    ):
        unsound = opened(tiny_pretrain, region_updates={**updates, **changes}, sampling=CAPTIONS)
        with pytest.raises(ConfigError, match=message):
            unsound.most_concepts(4)


def test_image_batches_with_regions_keep_their_box_loss(
    tiny_pretrain: Settings, tiny_corpora: Any
) -> None:
    mixed = opened(tiny_pretrain, region_updates=region_updates(tiny_corpora))
    alone = opened(tiny_pretrain, sampling=CAPTIONS)
    for data in (mixed, alone):
        assert next(data.stream(0, 1, 0, 1)).extras["boxed"] is not None


def test_region_batches_are_resumed_and_accumulated(
    tiny_pretrain: Settings, tiny_corpora: Any
) -> None:
    settings = {"region_updates": region_updates(tiny_corpora), "sampling": CAPTIONS}
    whole = opened(tiny_pretrain, **settings)
    expected = [batch.extras["texts"] for batch in whole.region_stream(0, 5, 0, 1)]
    assert [b.extras["texts"] for b in whole.region_stream(3, 5, 0, 1)] == expected[3:]
    workers = opened(tiny_pretrain, workers=2, **settings)
    assert [b.extras["texts"] for b in workers.region_stream(0, 5, 0, 1)] == expected
    parts = opened(tiny_pretrain, run={"accumulation": 2}, **settings)
    halves = list(parts.region_stream(0, 10, 0, 1))
    assert all(half.num_concepts == 8 for half in halves)
    assert [halves[2 * i].sample_ids + halves[2 * i + 1].sample_ids for i in range(5)] == [
        batch.sample_ids for batch in whole.region_stream(0, 5, 0, 1)
    ]


def test_validation_may_have_its_own_sampling(tiny_pretrain: Settings, tiny_corpora: Any) -> None:
    validation = {"path": str(tiny_corpora.val), "split": "val", "sampling": CAPTIONS}
    data = opened(tiny_pretrain, validation=validation)
    assert all((b.grain == IMAGE).all() for b in data.validation_stream(0, 1))


def test_capacity_bounds_every_batch_of_a_rank(tiny_pretrain: Settings) -> None:
    data = opened(tiny_pretrain)
    assert [data.most_concepts(world) for world in (1, 2, 4)] == [16, 8, 4]
    for rank in range(2):
        assert all(b.num_concepts <= 8 for b in data.stream(0, 6, rank, 2))
    everything = {"captions_per_image": None, "max_regions": 2, "max_objects": 1}
    with pytest.raises(ConfigError, match=r"data\.train\[0\]: .*captions_per_image.* need numbers"):
        opened(tiny_pretrain, sampling=everything).most_concepts(1)


def test_hidden_tokens_are_listed_on_the_host(tiny_pretrain: Settings) -> None:
    for batch in opened(tiny_pretrain).stream(0, 3, 0, 1):
        ids_of, _, masked, labels = batch.padded()
        row, column = batch.extras["hidden_row"], batch.extras["hidden_column"]
        hidden = torch.zeros_like(labels, dtype=torch.bool)
        hidden[row, column] = True
        assert torch.equal(hidden, labels != -100)
        assert torch.equal(batch.extras["hidden_label"], ids_of[row, column])
        assert torch.equal(masked[~hidden], ids_of[~hidden])
        assert (batch.grain[batch.extras["boxed"]] != 0).all()
        assert len(batch.extras["boxed"]) == int((batch.grain != 0).sum())
        keys = batch.extras["image_key"]
        same = batch.concept_image[:, None] == batch.concept_image[None]
        assert torch.equal(keys[:, None] == keys[None], same)


def test_validation_batches_are_shared_out_whole(tiny_pretrain: Settings) -> None:
    data = opened(tiny_pretrain, validation_images=7)
    alone = [batch.sample_ids for batch in data.validation_stream(0, 1, batch_size=2)]
    assert [len(batch) for batch in alone] == [2, 2, 2, 1]
    shared = [
        [batch.sample_ids for batch in data.validation_stream(rank, 2, batch_size=2)]
        for rank in range(2)
    ]
    assert shared == [alone[0::2], alone[1::2]]
    assert list(opened(tiny_pretrain, validation=None).validation_stream(0, 1)) == []


def test_the_tokenizer_is_learnt_the_same_each_time_or_named(
    tiny_pretrain: Settings, tmp_path: Path
) -> None:
    learnt = opened(tiny_pretrain).tokenizer
    assert learnt.to_json() == opened(tiny_pretrain).tokenizer.to_json()
    assert learnt.vocab_size <= 200
    learnt.save(tmp_path / "t.json")
    (tmp_path / "v.txt").write_text("\n".join(learnt.tokens(range(learnt.vocab_size))))
    for name in ("t.json", "v.txt"):
        named = opened(tiny_pretrain, tokenizer={"vocab": str(tmp_path / name)}).tokenizer
        assert named.encode("the red ball") == learnt.encode("the red ball")
    given = Tokenizer.load(tmp_path / "t.json")
    assert open_data(from_dict(PretrainConfig, tiny_pretrain), given).tokenizer is given


def test_a_split_or_corpus_that_is_not_there(
    tiny_pretrain: Settings, tiny_corpora: Any, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"'trian'.*train"):
        opened(tiny_pretrain, train=[{"path": str(tiny_corpora.train), "split": "trian"}])
    with pytest.raises(DataError, match="nowhere"):
        opened(tiny_pretrain, train=[{"path": str(tmp_path / "nowhere")}])


def test_an_empty_corpus(tiny_pretrain: Settings, tiny_corpora: Any, tmp_path: Path) -> None:
    import json

    empty = shutil.copytree(tiny_corpora.train, tmp_path / "empty")
    manifest = json.loads((empty / "manifest.json").read_text())
    manifest |= {"shards": [], "splits": {}}
    (empty / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="empty"):
        opened(tiny_pretrain, train=[{"path": str(empty)}])
