"""The [REG] fusion against torch's own layers, and what padding and another grid do to it."""

import pytest
import torch
from torch import Tensor, nn

from wholegrain.errors import ConfigError
from wholegrain.model.adapters.condition import Condition
from wholegrain.model.concepts import ImageFeatures
from wholegrain.model.config import TextConfig, VitVision
from wholegrain.model.detr import DetrLayer
from wholegrain.model.fusion_config import RegFusion
from wholegrain.model.grounding.records import TextStates
from wholegrain.model.grounding.reg import RegEncoder
from wholegrain.model.vision import VisionEncoder, build_vision

CONFIG = RegFusion(width=16, layers=3, heads=4, feed_forward=24, max_text=7)
TEXT = TextConfig(
    vocab_size=50, hidden_size=12, layers=2, fusion_layer=2, heads=3, intermediate_size=20
)
IMAGE = torch.tensor([1, 0, 1])
LAYER = {"query": 0, "key": 1, "value": 2}


@pytest.fixture(scope="module")
def vision() -> VisionEncoder:
    torch.manual_seed(0)
    return build_vision(VitVision(image_size=24, patch_size=8, width=20, depth=1, heads=2))


def fusion_of(vision: VisionEncoder, config: RegFusion = CONFIG) -> RegEncoder:
    torch.manual_seed(1)
    fusion = RegEncoder(config, vision, TEXT).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return fusion.eval()


def draw(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def texts_of(length: int = 5) -> TextStates:
    mask = torch.arange(length) < torch.tensor([length, 2, 4])[:, None]
    return TextStates(draw(3, length, 12), mask)


def features_of(grid: tuple[int, int] = (3, 3), pixel_mask: Tensor | None = None) -> ImageFeatures:
    patches = draw(2, grid[0] * grid[1], 20, seed=4)
    return ImageFeatures(patches.mean(dim=1), patches, grid, pixel_mask=pixel_mask)


def fuse(
    fusion: RegEncoder,
    vision: VisionEncoder,
    texts: TextStates,
    features: ImageFeatures,
    image: Tensor = IMAGE,
) -> Tensor:
    fused = fusion(vision, texts, features, image, Condition())
    assert fused.vectors.shape == (len(texts), 1, 16)
    assert fused.kept is None and fused.gates is None
    return fused.vectors[:, 0]


def as_torch(layer: DetrLayer) -> nn.TransformerEncoderLayer:
    """The same weights in torch's layer, which is post-norm with ReLU unless told otherwise."""
    theirs = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True).double().eval()
    ours = layer.state_dict()
    state = {
        f"self_attn.in_proj_{kind}": torch.cat([ours[f"{part}.{kind}"] for part in LAYER])
        for kind in ("weight", "bias")
    }
    names = {
        "self_attn.out_proj": "output",
        "linear1": "up",
        "linear2": "down",
        "norm1": "attention_norm",
        "norm2": "feed_forward_norm",
    }
    for theirs_name, ours_name in names.items():
        state |= {f"{theirs_name}.{k}": ours[f"{ours_name}.{k}"] for k in ("weight", "bias")}
    theirs.load_state_dict(state, strict=True)
    return theirs


