"""MMA on ViT, Swin, DETR and BERT: where it reads and adds, and what it leaves alone."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wholegrain.model.adapters.mma import Mma
from wholegrain.model.adapters.mma_pair import pair_parameters
from wholegrain.model.checkpointing import checkpoint_blocks
from wholegrain.model.compile import compile_blocks
from wholegrain.model.concepts import whole_images
from wholegrain.model.config import DetrVision, MmaConfig, ModelConfig, SwinVision, TextConfig
from wholegrain.model.multigrain import MultiGrainModel

Build = Callable[..., MultiGrainModel]
Images = Callable[..., Tensor]
Words = tuple[Tensor, Tensor]
HOSTS = ["vit", "clip", "swin", "detr"]
IMAGE = torch.tensor([0, 1, 0])
TEXT = TextConfig(
    vocab_size=50,
    hidden_size=24,
    layers=4,
    fusion_layer=2,
    heads=3,
    intermediate_size=40,
    max_positions=20,
)
DETR = DetrVision(
    name="resnet18",
    image_size=64,
    width=16,
    layers=2,
    heads=2,
    feed_forward=24,
    options={"channels": [4, 4, 8, 8], "stem_width": 4},
)


def host_of(build: Build, kind: str) -> MultiGrainModel:
    """A stirred host in double precision."""
    if kind != "detr":
        return build(kind).double()
    torch.manual_seed(0)
    model = MultiGrainModel(ModelConfig(vision=DETR, text=TEXT, embed_dim=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.double().eval()


def attach(model: MultiGrainModel, **options: Any) -> Mma:
    """Adapters of a rank of 4 on the last two blocks, all of whose weights do something."""
    pairs = options.get("pairs")
    chosen = MmaConfig(**{"rank": 4, "blocks": None if pairs else 2, "alpha": 0.5, **options})
    adapter = Mma(model, chosen).double()
    generator = torch.Generator().manual_seed(5)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return adapter


def outputs(model: MultiGrainModel, images: Tensor, words: Words) -> dict[str, Tensor]:
    """All that is asked of a model; boxes and scores are in single precision whatever the model."""
    boxes, scores = model.ground(images, *words, IMAGE)
    features, states = model.encode_images(images), model.encode_text(*words)
    memory = model.memory(whole_images(features))
    return {
        "image": features.patches,
        "text": states[words[1]],
        "fused": model.fuse_cls(states, words[1], memory, IMAGE),
        "boxes": boxes,
        "scores": scores,
    }


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    return {name: (one[name] - other[name]).abs().max().item() for name in one}


class Recorder:
    """What modules were given and gave."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.given: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}
        self.handles = [m.register_forward_hook(self.hook(name)) for name, m in modules.items()]

    def hook(self, name: str) -> Callable[..., None]:
        def record(_: nn.Module, given: tuple[Any, ...], made: Tensor) -> None:
            self.given[name], self.made[name] = given[0], made

        return record


def blocks_of(model: MultiGrainModel) -> dict[str, nn.Module]:
    named = {f"vision.block.{n}": b for n, b in enumerate(model.vision.blocks(), start=1)}
    return named | {f"text.layer.{n}": b for n, b in enumerate(model.text.layers, start=1)}


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("options", [{}, {"placement": "inside", "cross": True}])
def test_c1_an_alpha_of_zero_is_the_host(
    build: Build, images: Images, words: Words, kind: str, options: dict[str, Any]
) -> None:
    model = host_of(build, kind)
    batch = images(model).double()
    expected = outputs(model, batch, words)
    names = set(model.state_dict())
    for trick in (False, True):
        adapter = attach(model, alpha=0.0, gradient_trick=trick, **options)
        found = outputs(model, batch, words)
        with torch.no_grad():
            still = outputs(model, batch, words)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert all(torch.equal(still[name], expected[name]) for name in expected)
        sum(value.sum() for value in found.values()).backward()  # type: ignore[union-attr]
        gradients = [p.grad for p in adapter.parameters()]
        assert all(g is not None and torch.isfinite(g).all() for g in gradients)
        adapter.remove()
    assert set(model.state_dict()) == names


