"""A CA2M layer against its four equations, its masks, its order, its size and its cost."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wholegrain.model.grounding.ca2m_layer import Ca2mLayer, CrossHalf, layer_macs

WIDTH, HEADS, HIDDEN = 16, 4, 24
TEXTS, PLACES, WORDS = 3, 6, 5
EXACT = {"rtol": 0.0, "atol": 1e-10}


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


V, L = random(TEXTS, PLACES, WIDTH, seed=1), random(TEXTS, WORDS, WIDTH, seed=2)
POSITIONS = random(PLACES, WIDTH, seed=3)
WORD_MASK = torch.arange(WORDS) < torch.tensor([5, 3, 1])[:, None]
PLACE_MASK = torch.arange(PLACES) < torch.tensor([4, 6, 2])[:, None]


def build(dropout: float = 0.1) -> Ca2mLayer:
    """In evaluation mode and double precision, no bias and no norm of it trivial."""
    torch.manual_seed(0)
    layer = Ca2mLayer(WIDTH, HEADS, HIDDEN, dropout).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return layer


@pytest.fixture
def layer() -> Ca2mLayer:
    return build()


# --- the equations, written out -------------------------------------------------------------------


def norm_by_hand(states: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    mean = states.mean(-1, keepdim=True)
    variance = ((states - mean) ** 2).mean(-1, keepdim=True)
    return (states - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias


def attention_by_hand(
    half: CrossHalf, asking: Tensor, keyed: Tensor, valued: Tensor, mask: Tensor
) -> Tensor:
    """Head by head, text by text; masked keys are left out rather than hidden."""
    channels = WIDTH // HEADS
    rows = []
    for text in range(len(asking)):
        query = asking[text] @ half.query.weight.T + half.query.bias
        key = keyed[text][mask[text]] @ half.key.weight.T + half.key.bias
        value = valued[text][mask[text]] @ half.value.weight.T + half.value.bias
        heads = []
        for head in range(HEADS):
            own = slice(head * channels, (head + 1) * channels)
            scores = (query[:, own] @ key[:, own].T / math.sqrt(channels)).exp()
            heads.append(scores / scores.sum(1, keepdim=True) @ value[:, own])
        rows.append(torch.cat(heads, 1) @ half.output.weight.T + half.output.bias)
    return torch.stack(rows)


def feed_by_hand(half: CrossHalf, states: Tensor) -> Tensor:
    hidden = (states @ half.up.weight.T + half.up.bias).clamp(min=0)
    return hidden @ half.down.weight.T + half.down.bias


def layer_by_hand(layer: Ca2mLayer, old_places: bool = False) -> tuple[Tensor, Tensor]:
    first, second = layer.visual, layer.textual
    v, l = V, L  # noqa: E741
    update = attention_by_hand(first, v + POSITIONS, l, l, WORD_MASK)
    v = norm_by_hand(v + update, first.attention_residual.norm)
    v = norm_by_hand(v + feed_by_hand(first, v), first.feed_forward_residual.norm)
    read = V if old_places else v
    update = attention_by_hand(second, l, read + POSITIONS, read, PLACE_MASK)
    l = norm_by_hand(l + update, second.attention_residual.norm)  # noqa: E741
    l = norm_by_hand(l + feed_by_hand(second, l), second.feed_forward_residual.norm)  # noqa: E741
    return v, l


def test_the_four_equations(layer: Ca2mLayer) -> None:
    places, words = layer(V, L, POSITIONS, WORD_MASK, PLACE_MASK)
    v, l = layer_by_hand(layer)  # noqa: E741
    torch.testing.assert_close(places, v, **EXACT)
    torch.testing.assert_close(words, l, **EXACT)


def test_words_read_the_places_as_they_have_become(layer: Ca2mLayer) -> None:
    """The old places in their stead give other words: the comparison above has power."""
    _, words = layer(V, L, POSITIONS, WORD_MASK, PLACE_MASK)
    _, wrong = layer_by_hand(layer, old_places=True)
    assert (words - wrong).abs().max() > 0.1


def test_without_values_words_depend_on_no_place(layer: Ca2mLayer) -> None:
    other = V + random(TEXTS, PLACES, WIDTH, seed=4)
    before = layer(V, L, POSITIONS, WORD_MASK)[1]
    assert (layer(other, L, POSITIONS, WORD_MASK)[1] - before).abs().max() > 0.1
    with torch.no_grad():
        layer.textual.value.weight.zero_()
        layer.textual.value.bias.zero_()
        layer.textual.output.bias.zero_()
    found = layer(V, L, POSITIONS, WORD_MASK)
    changed = layer(other, L, POSITIONS, WORD_MASK)
    assert torch.equal(found[1], changed[1])
    assert not torch.equal(found[0], changed[0])


def test_positions_are_in_no_value(layer: Ca2mLayer) -> None:
    """With one place and one word all weights are one, and only values count."""
    given = V[:, :1], L[:, :1]
    mask = WORD_MASK[:, :1]
    for found, moved in zip(
        layer(*given, POSITIONS[:1], mask), layer(*given, POSITIONS[1:2], mask), strict=True
    ):
        torch.testing.assert_close(found, moved, **EXACT)
    moved = layer(V, L, 2 * POSITIONS, WORD_MASK)
    for found, other in zip(layer(V, L, POSITIONS, WORD_MASK), moved, strict=True):
        assert (found - other).abs().max() > 1e-3


# --- masks ----------------------------------------------------------------------------------------


def test_padded_words_are_never_read(layer: Ca2mLayer) -> None:
    other = torch.where(WORD_MASK[..., None], L, 100 * random(TEXTS, WORDS, WIDTH, seed=5))
    places, words = layer(V, L, POSITIONS, WORD_MASK, PLACE_MASK)
    same_places, same_words = layer(V, other, POSITIONS, WORD_MASK, PLACE_MASK)
    torch.testing.assert_close(same_places, places, **EXACT)
    torch.testing.assert_close(same_words[WORD_MASK], words[WORD_MASK], **EXACT)
    unmasked = layer(V, other, POSITIONS, torch.ones_like(WORD_MASK), PLACE_MASK)[0]
    assert (unmasked - places).abs().max() > 0.1


def test_padded_places_are_never_read(layer: Ca2mLayer) -> None:
    other = torch.where(PLACE_MASK[..., None], V, 100 * random(TEXTS, PLACES, WIDTH, seed=5))
    places, words = layer(V, L, POSITIONS, WORD_MASK, PLACE_MASK)
    same_places, same_words = layer(other, L, POSITIONS, WORD_MASK, PLACE_MASK)
    torch.testing.assert_close(same_places[PLACE_MASK], places[PLACE_MASK], **EXACT)
    torch.testing.assert_close(same_words, words, **EXACT)
    assert (layer(other, L, POSITIONS, WORD_MASK)[1] - words).abs().max() > 0.01


def test_order_of_words_is_none_of_its_business(layer: Ca2mLayer) -> None:
    order = torch.tensor([3, 0, 4, 2, 1])
    places, words = layer(V, L, POSITIONS, WORD_MASK)
    same, permuted = layer(V, L[:, order], POSITIONS, WORD_MASK[:, order])
    torch.testing.assert_close(same, places, **EXACT)
    torch.testing.assert_close(permuted, words[:, order], **EXACT)
    assert (permuted - words).abs().max() > 0.1


def test_texts_do_not_see_each_other(layer: Ca2mLayer) -> None:
    places, words = layer(V, L, POSITIONS, WORD_MASK, PLACE_MASK)
    one = slice(1, 2)
    alone = layer(V[one], L[one, :3], POSITIONS, WORD_MASK[one, :3], PLACE_MASK[one])
    torch.testing.assert_close(alone[0], places[one], **EXACT)
    torch.testing.assert_close(alone[1], words[one, :3], **EXACT)


# --- less work, same answer -----------------------------------------------------------------------


def test_images_shared_by_texts(layer: Ca2mLayer) -> None:
    image = torch.tensor([1, 0, 1])
    shared = layer(V[:2], L, POSITIONS, WORD_MASK, PLACE_MASK, image=image)
    for found, expected in zip(
        shared, layer(V[image], L, POSITIONS, WORD_MASK, PLACE_MASK), strict=True
    ):
        torch.testing.assert_close(found, expected, **EXACT)


def test_first_word_alone(layer: Ca2mLayer) -> None:
    places, words = layer(V, L, POSITIONS, WORD_MASK, PLACE_MASK)
    same, first = layer(V, L, POSITIONS, WORD_MASK, PLACE_MASK, first_only=True)
    assert first.shape == (TEXTS, 1, WIDTH)
    torch.testing.assert_close(same, places, **EXACT)
    torch.testing.assert_close(first, words[:, :1], **EXACT)


# --- learning, size and cost ----------------------------------------------------------------------


def test_every_weight_learns(layer: Ca2mLayer) -> None:
    places, words = layer(V, L, POSITIONS, WORD_MASK, PLACE_MASK)
    ((places * random(*places.shape, seed=6)).sum() + (words**3).sum()).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        # A constant in all keys shifts all scores of a query alike, which the softmax undoes.
        assert (parameter.grad.abs().max() > 1e-6) == (not name.endswith("key.bias")), name


def test_dropout_is_of_training_alone() -> None:
    layer = build(dropout=0.5)
    given = (V, L, POSITIONS, WORD_MASK, PLACE_MASK)
    assert torch.equal(layer(*given)[1], layer(*given)[1])
    layer.train()
    assert not torch.equal(layer(*given)[1], layer(*given)[1])
    for half in (layer.visual, layer.textual):
        half.attention_residual.dropout = half.feed_forward_residual.dropout = 0.0
    for first, second in zip(layer(*given), layer(*given), strict=True):
        assert not torch.equal(first, second)  # that of the attention weights
    still = build(dropout=0.0)
    assert torch.equal(still.train()(*given)[1], still.eval()(*given)[1])


@pytest.mark.parametrize(
    ("width", "feed_forward", "expected"),
    [
        (256, 1024, 1_579_520),
        (256, 2048, 2_630_144),
        (768, 3072, 14_175_744),
    ],
)
def test_parameters(width: int, feed_forward: int, expected: int) -> None:
    """Twice a block of attention and feed-forward, ``4 C^2 + 2 C F + 9 C + F``."""
    with torch.device("meta"):
        layer = Ca2mLayer(width, 8, feed_forward, 0.1)
    assert sum(parameter.numel() for parameter in layer.parameters()) == expected
    block = 4 * width**2 + 2 * width * feed_forward + 9 * width + feed_forward
    assert expected == 2 * block


def test_cost_by_formula_is_what_torch_counts() -> None:
    layer = build(dropout=0.0)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        layer(V, L, POSITIONS, WORD_MASK, PLACE_MASK)
    assert counter.get_total_flops() == 2 * TEXTS * layer_macs(PLACES, WORDS, WIDTH, HIDDEN)


def test_cost_at_the_published_sizes() -> None:
    """Below one joint encoder layer over all states, ``4 N C^2 + 2 N^2 C + 2 N C F``."""
    for width, feed_forward, ours, joint in ((256, 2048, 1.44, 1.97), (768, 3072, 7.66, 9.27)):
        assert layer_macs(1024, 40, width, feed_forward) / 1e9 == pytest.approx(ours, abs=0.005)
        both = 1064
        other = 4 * both * width**2 + 2 * both**2 * width + 2 * both * width * feed_forward
        assert other / 1e9 == pytest.approx(joint, abs=0.005)