def close(found: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# --- the reference ------------------------------------------------------------------------------


def by_hand(fusion: RegEncoder, texts: TextStates, features: ImageFeatures) -> Tensor:
    """The published computation: one padded sequence, torch's attention, [REG] at place 0."""
    words, patches = fusion.text_projection(texts.states), fusion.image_projection(features.patches)
    length = words.shape[1]
    states = torch.cat([fusion.register.expand(3, 1, -1), words, patches[IMAGE]], dim=1)
    table = fusion.positions
    positions = torch.cat([table[: 1 + length], table[1 + CONFIG.max_text :]])
    hidden = torch.cat(
        [torch.zeros(3, 1).bool(), ~texts.mask, torch.zeros(3, patches.shape[1]).bool()], dim=1
    )
    for layer in fusion.layers:
        theirs = as_torch(layer)  # type: ignore[arg-type]
        placed = states + positions
        update, _ = theirs.self_attn(placed, placed, states, key_padding_mask=hidden)
        states = theirs.norm1(states + update)
        states = theirs.norm2(states + theirs.linear2(theirs.linear1(states).relu()))
    return states[:, 0]


def test_the_published_computation(vision: VisionEncoder) -> None:
    fusion, texts, features = fusion_of(vision), texts_of(), features_of()
    close(fuse(fusion, vision, texts, features), by_hand(fusion, texts, features))


def test_a_layer_is_torchs(vision: VisionEncoder) -> None:
    layer = fusion_of(vision).layers[0]
    states, seen = draw(3, 9, 16), torch.arange(9) < torch.tensor([9, 4, 7])[:, None]
    found = layer(states, torch.zeros(9, 16).double(), seen)
    theirs = as_torch(layer)  # type: ignore[arg-type]
    for parameter in theirs.parameters():  # with a gradient to keep torch takes no shortcut
        assert parameter.requires_grad
    expected = theirs(states, src_key_padding_mask=~seen)
    close(found[seen], expected[seen])


def test_values_do_not_see_positions(vision: VisionEncoder) -> None:
    """One visible place: what is attended to is its value, wherever it lies."""
    layer = fusion_of(vision).layers[0]
    states, seen = draw(1, 4, 16), torch.tensor([[True, False, False, False]])
    here, there = (layer(states, draw(4, 16, seed=seed), seen) for seed in (5, 6))
    close(here, there, 1e-12)
    everywhere = torch.ones_like(seen)
    here, there = (layer(states, draw(4, 16, seed=seed), everywhere) for seed in (5, 6))
    assert (here - there).abs().max() > 1e-3, "queries and keys do"


def test_the_first_states_alone(vision: VisionEncoder) -> None:
    layer = fusion_of(vision).layers[0]
    states, positions, seen = draw(2, 6, 16), draw(6, 16), torch.ones(2, 6, dtype=torch.bool)
    whole = layer(states, positions, seen)
    close(layer(states, positions, seen, first=2), whole[:, :2], 1e-12)


# --- padding ------------------------------------------------------------------------------------


def test_padding_of_texts_is_not_seen(vision: VisionEncoder) -> None:
    fusion, texts, features = fusion_of(vision), texts_of(), features_of()
    expected = fuse(fusion, vision, texts, features)
    disturbed = torch.where(texts.mask[..., None], texts.states, 100.0)
    assert not torch.equal(disturbed, texts.states)
    close(fuse(fusion, vision, TextStates(disturbed, texts.mask), features), expected, 1e-12)
    longer = TextStates(
        torch.cat([texts.states, torch.full((3, 2, 12), 9.0).double()], 1),
        torch.cat([texts.mask, torch.zeros(3, 2).bool()], 1),
    )
    close(fuse(fusion, vision, longer, features), expected, 1e-12)


def test_padding_of_images_is_not_seen(vision: VisionEncoder) -> None:
    """A patch is seen as soon as one of its pixels is photo."""
    fusion, texts, plain = fusion_of(vision), texts_of(), features_of()
    photo = torch.ones(2, 24, 24, dtype=torch.bool)
    photo[1, 8:] = False  # the upper row of patches is left
    photo[0, :, 9:] = False  # the first column, and a column of pixels of the second
    seen = torch.zeros(2, 3, 3, dtype=torch.bool)
    seen[1, 0], seen[0, :, :2] = True, True
    found = fuse(fusion, vision, texts, features_of(pixel_mask=photo))
    for image, row, column in seen.new_ones(2, 3, 3).nonzero().tolist():
        features = features_of(pixel_mask=photo)
        features.patches[image, 3 * row + column] += 5
        moved = (fuse(fusion, vision, texts, features) - found).abs().amax(dim=1)
        visible = bool(seen[image, row, column])
        assert ((moved > 1e-4) == (visible & (image == IMAGE))).all(), (image, row, column)
    whole = features_of(pixel_mask=torch.ones_like(photo))
    close(fuse(fusion, vision, texts, whole), fuse(fusion, vision, texts, plain), 1e-12)


def test_texts_do_not_see_each_other(vision: VisionEncoder) -> None:
    fusion, texts, features = fusion_of(vision), texts_of(), features_of()
    together = fuse(fusion, vision, texts, features)
    for row in range(3):
        one = texts.take(torch.tensor([row]))
        close(fuse(fusion, vision, one, features, IMAGE[row : row + 1])[0], together[row], 1e-12)


# --- grids --------------------------------------------------------------------------------------


def test_positions_of_the_configured_grid_are_the_tables(vision: VisionEncoder) -> None:
    fusion = fusion_of(vision)
    found = fusion._places(5, (3, 3))
    assert torch.equal(found, torch.cat([fusion.positions[:6], fusion.positions[8:]]))


def test_positions_of_another_grid_keep_rows_and_columns(vision: VisionEncoder) -> None:
    fusion = fusion_of(vision)
    with torch.no_grad():
        rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="ij")
        fusion.positions[8:, 0] = rows.flatten().double()
        fusion.positions[8:, 1] = columns.flatten().double()
        fusion.positions[8:, 2] = 7.0
    before, patches = fusion._places(2, (6, 4)).split([3, 24])
    assert torch.equal(before, fusion.positions[:3])
    by_row, by_column, same = patches[:, :3].T.unflatten(1, (6, 4))
    close(by_row, by_row[:, :1].expand(6, 4), 1e-12)
    close(by_column, by_column[:1].expand(6, 4), 1e-12)
    assert bool((by_row.diff(dim=0) > 0).all()) and bool((by_column.diff(dim=1) > 0).all())
    close(same, torch.full((6, 4), 7.0).double(), 1e-12)


