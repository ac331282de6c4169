from __future__ import annotations

import numpy as np
import pytest
import torch

from wholegrain.data.batch import (
    IGNORED,
    IMAGE,
    OBJECT,
    REGION,
    WHOLE_IMAGE,
    Concept,
    ConceptBatch,
    Sample,
    collate,
)


def _sample(number: int, texts: list[list[int]]) -> Sample:
    concepts = [
        Concept(
            grain=(IMAGE, REGION, OBJECT)[place % 3],
            box=WHOLE_IMAGE if place == 0 else (0.25, 0.5, 0.1 * place, 0.2),
            text=f"text {number}.{place}",
            ids=ids,
            masked_ids=[ids[0]] + [4] * (len(ids) - 1),
            labels=[IGNORED, *ids[1:]],
            region=place - 1,
            text_index=place,
        )
        for place, ids in enumerate(texts)
    ]
    image = torch.full((3, 8, 8), number, dtype=torch.uint8)
    return Sample(f"id{number}", image, concepts, number + 100, 1, (60, 40))


def _batch() -> ConceptBatch:
    return collate(
        [_sample(0, [[2, 5, 6], [2, 7]]), _sample(1, []), _sample(2, [[2, 8, 9, 10]])], pad_id=1
    )


def test_collate_packs_in_order() -> None:
    batch = _batch()
    assert (batch.num_images, batch.num_concepts) == (3, 3)
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (3, 3, 8, 8)
    assert batch.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch.concept_image.tolist() == [0, 0, 2]
    assert batch.grain.tolist() == [IMAGE, REGION, IMAGE]
    assert batch.concept_box.tolist()[0] == list(WHOLE_IMAGE)
    assert batch.tokens.tolist() == [2, 5, 6, 2, 7, 2, 8, 9, 10]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 9]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.masked_tokens.tolist() == [2, 4, 4, 2, 4, 2, 4, 4, 4]
    assert batch.masked_labels.tolist() == [-100, 5, 6, -100, 7, -100, 8, 9, 10]
    assert batch.sample_ids == ["id0", "id1", "id2"]
    assert batch.extras["index"].tolist() == [100, 101, 102]
    assert batch.extras["part"].tolist() == [1, 1, 1]
    assert batch.extras["size"].tolist() == [[60, 40]] * 3
    assert batch.extras["region"].tolist() == [-1, 0, -1]
    assert batch.extras["texts"] == ["text 0.0", "text 0.1", "text 2.0"]


def test_padded_form_holds_the_same_texts() -> None:
    batch = _batch()
    ids, mask, masked, labels = batch.padded()
    assert ids.tolist() == [[2, 5, 6, 1], [2, 7, 1, 1], [2, 8, 9, 10]]
    assert mask.tolist() == [[True] * 3 + [False], [True] * 2 + [False] * 2, [True] * 4]
    assert masked.tolist() == [[2, 4, 4, 1], [2, 4, 1, 1], [2, 4, 4, 4]]
    assert labels.tolist()[1] == [-100, 7, -100, -100]
    assert torch.equal(ids[mask], batch.tokens)
    assert torch.equal(labels[mask], batch.masked_labels)


def test_padded_to_a_given_length_fills_up_or_cuts() -> None:
    batch = _batch()
    assert batch.padded(6)[0].shape == (3, 6)
    ids, mask, _, labels = batch.padded(2)
    assert ids.tolist() == [[2, 5], [2, 7], [2, 8]]
    assert mask.all() and labels.shape == (3, 2)


def test_padded_reads_nothing_back_from_the_device() -> None:
    # A meta tensor has no values: any read would raise.
    ids, mask, masked, labels = _batch().to("meta").padded()
    assert {t.device.type for t in (ids, mask, masked, labels)} == {"meta"}
    assert ids.shape == (3, 4)


def test_a_batch_without_any_concept_is_whole() -> None:
    batch = collate([_sample(0, [])])
    assert batch.num_concepts == 0
    assert batch.concept_box.shape == (0, 4)
    assert batch.cu_seqlens.tolist() == [0]
    ids, mask, _, _ = batch.padded()
    assert ids.shape == (0, 1) and mask.shape == (0, 1)


def test_to_moves_every_tensor_and_leaves_the_batch_itself() -> None:
    batch = _batch()
    moved = batch.to("meta")
    tensors = [v for v in (*vars(moved).values(), *moved.extras.values()) if torch.is_tensor(v)]
    assert len(tensors) == 13
    assert all(t.device.type == "meta" for t in tensors)
    assert batch.device.type == "cpu" and batch.extras["index"].device.type == "cpu"
    assert moved.sample_ids == batch.sample_ids and moved.max_length == batch.max_length


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        collate([])


def test_random_texts_survive_packing_and_padding() -> None:
    rng = np.random.default_rng(0)
    texts = [[2, *rng.integers(5, 99, rng.integers(1, 12)).tolist()] for _ in range(20)]
    ids, mask, _, _ = collate([_sample(0, texts[:8]), _sample(1, texts[8:])]).padded()
    assert [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)] == texts


def test_images_that_lie_in_a_row_are_not_copied() -> None:
    base = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    concept = Concept(IMAGE, WHOLE_IMAGE, "a", [1, 2], [1, 2], [-100, -100])
    samples = [Sample(str(row), base[row], [concept]) for row in range(4)]
    assert collate(samples).images.data_ptr() == base.data_ptr()
    for chosen in ([0, 1, 3], [1, 0, 2], [0, 2], [3], [1, 2, 3]):
        images = collate([samples[row] for row in chosen]).images
        assert torch.equal(images, base[chosen])
    apart = [Sample("x", base[0].clone(), [concept]), *samples[1:]]
    assert torch.equal(collate(apart).images, base)
    assert torch.equal(
        collate([Sample("y", base[0].transpose(1, 2), [concept])]).images[0], base[0].mT
    )
    turned = [Sample("z", base[0], [concept]), Sample("t", base[1].transpose(1, 2), [concept])]
    assert torch.equal(collate(turned).images, torch.stack([base[0], base[1].mT]))
