"""Adapters conditioned on texts (MMCA) in the blocks that ScanFormer runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from wholegrain.model.adapters.base import Adapter
from wholegrain.model.adapters.condition import Condition
from wholegrain.model.config import MmcaConfig, ScanFusion
from wholegrain.model.grounding.fusion import Fused
from wholegrain.model.grounding.scan import ScanFormer
from wholegrain.model.multigrain import MultiGrainModel

Make = Callable[..., MultiGrainModel]
IMAGE = torch.tensor([1, 0, 1])
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(6)).double()


@pytest.fixture
def make(build: Callable[..., MultiGrainModel]) -> Make:
    """A model with ScanFormer, grids of 1, 2 and 4, whose last two blocks of three are adapted."""

    def made(awake: bool = True, merge: bool = True, **options: float) -> MultiGrainModel:
        model = build("vit").double()
        settings = ScanFusion(merge=merge, selector_width=6, gate_bias=0.3, **options)
        torch.manual_seed(7)
        fusion = ScanFormer(settings, model.vision, model.config.text.hidden_size)
        for parameter in fusion.parameters():
            nn.init.normal_(parameter, std=0.3)
        model.fusion = fusion
        model.add_adapter(
            MmcaConfig(
                rank=3,
                embed_dim=5,
                gate_dim=4,
                blocks=2,
                sites=("query", "key", "value", "mlp"),
            )
        )
        if awake:
            for parameter in model.adapters.parameters():
                nn.init.normal_(parameter, std=0.4)
        return model.double().eval()

    return made


def fuse(model: MultiGrainModel, words: tuple[Tensor, Tensor], pixels: Tensor = PIXELS) -> Fused:
    texts = model.read_texts(*words)
    features, image = model.encode_for_texts(pixels, texts, IMAGE)
    return model.fuse_texts(features, texts, image)


def neutral(model: MultiGrainModel, words: tuple[Tensor, Tensor]) -> Fused:
    adapter = model.adapters["mmca"]
    assert isinstance(adapter, Adapter)
    with adapter.neutral():
        return fuse(model, words)


def test_pooling_counts_what_a_token_stands_for(
    make: Make, words: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged and unmerged are one function with adapters, too, whose means are over patches."""
    merged, every = (fuse(make(merge=merge), words) for merge in (True, False))
    assert every.kept is not None and merged.kept is not None
    assert torch.equal(merged.kept, every.kept)
    assert every.kept[:, 1:].min() > 0 and every.kept[:, 1:].max() < 1
    torch.testing.assert_close(merged.vectors, every.vectors, rtol=0, atol=1e-10)

    @contextmanager
    def uncounted(_: Condition, shares: Tensor) -> Iterator[None]:
        yield

    # Without the counts the mean is another one.
    monkeypatch.setattr(Condition, "counting", uncounted)
    monkeypatch.setattr(Condition, "weights", lambda *_: None)
    wrong = fuse(make(merge=True), words)
    assert (wrong.vectors - every.vectors).abs().max() > 1e-4


def test_adapters_that_add_nothing_leave_it_bit_for_bit(
    make: Make, words: tuple[Tensor, Tensor]
) -> None:
    fresh, awake = make(awake=False), make()
    assert torch.equal(fuse(fresh, words).vectors, neutral(fresh, words).vectors)
    changed = fuse(awake, words).vectors - neutral(awake, words).vectors
    assert (changed.abs().amax((0, 2)) > 1e-4).all(), "at each scale"


def test_the_text_is_no_image_of_itself(make: Make, words: tuple[Tensor, Tensor]) -> None:
    """What the text leaves in the cache does not depend on the adapters."""
    model = make()
    texts = model.read_texts(*words)
    features, image = model.encode_for_texts(PIXELS, texts, IMAGE)
    assert isinstance(model.fusion, ScanFormer)
    with model.condition.on(texts, image, None):
        on = model.fusion.scan(model.vision, texts, features, image, model.condition)
    off = model.fusion.scan(model.vision, texts, features, image, model.condition)
    for mine, its in zip(on._seen, off._seen, strict=True):
        assert mine is not None and its is not None
        assert torch.equal(mine.key, its.key) and torch.equal(mine.value, its.value)
    # A scanning remembers that it is conditioned, whenever its scales are asked for.
    assert not torch.allclose(next(on).vector, next(off).vector)


def test_no_mean_is_over_a_later_scale(make: Make, words: tuple[Tensor, Tensor]) -> None:
    model = make()
    texts = model.read_texts(*words)
    features, image = model.encode_for_texts(PIXELS, texts, IMAGE)
    plain = model.fuse_texts(features, texts, image).vectors
    features.pyramid = (features.pyramid[0] + 1, *features.pyramid[1:])
    altered = model.fuse_texts(features, texts, image).vectors
    assert torch.equal(altered[:, :2], plain[:, :2])
    assert not torch.allclose(altered[:, 2], plain[:, 2])


def test_texts_that_go_on_keep_their_own_condition(
    make: Make, words: tuple[Tensor, Tensor]
) -> None:
    model = make(exit_quality=0.5)
    expected = fuse(model, words).vectors
    texts = model.read_texts(*words)
    features, image = model.encode_for_texts(PIXELS, texts, IMAGE)
    assert isinstance(model.fusion, ScanFormer)

    def quality(_: int, vectors: Tensor) -> Tensor:
        return torch.tensor([0.9, 0.1, 0.1])[-len(vectors) :]

    with model.condition.on(texts, image, None):
        fused, answers = model.fusion.read_until(
            model.vision, texts, features, image, model.condition, quality
        )
    assert answers.tolist() == [0, 2, 2]
    torch.testing.assert_close(fused.vectors[1:], expected[1:], rtol=0, atol=1e-10)
