"""MMCA on DETR's encoder: closed forms of both kinds, a neutral start, padding, any resolution."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wholegrain.errors import ConfigError
from wholegrain.model.adapters.mmca import Mmca
from wholegrain.model.adapters.updates import ConvUpdate, LinearUpdate
from wholegrain.model.checkpointing import checkpoint_blocks
from wholegrain.model.config import DetrVision, MmcaConfig, ModelConfig, TextConfig
from wholegrain.model.detr import DetrEncoder, DetrLayer
from wholegrain.model.grounding.records import TextStates
from wholegrain.model.multigrain import MultiGrainModel

TEXT = TextConfig(
    vocab_size=50,
    hidden_size=24,
    layers=4,
    fusion_layer=2,
    heads=3,
    intermediate_size=40,
    max_positions=20,
)
VISION = DetrVision(
    image_size=64,
    width=16,
    heads=2,
    layers=2,
    feed_forward=24,
    dropout=0.0,
    options={"channels": [4, 8, 16, 16], "layers": [2, 2, 2, 2]},
)
IMAGE = torch.tensor([1, 0, 1])
FORMS = pytest.mark.parametrize("form", ["beside", "composed"])
EVERYWHERE = {"blocks": 2, "stages": 3, "sites": ("query", "key", "value", "mlp")}


def host() -> MultiGrainModel:
    torch.manual_seed(0)
    model = MultiGrainModel(ModelConfig(vision=VISION, text=TEXT, embed_dim=8))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def adapted(awake: bool = True, **options: Any) -> MultiGrainModel:
    model = host().double()
    chosen: dict[str, Any] = {"rank": 3, "embed_dim": 5, "gate_dim": 8, "blocks": 1, **options}
    model.add_adapter(MmcaConfig(**chosen))
    if awake:
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.adapters.named_parameters():
            # Norms follow the layers' updates, none the stages': larger ones saturate the gates.
            std = 0.05 if "vision_stage" in name else 0.4
            nn.init.normal_(parameter, std=std, generator=generator)
    return model.double().eval()


def draw(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def texts_of(model: MultiGrainModel, count: int = 3) -> TextStates:
    ids = torch.randint(1, 50, (count, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(6) < torch.tensor([6, 3, 5])[:count, None]
    with torch.no_grad():
        return model.read_texts(ids, mask)


def encode(
    model: MultiGrainModel,
    images: Tensor,
    texts: TextStates,
    image: Tensor = IMAGE,
    pixel_mask: Tensor | None = None,
) -> Tensor:
    features, rows = model.encode_for_texts(images, texts, image, pixel_mask)
    assert torch.equal(rows, torch.arange(len(texts)))
    return features.patches


def mmca_of(model: MultiGrainModel) -> Mmca:
    found = model.adapters["mmca"]
    assert isinstance(found, Mmca)
    return found


def update_of(model: MultiGrainModel, place: str) -> Any:
    update = mmca_of(model).updates[place]
    assert isinstance(update, LinearUpdate | ConvUpdate)
    return update


def layer_of(model: MultiGrainModel, number: int = 2) -> DetrLayer:
    assert isinstance(model.vision, DetrEncoder)
    layer = model.vision.layers[number - 1]
    assert isinstance(layer, DetrLayer)
    return layer


def coefficients(update: Any, states: Tensor, text: Tensor) -> Tensor:
    """``w = Wg (u + gate v) + b`` for states (N, C) and a mean text (D,), written out."""
    part = update.coefficients
    u = part.text.weight @ text
    v = (states @ part.image.weight.T).mean(dim=0)
    first, _, second, _ = part.gate
    hidden = (first.weight @ (u + v) + first.bias).relu()
    gate = (second.weight @ hidden + second.bias).sigmoid()
    return part.weights.weight @ (u + gate * v) + part.weights.bias


def seen_by(module: nn.Module) -> list[Tensor]:
    """Collects what a module gives."""
    found: list[Tensor] = []
    module.register_forward_hook(lambda _, __, output: found.append(output.detach()))
    return found


def close(found: Tensor, expected: Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# --- closed forms -------------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize("part", ["query", "key"])
def test_update_of_queries_and_keys_by_hand(form: str, part: str) -> None:
    """Beside: ``(W0 + dW)(s + p)``. Composed: ``W0 (s + p + dW s)``."""
    model = adapted(form=form)
    layer, update = layer_of(model), update_of(model, f"vision_block_2_{part}")
    projection = getattr(layer, part)
    found = seen_by(projection)
    states, positions, texts = draw(2, 6, 16), draw(6, 16, seed=4), texts_of(model, 2)
    with model.condition.on(texts, torch.tensor([0, 1]), None):
        layer(states, positions)
    weight, bias = projection.weight, projection.bias
    for row in range(2):
        words = texts.states[row][texts.mask[row]].mean(dim=0)
        placed = states[row] + positions
        read = placed if form == "beside" else states[row]
        w = coefficients(update, read, words)
        delta = update.up.weight @ torch.diag(w) @ update.down.weight
        if form == "beside":
            expected = placed @ (weight + delta).T + bias
        else:
            expected = (placed + states[row] @ delta.T) @ weight.T + bias
        close(found[0][row], expected)
        assert (found[0][row] - (placed @ weight.T + bias)).abs().max() > 1e-2


@FORMS
@pytest.mark.parametrize("part", ["value", "mlp"])
def test_values_and_mlp_have_theirs_beside_them(form: str, part: str) -> None:
    model = adapted(form=form, sites=(part,))
    layer, update = layer_of(model), update_of(model, f"vision_block_2_{part}")
    projection = layer.value if part == "value" else layer.up
    states, texts = draw(2, 6, 16), texts_of(model, 2)
    with model.condition.on(texts, torch.tensor([0, 1]), None):
        found = projection(states)
    for row in range(2):
        w = coefficients(update, states[row], texts.states[row][texts.mask[row]].mean(dim=0))
        delta = update.up.weight @ torch.diag(w) @ update.down.weight
        close(found[row], states[row] @ (projection.weight + delta).T + projection.bias)


@pytest.mark.parametrize("convolution", ["paper", "release"])
def test_update_of_a_stage_by_hand(convolution: str) -> None:
    """One 3 x 3 convolution with kernel ``sum_i w_i b_i (x) a_i`` beside the block."""
    model = adapted(stages=1, convolution=convolution)
    assert isinstance(model.vision, DetrEncoder)
    block, update = model.vision.backbone.layer4[-1], update_of(model, "vision_stage_4")
    states, texts = draw(2, 64, 4, 3), texts_of(model, 2)
    with mmca_of(model).neutral():
        plain = block(states)
    with model.condition.on(texts, torch.tensor([0, 1]), None):
        found = block(states)
    for row in range(2):
        words = texts.states[row][texts.mask[row]].mean(dim=0)
        w = coefficients(update, states[row].flatten(1).T, words)
        down, up = update.down.weight, update.up.weight
        equation = "orkl,r,rcij->ockl" if convolution == "paper" else "orkl,r,rcij->ocij"
        kernel = torch.einsum(equation, up, w, down)
        expected = nn.functional.conv2d(states[row : row + 1], kernel, padding=1)
        # The inner bias is weighed and spread like any input.
        constant = (w * update.down.bias)[None, :, None, None].expand(1, -1, 4, 3)
        padding = 1 if convolution == "paper" else 0
        expected += nn.functional.conv2d(constant, up, update.up.bias, padding=padding)
        close(found[row], plain[row] + expected[0])
        assert (found[row] - plain[row]).abs().max() > 1e-2


# --- what the host feels ------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize("convolution", ["paper", "release"])
def test_neutral_at_the_start(form: str, convolution: str) -> None:
    """Single precision, to the last bit, as many images as texts."""
    plain = host()
    model = adapted(awake=False, form=form, convolution=convolution, **EVERYWHERE).float()
    images = draw(2, 3, 64, 64).float()
    expected = plain.encode_images(images).patches
    assert torch.equal(model.encode_images(images).patches, expected), "nothing is conditioned"
    assert torch.equal(encode(model, images, texts_of(model, 2), torch.tensor([0, 1])), expected)


@FORMS
def test_an_adapter_that_is_off(form: str) -> None:
    model = adapted(form=form, **EVERYWHERE)
    images = draw(2, 3, 64, 64)
    expected = host().double().encode_images(images).patches
    with mmca_of(model).neutral():
        texts = texts_of(model)
        features, rows = model.encode_for_texts(images, texts, IMAGE)
        assert torch.equal(features.patches, expected) and torch.equal(rows, IMAGE)
    assert (encode(model, images, texts) - expected[IMAGE]).abs().max() > 1e-3


@FORMS
@pytest.mark.parametrize("stages", [0, 3])
@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_several_texts_equal_one_by_one(form: str, stages: int, size: tuple[int, int]) -> None:
    """At the configured size and at another, the first adapted place in a layer or in a stage."""
    model = adapted(form=form, stages=stages, blocks=2, sites=("query", "key", "mlp"))
    images, texts = draw(2, 3, *size), texts_of(model)
    together = encode(model, images, texts)
    assert together.shape == (3, size[0] * size[1] // 1024, 16)
    assert (together[0] - together[2]).abs().max() > 1e-4, "two texts of one image"
    for row in range(3):
        one = torch.tensor([row])
        alone = encode(model, images, texts.take(one), IMAGE[one])
        close(together[row], alone[0], 1e-10)


@FORMS
def test_padding_does_not_change_coefficients(form: str) -> None:
    """At a size of its own: the mask of 96 x 64 pixels tells a grid of 3 x 2."""
    model = adapted(form=form)
    layer, update = layer_of(model), update_of(model, "vision_block_2_query")
    taken = seen_by(update.coefficients)
    states, positions, texts = draw(2, 6, 16), draw(6, 16, seed=4), texts_of(model, 2)
    photo = torch.ones(2, 96, 64, dtype=torch.bool)
    photo[0, 32:] = False  # the upper row of image 0 is left
    hidden = ~torch.tensor([[True] * 2 + [False] * 4, [True] * 6])
    moved = states + 1000 * hidden[..., None]
    for mask in (photo, None):
        for each in (states, moved):
            with model.condition.on(texts, torch.tensor([0, 1]), mask):
                layer(each, positions)
    quiet, disturbed, without, felt = taken
    close(quiet, disturbed, 1e-12)
    assert (without - felt)[0].abs().max() > 1e-2, "without a mask they are felt"
    close(quiet[1], without[1], 1e-12)


@FORMS
def test_a_mask_of_all_photo_is_no_mask(form: str) -> None:
    model = adapted(form=form, **EVERYWHERE)
    images, texts = draw(2, 3, 96, 64), texts_of(model)
    photo = torch.ones(2, 96, 64, dtype=torch.bool)
    close(encode(model, images, texts, IMAGE, photo), encode(model, images, texts), 1e-10)


def test_composed_coefficients_do_not_see_positions() -> None:
    model = adapted(form="composed")
    layer, update = layer_of(model), update_of(model, "vision_block_2_query")
    taken = seen_by(update)
    states, texts = draw(2, 6, 16), texts_of(model, 2)
    for seed in (4, 5):
        with model.condition.on(texts, torch.tensor([0, 1]), None):
            layer(states, draw(6, 16, seed=seed))
    close(*taken, 1e-12)


@FORMS
def test_gradients_with_activation_checkpointing(form: str) -> None:
    """Two passes, one after the other, whose layers are computed again after both."""
    gradients = []
    for checkpointed in (False, True):
        model = adapted(form=form, **EVERYWHERE)
        texts = texts_of(model)
        if checkpointed:
            checkpoint_blocks(model)
        model.train()
        first = encode(model, draw(2, 3, 64, 64), texts)
        second = encode(model, draw(2, 3, 64, 64, seed=8), texts, IMAGE.flip(0))
        (first * second).sum().backward()
        parameters = dict(model.adapters.named_parameters())
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters.values())
        gradients.append({name: p.grad for name, p in parameters.items() if p.grad is not None})
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient, 1e-9)


def test_more_than_there_is() -> None:
    with pytest.raises(ConfigError, match="blocks is 3"):
        adapted(blocks=3)
    with pytest.raises(ConfigError, match="stages is 5"):
        adapted(stages=5)


# --- counts -------------------------------------------------------------------------------------


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("convolution", ["paper", "release"])
def test_published_counts(convolution: str) -> None:
    """Of the authors' release, whose texts come projected to 256 channels."""
    config = MmcaConfig(blocks=6, stages=3, text_dim=256, convolution=convolution, form="composed")
    text = TextConfig(fusion_layer=11)
    with torch.device("meta"):
        model = MultiGrainModel(ModelConfig(vision=DetrVision(), text=text, adapters=(config,)))
    updates = dict(mmca_of(model).updates.named_children())
    linear = [count(each) for name, each in updates.items() if name.startswith("vision_block_")]
    assert linear == [114_912] * 12 and sum(linear) == 1_378_944
    stages = [count(each) for name, each in updates.items() if name.startswith("vision_stage_")]
    assert stages == [443_168, 836_896, 1_624_352]
    assert count(mmca_of(model).updates) == 4_283_360
    projection = mmca_of(model).text_projection
    assert projection is not None and count(projection) == 768 * 256 + 256
    assert count(mmca_of(model)) == 4_283_360 + 196_864