@pytest.mark.parametrize("kind", HOSTS)
def test_switched_off_or_with_outputs_of_zero_it_is_the_host(
    build: Build, images: Images, words: Words, kind: str
) -> None:
    model = host_of(build, kind)
    batch = images(model).double()
    expected = outputs(model, batch, words)
    adapter = attach(model, placement="inside", cross=True)
    awake = outputs(model, batch, words)
    assert all(gap > 1e-6 for gap in distance(awake, expected).values())
    with adapter.neutral():
        found = outputs(model, batch, words)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    adapter.remove()
    Mma(model, MmaConfig(rank=4, blocks=2, zero_up=True, cross=True)).double()
    found = outputs(model, batch, words)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("placement", ["outside", "inside"])
def test_c2_the_change_is_proportional_to_alpha(
    build: Build, images: Images, words: Words, kind: str, placement: str
) -> None:
    model = host_of(build, kind)
    batch = images(model).double()
    expected = outputs(model, batch, words)
    adapter = attach(model, placement=placement)
    gaps = []
    for alpha in (1e-6, 1e-7):
        adapter.alpha = alpha
        gaps.append(distance(outputs(model, batch, words), expected))
    for name in ("image", "text", "fused"):
        assert gaps[0][name] == pytest.approx(10 * gaps[1][name], rel=1e-2), name
        assert gaps[0][name] > 1e-10, name


def test_c3_the_host_stays_frozen(build: Build, images: Images, words: Words) -> None:
    model = host_of(build, "swin")
    model.requires_grad_(False)
    adapter = attach(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1)
    found = outputs(model, images(model).double(), words)
    sum(value.square().sum() for value in found.values()).backward()  # type: ignore[union-attr]
    moved = {name: value.clone() for name, value in adapter.named_parameters()}
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(not torch.equal(p, moved[name]) for name, p in adapter.named_parameters())


@pytest.mark.parametrize("kind", HOSTS)
def test_c4_either_modality_teaches_the_shared_map(
    build: Build, images: Images, words: Words, kind: str
) -> None:
    model = host_of(build, kind)
    adapter = attach(model)
    batch = images(model).double()
    losses = {
        "text": lambda: model.encode_text(*words)[words[1]].square().sum(),
        "vision": lambda: model.encode_images(batch).patches.square().sum(),
    }
    for side, loss in losses.items():
        adapter.zero_grad()
        loss().backward()
        for name, parameter in adapter.named_parameters():
            learns = "shared" in name or f".{side}." in name
            assert (parameter.grad is not None and bool(parameter.grad.any())) == learns, name


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_c5_blocks_below_the_first_pair_are_untouched(
    build: Build, images: Images, words: Words, kind: str
) -> None:
    model = host_of(build, kind)
    batch, count = images(model).double(), len(model.vision.blocks())
    recorder = Recorder(blocks_of(model))
    outputs(model, batch, words)
    expected = dict(recorder.made)
    attach(model, blocks=1)
    outputs(model, batch, words)
    adapted = {f"vision.block.{count}", "text.layer.2"}
    for name, value in recorder.made.items():
        assert torch.equal(value, expected[name]) == (name not in adapted), name


