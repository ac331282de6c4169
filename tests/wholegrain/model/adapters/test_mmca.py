"""MMCA on every kind of host: neutral at first, then ``W0 x + B diag(w) A x``, text by text."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wholegrain.errors import ConfigError
from wholegrain.model.adapters.condition import mean_text
from wholegrain.model.adapters.mmca import Mmca
from wholegrain.model.adapters.sites import sites_of
from wholegrain.model.adapters.updates import ConvUpdate, LinearUpdate
from wholegrain.model.checkpointing import checkpoint_blocks
from wholegrain.model.config import MmcaConfig, TimmVision
from wholegrain.model.grounding.records import TextStates
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.train.config import OptimConfig
from wholegrain.train.optim import parameter_groups

Adapted = Callable[..., MultiGrainModel]
Build = Callable[..., MultiGrainModel]
Images = Callable[..., Tensor]
Words = tuple[Tensor, Tensor]
IMAGE = torch.tensor([0, 1, 0])
HOSTS: list[tuple[str, dict[str, Any]]] = [
    ("swin", {"blocks": 1}),
    ("swin", {"blocks": 3, "sites": ("query", "key", "value", "mlp")}),
    ("vit", {"blocks": 1}),
    ("vit", {"blocks": 3, "sites": ("query", "mlp")}),
    ("timm", {"blocks": 1}),
    ("timm", {"blocks": 3}),
]


def encode(model: MultiGrainModel, images: Tensor, words: Words, image: Tensor = IMAGE) -> Tensor:
    """Patches, one row a text."""
    features, rows = model.encode_for_texts(images, model.read_texts(*words), image)
    return features.patches[rows]


def mmca(model: MultiGrainModel) -> Mmca:
    found = model.adapters["mmca"]
    assert isinstance(found, Mmca)
    return found


@pytest.mark.parametrize(("kind", "options"), HOSTS)
def test_neutral_at_the_start(
    build: Build, adapted: Adapted, images: Images, words: Words, kind: str, options: dict[str, Any]
) -> None:
    """Single precision, as it is used; to the last bit where as many images as texts are encoded.

    With another number of rows torch takes other matrix kernels, which round differently.
    """
    host, model = build(kind), adapted(kind, **options).float()
    batch = images(model)
    expected = host.encode_images(batch).patches
    assert torch.equal(model.encode_images(batch).patches, expected), "nothing is conditioned"
    one_each = (words[0][:2], words[1][:2])
    found = encode(model, batch, one_each, torch.tensor([0, 1]))
    assert torch.equal(found, expected)
    several = encode(model, batch, words)
    torch.testing.assert_close(several, expected[IMAGE], rtol=0, atol=2e-6)


@pytest.mark.parametrize(("kind", "options"), HOSTS)
def test_the_text_matters_once_awake(
    adapted: Adapted, images: Images, words: Words, kind: str, options: dict[str, Any]
) -> None:
    model = adapted(kind, awake=True, **options)
    found = encode(model, images(model).double(), words)
    assert (found[0] - found[2]).abs().max() > 1e-4, "two texts of one image"


@pytest.mark.parametrize(("kind", "options"), HOSTS)
def test_several_texts_equal_one_by_one(
    adapted: Adapted, images: Images, words: Words, kind: str, options: dict[str, Any]
) -> None:
    model = adapted(kind, awake=True, **options)
    batch = images(model).double()
    together = encode(model, batch, words)
    for row in range(3):
        one = (words[0][row : row + 1], words[1][row : row + 1])
        alone = encode(model, batch, one, IMAGE[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kind", "options"), HOSTS)
@pytest.mark.parametrize("condition", ["text", "image"])
def test_ablations(
    adapted: Adapted,
    images: Images,
    words: Words,
    kind: str,
    options: dict[str, Any],
    condition: str,
) -> None:
    model = adapted(kind, awake=True, condition=condition, **options)
    found = encode(model, images(model).double(), words)
    differs = (found[0] - found[2]).abs().max().item()
    assert (differs > 1e-4) == (condition == "text")


def texts_of(*means: Tensor) -> TextStates:
    """Texts of one token each, whose mean states are given."""
    states = torch.stack(means)[:, None]
    return TextStates(states, torch.ones(len(means), 1).bool())


def test_update_of_a_linear_layer_by_hand(adapted: Adapted) -> None:
    """``y = W0 x + B diag(w) A x`` on query and key, the value left alone."""
    model = adapted("vit", awake=True)
    host: Any = sites_of(model)["vision.block.3.query"].module
    states, words = torch.randn(2, 17, 24).double(), torch.randn(2, 24).double()
    with model.condition.on(texts_of(*words), torch.tensor([0, 1]), None):
        found = host(states)
    for text in range(2):
        change = torch.zeros_like(host.weight)
        for third, site in enumerate(("query", "key")):
            update: Any = mmca(model).updates[f"vision_block_3_{site}"]
            w = update.coefficients(states, words, None)[text]
            delta = update.up.weight @ torch.diag(w) @ update.down.weight
            change[24 * third : 24 * (third + 1)] = delta
        expected = states[text] @ (host.weight + change).T + host.bias
        torch.testing.assert_close(found[text], expected, rtol=0, atol=1e-6)
        assert torch.equal(change[48:], torch.zeros(24, 24).double())


@pytest.mark.parametrize("order", ["paper", "release"])
def test_update_of_a_convolution_by_hand(adapted: Adapted, order: str) -> None:
    model = adapted("timm", awake=True, convolution=order)
    (update,) = mmca(model).updates.values()
    assert isinstance(update, ConvUpdate)
    host = sites_of(model)["vision.stage.3"].module
    states, words = torch.randn(2, 16, 4, 4).double(), torch.randn(2, 24).double()
    with model.condition.on(texts_of(*words), torch.tensor([0, 1]), None):
        found = host(states)
    plain = host(states)
    w = update.coefficients(states.flatten(2).transpose(1, 2), words, None)
    down, up = update.down, update.up
    for text in range(2):
        # One 3 x 3 convolution whose kernel is sum_i w_i B_i (x) A_i; the inner bias is weighed
        # and spread like any input.
        kernel = torch.einsum(
            "ork,r,rcl->ockl", up.weight.flatten(2), w[text], down.weight.flatten(2)
        )
        kernel = kernel.flatten(2).unflatten(2, (3, 3))
        expected = nn.functional.conv2d(states[text : text + 1], kernel, padding=1)
        inner = (w[text] * down.bias)[None, :, None, None].expand(1, -1, 4, 4)
        margin = up.kernel_size[0] // 2
        expected += nn.functional.conv2d(inner, up.weight, up.bias, padding=margin)
        torch.testing.assert_close(found[text], plain[text] + expected[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["vit", "swin", "timm"])
def test_padding_pixels_do_not_change_coefficients(
    adapted: Adapted, images: Images, words: Words, kind: str
) -> None:
    """Judged at the first adapted place, where the states of padding are still padding's alone."""
    model = adapted(kind, awake=True, sites=("query",)) if kind != "timm" else adapted(kind, True)
    (update,) = mmca(model).updates.values()
    side = model.vision.image_size
    photo = torch.ones(2, side, side, dtype=torch.bool)
    photo[0, side // 2 :] = False  # the lower half of image 0 is padding
    taken: list[Tensor] = []
    coefficients: Any = update.coefficients

    def disturb(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, text, share = given
        assert share is not None
        assert share.shape == tokens.shape[:2]
        moved = tokens + 1000 * (share == 0)[..., None]
        assert not torch.equal(moved, tokens)
        taken.append(coefficients.weights(coefficients.embed(tokens, text, share)))
        return moved, text, share

    coefficients.register_forward_pre_hook(disturb)
    coefficients.register_forward_hook(lambda _, __, made: taken.append(made))
    with model.condition.on(model.read_texts(*words), IMAGE, photo):
        model.encode_images(images(model).double())
    quiet, disturbed = taken
    torch.testing.assert_close(quiet, disturbed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["vit", "swin", "timm"])
def test_a_mask_of_all_photo_is_no_mask(
    adapted: Adapted, images: Images, words: Words, kind: str
) -> None:
    model = adapted(kind, awake=True)
    texts, side = model.read_texts(*words), model.vision.image_size
    patches = []
    for photo in (None, torch.ones(2, side, side, dtype=torch.bool)):
        features, _ = model.encode_for_texts(images(model).double(), texts, IMAGE, photo)
        patches.append(features.patches)
    torch.testing.assert_close(*patches, rtol=0, atol=1e-10)


def test_condition_is_the_mean_of_the_texts_tokens(
    adapted: Adapted, images: Images, words: Words
) -> None:
    model = adapted("vit", awake=True)
    texts = model.read_texts(*words)
    with model.condition.on(texts, IMAGE, None):
        found = model.condition.text
        assert found is not None
        assert torch.equal(found, mean_text(texts.states, texts.mask))
    padded = torch.cat([texts.states, torch.full((3, 4, 24), 9.0).double()], 1)
    longer = TextStates(padded, torch.cat([texts.mask, torch.zeros(3, 4).bool()], 1))
    features, _ = model.encode_for_texts(images(model).double(), longer, IMAGE)
    torch.testing.assert_close(features.patches, encode(model, images(model).double(), words))


def test_condition_ends_with_the_block(adapted: Adapted, images: Images, words: Words) -> None:
    model = adapted("vit", awake=True)
    with (
        pytest.raises(ZeroDivisionError),
        model.condition.on(model.read_texts(*words), IMAGE, None),
    ):
        raise ZeroDivisionError
    assert model.condition.text is None
    assert len(model.encode_images(images(model).double()).patches) == 2


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_recomputed_blocks_meet_the_same_texts(
    adapted: Adapted, images: Images, words: Words, kind: str
) -> None:
    """A block that is run again for its backward is conditioned as it was, though that is over."""
    gradients = []
    for recompute in (False, True):
        model = adapted(kind, awake=True, blocks=2).train()
        if recompute:
            checkpoint_blocks(model)
        encode(model, images(model).double(), words).square().sum().backward()
        gradients.append([p.grad for p in model.adapters.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(plain, again, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "options"), HOSTS)
def test_what_precedes_the_texts_is_computed_once(
    adapted: Adapted, images: Images, words: Words, kind: str, options: dict[str, Any]
) -> None:
    model = adapted(kind, awake=True, **options)
    batch = images(model).double()
    expected = [encode(model, batch, words), encode(model, batch, words, IMAGE.flip(0))]
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    first: Any = next(m for m in model.vision.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(count)
    with model.same_images():
        found = [encode(model, batch, words), encode(model, batch, words, IMAGE.flip(0))]
    assert runs == 1
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    encode(model, batch + 1, words)
    assert runs == 2, "afterwards everything is computed again"


@pytest.mark.parametrize(("kind", "options"), HOSTS)
def test_maps_have_a_row_a_text(
    adapted: Adapted, images: Images, words: Words, kind: str, options: dict[str, Any]
) -> None:
    """As many texts as images, all about one image: rows cannot be told apart by their number."""
    model = adapted(kind, awake=True, **options)
    two = (words[0][:2], words[1][:2])
    batch, texts = images(model).double(), model.read_texts(*two)
    together, _ = model.encode_for_texts(batch, texts, torch.tensor([1, 1]))
    for row in range(2):
        text = texts.take(torch.tensor([row]))
        alone, _ = model.encode_for_texts(batch, text, torch.tensor([1]))
        for of_both, of_one in zip(together.pyramid, alone.pyramid, strict=True):
            torch.testing.assert_close(of_both[row], of_one[0], rtol=0, atol=1e-10)


def test_off_is_the_host_to_the_bit(
    build: Build, adapted: Adapted, images: Images, words: Words
) -> None:
    for kind in ("swin", "vit", "timm"):
        host, model = build(kind).double().eval(), adapted(kind, awake=True)
        batch = images(model).double()
        with mmca(model).neutral():
            assert not model.image_depends_on_text
            assert torch.equal(
                model.encode_images(batch).patches, host.encode_images(batch).patches
            )
            assert torch.equal(encode(model, batch, words), encode(host, batch, words))
        assert model.image_depends_on_text


@pytest.mark.parametrize(("kind", "options"), HOSTS)
def test_gradient_reaches_every_adapter_parameter(
    adapted: Adapted, images: Images, words: Words, kind: str, options: dict[str, Any]
) -> None:
    model = adapted(kind, awake=True, **options)
    encode(model, images(model).double(), words).square().sum().backward()
    parameters = list(model.adapters.parameters())
    assert parameters
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)


def test_at_the_start_b_alone_learns(adapted: Adapted, images: Images, words: Words) -> None:
    model = adapted("vit")
    encode(model, images(model).double(), words).square().sum().backward()
    update = mmca(model).updates["vision_block_3_query"]
    assert isinstance(update, LinearUpdate)
    up, down = update.up.weight.grad, update.down.weight.grad
    assert up is not None and down is not None
    assert up.abs().sum() > 0
    assert down.abs().sum() == 0


@pytest.mark.parametrize(("kind", "options"), HOSTS)
def test_parameters_are_what_the_host_lacks(
    build: Build, adapted: Adapted, kind: str, options: dict[str, Any]
) -> None:
    host, model = build(kind), adapted(kind, **options)
    names = {n for n, _ in model.named_parameters() if not n.startswith("adapters.")}
    assert names == {n for n, _ in host.named_parameters()}


def test_adapters_have_a_group_and_a_rate_of_their_own(adapted: Adapted) -> None:
    model = adapted("vit")
    optim = OptimConfig(adapter_lr_factor=7.0)
    groups = parameter_groups(model, optim, model.adapters.parameters())
    own = {id(p) for group in groups if group["factor"] == 7.0 for p in group["params"]}
    assert own == {id(p) for p in model.adapters.parameters()}
    plain = parameter_groups(model, optim)
    assert all(group["factor"] != 7.0 for group in plain)


@pytest.mark.parametrize(("kind", "count"), [("vit", 3), ("swin", 4), ("timm", 3)])
def test_more_blocks_than_there_are(build: Build, kind: str, count: int) -> None:
    build(kind).add_adapter(MmcaConfig(rank=2, blocks=count))
    with pytest.raises(ConfigError, match=rf"adapters.blocks is {count + 1}"):
        build(kind).add_adapter(MmcaConfig(rank=2, blocks=count + 1))


def test_a_refused_adapter_leaves_the_host_alone(build: Build) -> None:
    model = build("vit")
    with pytest.raises(ConfigError):
        model.add_adapter(MmcaConfig(blocks=9))
    assert not model.adapters
    assert model.config.adapters == ()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_regions_with_blocks_of_their_own_are_refused(build: Build) -> None:
    with pytest.raises(ConfigError, match="local_layers is 2"):
        build("local").add_adapter(MmcaConfig(blocks=1))


@pytest.mark.parametrize("name", ["efficientnet_b0", "swin_tiny_patch4_window7_224"])
def test_backbones_without_stages_of_residual_blocks_are_refused(build: Build, name: str) -> None:
    model = build("timm")
    vision = TimmVision(name=name, image_size=224, stages=(1, 2))
    config = type(model.config)(vision=vision, text=model.config.text)
    with pytest.raises(ConfigError, match="has 0 stages"):
        MultiGrainModel(config).add_adapter(MmcaConfig(blocks=1))


def test_stages_that_give_no_maps_are_adapted_too(
    build: Build, images: Images, words: Words
) -> None:
    """The last stage's map alone is asked for; three stages lead to it."""
    config = build("timm").config
    assert isinstance(config.vision, TimmVision)
    vision = TimmVision(
        name="resnet18d",
        image_size=64,
        stages=(3,),
        options=config.vision.options,
    )
    model = MultiGrainModel(type(config)(vision=vision, text=config.text, embed_dim=8)).eval()
    model.add_adapter(MmcaConfig(rank=2, blocks=3))
    assert encode(model, images(model), words).shape == (3, 16, 16)


def test_convnext_has_stages(build: Build, words: Words) -> None:
    text = build("timm").config.text
    vision = TimmVision(name="convnext_atto", image_size=32, stages=(1, 2))
    config = type(build("timm").config)(vision=vision, text=text, embed_dim=8)
    model = MultiGrainModel(config).eval()
    model.add_adapter(MmcaConfig(rank=2, blocks=2))
    assert encode(model, torch.randn(2, 3, 32, 32), words).shape == (3, 4, 160)
