"""Visual concepts: pooled regions, whole images, and their union."""

import torch

from wholegrain.model.concepts import (
    ImageFeatures,
    VisualConcepts,
    join,
    pooled_concepts,
    whole_images,
)

torch.manual_seed(0)
FEATURES = ImageFeatures(torch.randn(2, 3), torch.randn(2, 4, 3), (2, 2))
IMAGE = torch.tensor([1, 0, 1])
MASK = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]]).bool()


def test_a_region_is_the_mean_of_its_patches() -> None:
    concepts = pooled_concepts(FEATURES, IMAGE, MASK)
    patches = FEATURES.patches
    assert len(concepts) == 3
    torch.testing.assert_close(concepts.cls[0], (patches[1, 0] + patches[1, 2]) / 2)
    torch.testing.assert_close(concepts.cls[1], patches[0, 3])
    torch.testing.assert_close(concepts.cls[2], patches[1].mean(0))
    assert concepts.patches is patches, "patches are shared, not copied"


def test_sequence_is_the_vector_and_all_patches() -> None:
    concepts = pooled_concepts(FEATURES, IMAGE, MASK)
    sequence = concepts.sequence()
    assert sequence.shape == (3, 5, 3)
    assert torch.equal(sequence[:, 0], concepts.cls)
    assert torch.equal(sequence[0, 1:], FEATURES.patches[1])


def test_whole_images() -> None:
    concepts = whole_images(FEATURES)
    assert torch.equal(concepts.cls, FEATURES.cls)
    assert concepts.patch_row.tolist() == [0, 1]
    assert concepts.mask.all()


def test_join_shares_patches_that_are_one() -> None:
    first, second = pooled_concepts(FEATURES, IMAGE, MASK), whole_images(FEATURES)
    joined = join(first, second)
    assert len(joined) == 5
    assert joined.patches is FEATURES.patches
    assert joined.patch_row.tolist() == [1, 0, 1, 0, 1]
    assert torch.equal(joined.sequence(), torch.cat([first.sequence(), second.sequence()]))


def test_join_moves_rows_of_other_patches() -> None:
    first = whole_images(FEATURES)
    second = VisualConcepts(
        torch.randn(1, 3), torch.randn(1, 4, 3), torch.tensor([0]), torch.ones(1, 4).bool()
    )
    joined = join(first, second)
    assert joined.patch_row.tolist() == [0, 1, 2]
    assert torch.equal(joined.sequence(), torch.cat([first.sequence(), second.sequence()]))


def test_no_concepts() -> None:
    none = pooled_concepts(FEATURES, IMAGE[:0], MASK[:0])
    assert len(none) == 0
    assert len(join(none, whole_images(FEATURES))) == 2