@pytest.mark.parametrize("kind", HOSTS)
def test_c6_the_gradient_trick(build: Build, images: Images, words: Words, kind: str) -> None:
    model = host_of(build, kind)
    batch = images(model).double()
    adapter = attach(model, alpha=0.01, cross=True)
    found = []
    for trick in (False, True):
        adapter.gradient_trick = trick
        adapter.zero_grad()
        pixels = batch.clone().requires_grad_()
        outputs(model, pixels, words)["boxes"].sum().backward()
        assert pixels.grad is not None
        found.append(({n: p.grad for n, p in adapter.named_parameters()}, pixels.grad))
    (plain, at_input), (tricked, at_input_tricked) = found
    for name, gradient in plain.items():
        assert gradient is not None
        torch.testing.assert_close(tricked[name], gradient / 0.01, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(at_input_tricked, at_input, rtol=1e-9, atol=1e-12)


def test_c7_counts(build: Build) -> None:
    model = host_of(build, "swin")  # widths 8, 8, 16, 16; text 24
    adapter = attach(model, pairs=((2, 2), (4, 1)), cross=True)
    found = [sum(p.numel() for p in pair.parameters()) for pair in adapter.pairs]
    cross = {"cross_1": 24, "cross_2": 24}
    assert found == [
        pair_parameters({"vision": 8, "text": 24}, 4),
        pair_parameters({"vision": 16, "text": 24} | cross, 4),
    ]


@pytest.mark.parametrize("kind", HOSTS)
def test_added_outside_by_hand(build: Build, images: Images, words: Words, kind: str) -> None:
    model = host_of(build, kind)
    batch = images(model).double()
    recorder = Recorder(blocks_of(model))
    adapter = attach(model, blocks=1)
    outputs(model, batch, words)
    name = f"vision.block.{len(model.vision.blocks())}"
    given, made = recorder.given[name], recorder.made[name]
    texts_given, texts_made = recorder.given["text.layer.2"], recorder.made["text.layer.2"]
    with adapter.neutral():
        outputs(model, batch, words)
    block: Any = model.vision.blocks()[-1]
    read = given if kind == "detr" else block.norm1(given)
    pair: Any = adapter.pairs[0]
    assert torch.equal(recorder.given[name], given)
    expected = recorder.made[name] + 0.5 * pair("vision", read)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    expected = recorder.made["text.layer.2"] + 0.5 * pair("text", texts_given)
    torch.testing.assert_close(texts_made, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["vit", "detr"])
def test_added_inside_by_hand(build: Build, images: Images, words: Words, kind: str) -> None:
    """``LN(z + alpha A(x))``: z is what the last norm reads without the adapter."""
    model = host_of(build, kind)
    batch = images(model).double()
    layer: Any = model.text.layers[1]
    block: Any = model.vision.blocks()[-1]
    parts = {"text": layer, "text norm": layer.feed_forward_residual.norm, "vision": block}
    if kind == "detr":
        parts["vision norm"] = block.feed_forward_norm
    recorder = Recorder(parts)
    outputs(model, batch, words)
    host = copy.copy(recorder)
    host.given, host.made = dict(recorder.given), dict(recorder.made)
    adapter = attach(model, blocks=1, placement="inside")
    outputs(model, batch, words)
    pair: Any = adapter.pairs[0]
    for side in ("text", "vision"):
        assert torch.equal(recorder.given[side], host.given[side])
        if f"{side} norm" in parts:
            norm = parts[f"{side} norm"]
            inner = host.given[f"{side} norm"] + 0.5 * pair(side, host.given[side])
            expected = nn.functional.layer_norm(
                inner, norm.normalized_shape, norm.weight, norm.bias, norm.eps
            )
        else:  # a pre-norm block has no last norm
            update = pair(side, block.norm1(host.given[side]))
            expected = host.made[side] + 0.5 * update
        torch.testing.assert_close(recorder.made[side], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("placement", ["outside", "inside"])
def test_cross_layers_by_hand(build: Build, images: Images, words: Words, placement: str) -> None:
    model = host_of(build, "vit")
    batch = images(model).double()
    layers: list[Any] = list(model.cross.layers)
    ends: dict[str, nn.Module] = {
        str(n): each.feed_forward_residual for n, each in enumerate(layers)
    }
    recorder = Recorder(ends)
    # The pair of the last image block has the cross layers, not that of the last text layer.
    adapter = attach(model, pairs=((3, 1), (1, 2)), cross=True, placement=placement)
    pair, other = list[Any](adapter.pairs)
    assert set(pair.sides) == {"vision", "text", "cross_1", "cross_2"}
    assert set(other.sides) == {"vision", "text"}
    outputs(model, batch, words)
    for number, layer in enumerate(layers):
        given, made = recorder.given[str(number)], recorder.made[str(number)]
        added = 0.5 * pair(f"cross_{number + 1}", given)
        norm = layer.feed_forward_residual.norm
        with adapter.neutral():
            update = layer.feed_forward(given)
            inner = given + update + (added if placement == "inside" else 0)
            expected = norm(inner) + (added if placement == "outside" else 0)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)


def test_tokens_do_not_meet(build: Build, images: Images, words: Words) -> None:
    """Equal states stay equal, and what is added to a state depends on it alone."""
    model = host_of(build, "vit")
    adapter = attach(model)
    states, output = torch.randn(1, 5, 24).double(), torch.zeros(1, 5, 24).double()
    added = adapter.add_at("vision.block.3", states, output)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = adapter.add_at("vision.block.3", states[:, order], output)
    torch.testing.assert_close(moved, added[:, order], rtol=0, atol=1e-12)
    assert adapter.tokenwise
    assert not adapter.needs_text


def test_two_adapters_on_one_site_in_either_order(
    build: Build, images: Images, words: Words
) -> None:
    found = []
    for order in ((2, 7), (7, 2)):
        model = host_of(build, "vit")
        for seed in order:
            adapter = attach(model)
            generator = torch.Generator().manual_seed(seed)
            for parameter in adapter.parameters():
                nn.init.normal_(parameter, std=0.4, generator=generator)
        found.append(outputs(model, images(model).double(), words))
    assert all(gap < 1e-12 for gap in distance(*found).values())


def gradients(
    model: MultiGrainModel, adapter: Mma, batches: list[Tensor], words: Words
) -> dict[str, Tensor]:
    """Of several passes that are all taken before the one backward pass."""
    model.zero_grad()
    adapter.zero_grad()
    torch.manual_seed(11)  # dropout and stochastic depth
    losses = []
    for pixels in batches:
        found = outputs(model, pixels, words)
        losses.append(sum(value.square().sum() for value in found.values()))
    torch.stack(losses).sum().backward()  # type: ignore[arg-type]
    own = {f"mma.{n}": p.grad for n, p in adapter.named_parameters()}
    host = {n: p.grad for n, p in model.named_parameters()}
    return {n: g for n, g in (own | host).items() if g is not None}


@pytest.mark.parametrize("kind", ["vit", "swin", "detr"])
@pytest.mark.parametrize("placement", ["outside", "inside"])
def test_blocks_computed_again_in_the_backward_pass(
    build: Build, images: Images, words: Words, kind: str, placement: str
) -> None:
    model = host_of(build, kind)
    adapter = attach(model, placement=placement, cross=True)
    model.train()
    first = images(model).double()
    batches = [first, first.flip(0) * 0.7]
    expected = gradients(model, adapter, batches, words)
    assert sum(name.startswith("mma.") for name in expected) == len(list(adapter.parameters()))
    checkpoint_blocks(model)
    found = gradients(model, adapter, batches, words)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10, msg=name)