def test_another_grid_runs(vision: VisionEncoder) -> None:
    assert fuse(fusion_of(vision), vision, texts_of(), features_of((2, 5))).isfinite().all()


# --- limits -------------------------------------------------------------------------------------


def test_a_text_longer_than_the_table(vision: VisionEncoder) -> None:
    fusion = fusion_of(vision)
    assert fuse(fusion, vision, texts_of(7), features_of()).isfinite().all()
    with pytest.raises(ValueError, match=r"a text of 8 tokens exceeds the 7 positions.*max_tokens"):
        fuse(fusion, vision, texts_of(8), features_of())


def test_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"fusion.width is 16, .* fusion.heads 3"):
        RegFusion(width=16, heads=3)


def test_gradient_reaches_every_parameter(vision: VisionEncoder) -> None:
    fusion = fusion_of(vision).train()
    fuse(fusion, vision, texts_of(7), features_of()).square().sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        # A shift of all keys alike changes no attention.
        assert bool(parameter.grad.abs().sum() > 1e-9) or name.endswith("key.bias"), name


def test_dropout_acts_in_training_alone(vision: VisionEncoder) -> None:
    fusion, texts, features = fusion_of(vision), texts_of(), features_of()
    assert torch.equal(*(fuse(fusion, vision, texts, features) for _ in range(2)))
    fusion.train()
    assert not torch.equal(*(fuse(fusion, vision, texts, features) for _ in range(2)))


def test_parameters_at_the_published_size(vision: VisionEncoder) -> None:
    """Six of torch's layers of 256, 8 heads, 2048; tables of 1 + 20 + 9; two projections."""
    with torch.device("meta"):
        fusion = RegEncoder(RegFusion(max_text=20), vision, TextConfig())
        layer = nn.TransformerEncoderLayer(256, 8, 2048)
    count = sum(parameter.numel() for parameter in fusion.parameters())
    layers = 6 * sum(parameter.numel() for parameter in layer.parameters())
    assert count == layers + (1 + 30) * 256 + (20 + 1) * 256 + (768 + 1) * 256
    assert layers == 7_890_432
