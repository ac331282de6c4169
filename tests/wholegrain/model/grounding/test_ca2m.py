"""CA2M as a whole: what its groups read, padding, any resolution, what it costs and refuses."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wholegrain.model.adapters.condition import Condition
from wholegrain.model.concepts import ImageFeatures
from wholegrain.model.config import Ca2mFusion, DetrVision, SwinVision, TimmVision
from wholegrain.model.grounding.ca2m import (
    Ca2m,
    feature_maps,
    grid_of,
    photo_places,
)
from wholegrain.model.grounding.records import TextStates
from wholegrain.model.vision import VisionEncoder, build_vision

EXACT = {"rtol": 0.0, "atol": 1e-10}
TEXT_WIDTH, TEXT_LAYERS = 20, 6
CONFIG = Ca2mFusion(
    stage_width=8,
    group_width=16,
    heads=4,
    group_feed_forward=24,
    feed_forward=40,
)
WIDTH = 48
TIMM = TimmVision(
    name="resnet26",
    image_size=64,
    stages=(2, 3, 4),
    options={"channels": [4, 8, 12, 16], "layers": [1, 1, 1, 1]},
)
IMAGE = torch.tensor([0, 1, 0])
MASK = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def texts_of(mask: Tensor = MASK, seed: int = 0, width: int = TEXT_WIDTH) -> TextStates:
    shape = (*mask.shape, width)
    layers = tuple(random(*shape, seed=seed + layer) for layer in range(TEXT_LAYERS))
    return TextStates(layers[-1], mask, layers)


def features_of(
    fusion: Ca2m, size: tuple[int, int] = (64, 64), images: int = 2, seed: int = 50
) -> ImageFeatures:
    """Maps without an encoder, for images of any size."""
    pyramid = tuple(
        random(images, channels, *grid_of(size, stride), seed=seed + stride)
        for stride, channels in fusion.maps
    )
    last = pyramid[-1]
    patches = last.flatten(2).transpose(1, 2)
    return ImageFeatures(
        patches.mean(1), patches, (last.shape[2], last.shape[3]), pyramid, pixel_mask=None
    )


def build(
    config: Ca2mFusion = CONFIG, vision: VisionEncoder | None = None, layers: int = TEXT_LAYERS
) -> Ca2m:
    """In evaluation mode and double precision, no bias and no norm of it trivial."""
    torch.manual_seed(0)
    fusion = Ca2m(config, vision or VISION, TEXT_WIDTH, layers).double().eval()
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return fusion


def fuse(
    fusion: Ca2m, features: ImageFeatures, texts: TextStates | None = None, image: Tensor = IMAGE
) -> Tensor:
    fused = fusion(VISION, texts_of() if texts is None else texts, features, image, Condition())
    assert fused.kept is fused.gates is None
    vectors: Tensor = fused.vectors
    return vectors


VISION = build_vision(TIMM).eval()


@pytest.fixture
def fusion() -> Ca2m:
    return build()


# --- what reads what ------------------------------------------------------------------------------


def test_one_vector_a_text(fusion: Ca2m) -> None:
    vectors = fuse(fusion, features_of(fusion))
    assert vectors.shape == (3, 1, WIDTH)
    assert (fusion.width, fusion.scales, fusion.image_per_text) == (WIDTH, 1, False)


def test_groups_then_all_together(fusion: Ca2m) -> None:
    """The passes in the order of the method, each of them by its own module alone."""
    features, texts = features_of(fusion, (64, 96)), texts_of()
    places, words = [], []
    joined = fusion.joined(features)
    assert joined.shape == (2, 24, 24)
    grouped = positions_of((4, 6), 16)
    for group, depth in zip(fusion.groups, (2, 4, 6), strict=True):
        v, l = group.visual(joined[IMAGE]), group.textual(texts.layers[depth - 1])  # noqa: E741
        for layer in group.layers:
            v, l = layer(v, l, grouped, MASK)  # noqa: E741
        places.append(v)
        words.append(l)
    v, l = torch.cat(places, 2), torch.cat(words, 2)  # noqa: E741
    assert v.shape == (3, 24, WIDTH)
    assert len(fusion.layers) == 3
    for layer in fusion.layers:
        v, l = layer(v, l, positions_of((4, 6), WIDTH), MASK)  # noqa: E741
    torch.testing.assert_close(fuse(fusion, features, texts), l[:, :1], **EXACT)


def positions_of(grid: tuple[int, int], width: int) -> Tensor:
    """Row-major codes by the formula, a half for the row and a half for the column."""
    codes = torch.zeros(*grid, width, dtype=torch.float64)
    half = width // 2
    for row in range(grid[0]):
        for column in range(grid[1]):
            for start, place, count in ((0, row + 1, grid[0]), (half, column + 1, grid[1])):
                for k in range(half // 2):
                    angle = 2 * math.pi * place / (count + 1e-6) / 10000 ** (2 * k / half)
                    codes[row, column, start + 2 * k] = math.sin(angle)
                    codes[row, column, start + 2 * k + 1] = math.cos(angle)
    return codes.flatten(0, 1)


def test_a_group_sees_no_other_depth(fusion: Ca2m) -> None:
    outcomes: list[tuple[Tensor, Tensor]] = []
    for group in fusion.groups:
        group.register_forward_hook(lambda _, __, output: outcomes.append(output))
    given = texts_of()
    layers = tuple(states.requires_grad_() for states in given.layers)
    fuse(fusion, features_of(fusion), replace(given, layers=layers))
    for (places, words), own in zip(outcomes, (1, 3, 5), strict=True):
        gradients = torch.autograd.grad(
            (places**3).sum() + (words**3).sum(), layers, retain_graph=True, allow_unused=True
        )
        reached = [index for index, g in enumerate(gradients) if g is not None and g.any()]
        assert reached == [own]


@pytest.mark.parametrize("named", [None, (1, 2, 5)])
def test_depths_that_are_read(named: tuple[int, ...] | None) -> None:
    fusion = build(replace(CONFIG, text_layers=named))
    texts, features = texts_of(), features_of(fusion)
    before = fuse(fusion, features, texts)
    read = []
    for layer in range(TEXT_LAYERS):
        layers = [s + 1.0 * (index == layer) for index, s in enumerate(texts.layers)]
        changed = fuse(fusion, features, replace(texts, layers=tuple(layers)))
        if not torch.equal(changed, before):
            read.append(layer + 1)
    assert tuple(read) == (named or (2, 4, 6))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_every_map_is_read(fusion: Ca2m, stage: int) -> None:
    features = features_of(fusion)
    maps = [states + (index == stage) for index, states in enumerate(features.pyramid)]
    changed = fuse(fusion, replace(features, pyramid=tuple(maps)))
    assert (changed - fuse(fusion, features)).abs().max() > 1e-3


def test_finer_maps_before_the_three_are_not_read() -> None:
    vision = build_vision(replace(TIMM, stages=(1, 2, 3, 4)))
    fusion = build(vision=vision)
    features = features_of(fusion)
    more = replace(features, pyramid=(random(2, 4, 16, 16), *features.pyramid))
    assert torch.equal(fuse(fusion, more), fuse(fusion, features))


# --- one image, several texts ---------------------------------------------------------------------


def test_texts_and_images_do_not_see_each_other(fusion: Ca2m) -> None:
    photo = photo_of(SIZES, (96, 96))
    features = replace(features_of(fusion, (96, 96)), pixel_mask=photo)
    texts = texts_of()
    together = fuse(fusion, features, texts)
    for text in range(3):
        length = int(MASK[text].sum())
        rows = texts.take(torch.tensor([text]))
        cut = TextStates(
            rows.states[:, :length],
            rows.mask[:, :length],
            tuple(states[:, :length] for states in rows.layers),
        )
        row = IMAGE[text : text + 1]
        own = replace(
            features, pyramid=tuple(m[row] for m in features.pyramid), pixel_mask=photo[row]
        )
        alone = fuse(fusion, own, cut, torch.tensor([0]))
        torch.testing.assert_close(alone[0], together[text], **EXACT)


def test_an_image_is_prepared_once(fusion: Ca2m) -> None:
    """Up to the first queries of each group, however many texts ask."""
    rows: list[int] = []
    parts = [group.visual for group in fusion.groups]
    parts += [group.layers[0].visual.query for group in fusion.groups]
    for part in parts:
        part.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    fuse(fusion, features_of(fusion))
    assert rows == [2] * 6


def test_no_texts(fusion: Ca2m) -> None:
    none = texts_of(MASK[:0])
    assert fuse(fusion, features_of(fusion), none, IMAGE[:0]).shape == (0, 1, WIDTH)


# --- padding --------------------------------------------------------------------------------------


def test_padded_words_change_nothing(fusion: Ca2m) -> None:
    features, texts = features_of(fusion), texts_of()
    layers = tuple(torch.where(MASK[..., None], s, 100 + s) for s in texts.layers)
    other = replace(texts, layers=layers)
    before = fuse(fusion, features, texts)
    torch.testing.assert_close(fuse(fusion, features, other), before, **EXACT)
    seen = torch.ones_like(MASK)
    unmasked = fuse(fusion, features, replace(other, mask=seen))
    assert (unmasked - before).abs().max() > 1e-3


def photo_of(sizes: Sequence[tuple[int, int]], whole: tuple[int, int]) -> Tensor:
    photo = torch.zeros(len(sizes), *whole, dtype=torch.bool)
    for image, (height, width) in enumerate(sizes):
        photo[image, :height, :width] = True
    return photo


# The second photo ends inside a place of every stride.
SIZES = [(96, 64), (41, 72)]


def spoilt(features: ImageFeatures, fusion: Ca2m, photo: Tensor, value: float) -> ImageFeatures:
    maps = [
        states.masked_fill(~photo_places(photo, stride)[:, None], value)
        for states, (stride, _) in zip(features.pyramid, fusion.maps, strict=True)
    ]
    return replace(features, pyramid=tuple(maps))


def test_padding_of_the_image_changes_nothing(fusion: Ca2m) -> None:
    """Of no map, though two of them are resampled across the edge of the photo."""
    photo = photo_of(SIZES, (96, 96))
    features = replace(features_of(fusion, (96, 96)), pixel_mask=photo)
    before = fuse(fusion, features)
    other = spoilt(features, fusion, photo, 100.0)
    torch.testing.assert_close(fuse(fusion, other), before, **EXACT)
    not_a_number = spoilt(features, fusion, photo, math.nan)
    torch.testing.assert_close(fuse(fusion, not_a_number), before, **EXACT)
    unmasked = fuse(fusion, replace(other, pixel_mask=None))
    assert (unmasked - before).abs().max() > 1e-3


def test_padded_places_are_never_read(fusion: Ca2m) -> None:
    photo = photo_of(SIZES, (96, 96))
    features = replace(features_of(fusion, (96, 96)), pixel_mask=photo)
    before = fuse(fusion, features)
    padding = ~photo_places(photo, 16).flatten(1)
    assert padding.any(1).all()

    def spoil(_: torch.nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0] + 100 * padding[..., None], *given[1:])

    for group in fusion.groups:
        group.register_forward_pre_hook(spoil)
    torch.testing.assert_close(fuse(fusion, features), before, **EXACT)


def test_a_mask_that_hides_nothing(fusion: Ca2m) -> None:
    features = features_of(fusion, (96, 80))
    photo = torch.ones(2, 96, 80, dtype=torch.bool)
    masked = fuse(fusion, replace(features, pixel_mask=photo))
    torch.testing.assert_close(masked, fuse(fusion, features), **EXACT)


def test_photo_in_a_larger_frame(fusion: Ca2m) -> None:
    """Joined maps are those of the photo alone, resampling at its edge included."""
    features = features_of(fusion, (64, 64))
    frame = tuple(F.pad(states, (0, states.shape[3] // 2, 0, 0)) for states in features.pyramid)
    photo = photo_of([(64, 64)] * 2, (64, 96))
    framed = fusion.joined(replace(features, pyramid=frame, pixel_mask=photo))
    inner = framed.unflatten(1, (4, 6))[:, :, :4].flatten(1, 2)
    torch.testing.assert_close(inner, fusion.joined(features), **EXACT)


def test_a_place_is_photo_if_any_pixel_is() -> None:
    photo = torch.zeros(1, 40, 33, dtype=torch.bool)
    photo[0, 16, 32] = True
    assert photo_places(photo, 16).nonzero().tolist() == [[0, 1, 2]]
    assert photo_places(photo, 16).shape == (1, 3, 3)
    assert photo_places(photo, 32).shape == (1, 2, 2)


# --- maps at one stride ---------------------------------------------------------------------------


@pytest.mark.parametrize("side", [64, 48])
def test_resampling_by_hand(fusion: Ca2m, side: int) -> None:
    """Also where the coarsest map reaches beyond the places of the common stride."""
    features = features_of(fusion, (side, side))
    fine, same, coarse = features.pyramid
    joined = fusion.joined(features).unflatten(1, (side // 16, side // 16))
    projections = [stage.projection for stage in fusion.stages]
    weights = [p.weight[:, :, 0, 0] for p in projections]
    for row, column in ((0, 0), (1, 2), (2, 0)):
        block = fine[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((2, 3))
        expected = block @ weights[0].T + projections[0].bias
        torch.testing.assert_close(joined[:, row, column, :8], expected, **EXACT)
        expected = same[:, :, row, column] @ weights[1].T + projections[1].bias
        torch.testing.assert_close(joined[:, row, column, 8:16], expected, **EXACT)
    # Place (1, 2) lies a quarter of a coarse place below the first row's middle and as much left
    # of the second column's.
    shares = torch.tensor([[0.75 * 0.25, 0.75 * 0.75], [0.25 * 0.25, 0.25 * 0.75]]).double()
    expected = (coarse * shares).sum((2, 3)) @ weights[2].T + projections[2].bias
    torch.testing.assert_close(joined[:, 1, 2, 16:], expected, **EXACT)
    corner = coarse[:, :, 0, 0] @ weights[2].T + projections[2].bias
    torch.testing.assert_close(joined[:, 0, 0, 16:], corner, **EXACT)


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (100, 130), (512, 64)])
def test_any_resolution(fusion: Ca2m, size: tuple[int, int]) -> None:
    features = features_of(fusion, size)
    grid = (math.ceil(size[0] / 16), math.ceil(size[1] / 16))
    assert fusion.grid(features) == grid
    assert fusion.joined(features).shape == (2, grid[0] * grid[1], 24)
    assert fuse(fusion, features).isfinite().all()


@pytest.mark.parametrize("stride", [8, 32])
def test_another_stride(stride: int) -> None:
    fusion = build(replace(CONFIG, stride=stride))
    features = features_of(fusion)
    assert fusion.grid(features) == (64 // stride, 64 // stride)
    assert fusion.joined(features).shape == (2, (64 // stride) ** 2, 24)
    constant = replace(features, pyramid=tuple(torch.ones_like(m) for m in features.pyramid))
    joined = fusion.joined(constant)
    torch.testing.assert_close(joined, joined[:, :1].expand_as(joined), **EXACT)


# --- image encoders -------------------------------------------------------------------------------

ENCODERS: list[tuple[Any, list[tuple[int, int]]]] = [
    (
        SwinVision(image_size=128, embed_dim=8, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4), window=4),
        [(4, 8), (8, 16), (16, 32), (32, 64)],
    ),
    (
        DetrVision(
            name="resnet26",
            image_size=64,
            width=16,
            heads=2,
            layers=1,
            feed_forward=24,
            options={"channels": [4, 8, 16, 16], "layers": [1, 1, 1, 1]},
        ),
        [(4, 16), (8, 32), (16, 64), (32, 64)],
    ),
    (
        TimmVision(
            name="resnet18d",
            image_size=64,
            stages=(1, 2, 3),
            options={"channels": [8, 12, 16, 16], "stem_width": 4},
        ),
        [(4, 8), (8, 12), (16, 16)],
    ),
    (
        TimmVision(name="convnext_atto", image_size=64, stages=(0, 1, 2)),
        [(4, 40), (8, 80), (16, 160)],
    ),
]


@pytest.mark.parametrize(("config", "maps"), ENCODERS)
def test_behind_an_image_encoder(config: Any, maps: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    vision = build_vision(config).eval()
    assert feature_maps(vision) == maps
    fusion = Ca2m(CONFIG, vision, TEXT_WIDTH, TEXT_LAYERS).eval()
    side = config.image_size
    texts = TextStates(*single_precision(texts_of()))
    with torch.no_grad():
        features = fusion.encode(vision, torch.randn(2, 3, side, side))
        found = [(side // m.shape[3], m.shape[1]) for m in features.pyramid]
        assert found == maps
        vectors = fusion(vision, texts, features, IMAGE, Condition()).vectors
    assert fusion.grid(features) == (side // 16, side // 16)
    assert vectors.shape == (3, 1, WIDTH)
    assert vectors.dtype == torch.float32


def single_precision(texts: TextStates) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    return texts.states.float(), texts.mask, tuple(states.float() for states in texts.layers)


def test_convolutions_at_another_resolution() -> None:
    vision = build_vision(ENCODERS[1][0]).eval()
    fusion = Ca2m(CONFIG, vision, TEXT_WIDTH, TEXT_LAYERS).eval()
    features = fusion.encode(vision, torch.randn(2, 3, 70, 100))
    assert fusion.grid(features) == (5, 7)
    texts = TextStates(*single_precision(texts_of()))
    assert fusion(vision, texts, features, IMAGE, Condition()).vectors.shape == (3, 1, WIDTH)


def test_every_weight_learns(fusion: Ca2m) -> None:
    (fuse(fusion, features_of(fusion)) ** 3).sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        # A constant in all keys shifts all scores of a query alike, which the softmax undoes.
        assert parameter.grad.any() or name.endswith("key.bias"), name


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_whole_model_in_another_precision(kind: torch.dtype) -> None:
    """Engines such as DeepSpeed cast the weights themselves."""
    fusion = build().to(kind)
    features, texts = features_of(fusion, (96, 96)), texts_of()
    cast = replace(
        features,
        pyramid=tuple(m.to(kind) for m in features.pyramid),
        pixel_mask=photo_of(SIZES, (96, 96)),
    )
    layers = tuple(states.to(kind) for states in texts.layers)
    vectors = fuse(fusion, cast, TextStates(layers[-1], MASK, layers))
    assert vectors.dtype == kind
    exact = fuse(build(), replace(features, pixel_mask=cast.pixel_mask), texts)
    torch.testing.assert_close(vectors.double(), exact, rtol=0.05, atol=0.1)


# --- cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(64, 64), (70, 100)])
def test_cost_by_formula_is_what_torch_counts(stride: int, size: tuple[int, int]) -> None:
    """Two images, of which one has two texts; padding and masks cost nothing more."""
    fusion = build(replace(CONFIG, stride=stride))
    features = replace(features_of(fusion, size), pixel_mask=photo_of([size] * 2, size))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        fuse(fusion, features)
    cost = fusion.macs(size, MASK.shape[1])
    assert counter.get_total_flops() == 2 * (2 * cost.image + 3 * cost.text)