def test_samples_that_skip_a_branch(build: Build, images: Images, words: Words) -> None:
    """Stochastic depth leaves samples out of a Swin block's norm; the pair sees all of them."""
    vision = SwinVision(
        image_size=64, embed_dim=8, depths=(2, 2), heads=(1, 2), window=4, drop_path=0.9
    )
    torch.manual_seed(0)
    model = MultiGrainModel(ModelConfig(vision=vision, text=TEXT, embed_dim=8)).double().train()
    adapter = attach(model, blocks=1)
    block: Any = model.vision.blocks()[-1]
    states = torch.randn(8, 8, 8, 16).double()
    torch.manual_seed(1)
    found = block(states)
    torch.manual_seed(1)
    with adapter.neutral():
        plain = block(states)
    skipped = (plain == states).flatten(1).all(dim=1)
    assert skipped.any()
    pair: Any = adapter.pairs[0]
    expected = plain + 0.5 * pair("vision", block.norm1(states))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_compiled_blocks(build: Build, images: Images, words: Words) -> None:
    """Values and gradients of compiled blocks, where a hook lies within what is compiled."""
    text = TextConfig(**{**vars(TEXT), "dropout": 0.0, "attention_dropout": 0.0})
    model = build("vit", text=text).double()
    adapter = attach(model, placement="inside", cross=True)
    model.train()
    batches = [images(model).double()]
    expected = gradients(model, adapter, batches, words)
    compile_blocks(model, backend="eager")
    try:
        found = gradients(model, adapter, batches, words)
    finally:
        torch.compiler.reset()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("placement", ["outside", "inside"])
def test_a_copy_stands_alone(build: Build, images: Images, words: Words, placement: str) -> None:
    model = host_of(build, "vit")
    adapter = attach(model, placement=placement, cross=True)
    batch = images(model).double()
    expected = outputs(model, batch, words)
    twin, twin_adapter = copy.deepcopy((model, adapter))
    found = outputs(twin, batch, words)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with torch.no_grad():
        for parameter in (*twin.parameters(), *twin_adapter.parameters()):
            parameter.mul_(0.5)
    again = outputs(model, batch, words)
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    assert all(gap > 1e-6 for gap in distance(outputs(twin, batch, words), expected).values())


def test_a_block_below_those_of_regions_may_be_paired(build: Build, images: Images) -> None:
    model = build("local").double()
    batch = images(model).double()
    expected = model.encode_images(batch).patches
    attach(model, pairs=((1, 2),))
    assert (model.encode_images(batch).patches - expected).abs().max() > 1e-6
