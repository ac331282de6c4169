"""ScanFormer against one pass over everything, and what may and may not reach what."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from wholegrain.errors import DataError
from wholegrain.model.adapters.condition import Condition
from wholegrain.model.concepts import ImageFeatures
from wholegrain.model.config import ScanFusion, VitVision
from wholegrain.model.grounding import scan_pass
from wholegrain.model.grounding.records import TextStates
from wholegrain.model.grounding.scan import ScanFormer
from wholegrain.model.grounding.scan_pass import Choose, ScaleState
from wholegrain.model.grounding.scan_select import of_children, of_parents
from wholegrain.model.vision import VitEncoder

GRIDS = (2, 4, 8)
IMAGE = torch.tensor([0, 1, 0])


class Scene(NamedTuple):
    """A fusion with all that it reads."""

    fusion: ScanFormer
    vision: VitEncoder
    texts: TextStates
    images: Tensor
    image: Tensor

    def features(self) -> ImageFeatures:
        return self.fusion.encode(self.vision, self.images)

    def scan(
        self, choose: Choose | None = None, features: ImageFeatures | None = None
    ) -> Iterator[ScaleState]:
        features = features or self.features()
        return self.fusion.scan(self.vision, self.texts, features, self.image, Condition(), choose)

    def vectors(
        self, choose: Choose | None = None, features: ImageFeatures | None = None
    ) -> Tensor:
        return torch.stack([each.vector for each in self.scan(choose, features)], dim=1)

    def run(self) -> Any:
        return self.fusion(self.vision, self.texts, self.features(), self.image, Condition())

    def weights(self) -> dict[str, Tensor]:
        named = [*self.fusion.named_parameters(), *self.vision.named_parameters()]
        return dict(named)


def scene(clip: bool = False, dtype: torch.dtype = torch.float64, **options: Any) -> Scene:
    """Three texts in two images, all weights stirred, selections neither empty nor whole."""
    torch.manual_seed(0)
    vision = VitEncoder(
        VitVision(image_size=64, patch_size=8, width=32, depth=4, heads=4, clip=clip)
    )
    settings = {"selector_width": 12, "gate_bias": 1.0, **options}
    fusion = ScanFormer(ScanFusion(**settings), vision, text_width=24)
    with torch.no_grad():
        for part in (vision, fusion):
            for parameter in part.parameters():
                parameter += 0.15 * torch.randn_like(parameter)
        fusion.selector.four.weight.mul_(4)
    mask = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    texts = TextStates(torch.randn(3, 5, 24).to(dtype), mask)
    images = torch.randn(2, 3, 64, 64).to(dtype)
    fusion, vision = fusion.to(dtype).eval(), vision.to(dtype).eval()
    return Scene(fusion, vision, texts, images, IMAGE)


def forced(share: float = 0.5, seed: int = 3) -> Choose:
    """A selection by lot, another one for each text and scale."""

    def choose(scale: int, logits: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed + scale)
        return torch.rand(logits.shape, generator=generator) < share

    return choose


def one_pass(given: Scene, selected: list[Tensor]) -> Tensor:
    """(T, S, D): text and all scales in one sequence through the encoder's own blocks.

    The mask is causal from block to block: the text first, then one scale after the other.
    """
    fusion, backbone = given.fusion, given.vision.backbone
    parts = [fusion.text_projection(given.texts.states) + fusion.text_type]
    parts[0] = backbone.norm_pre(parts[0])
    table = backbone.pos_embed[:, 1:].unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    for scale, grid in enumerate(GRIDS):
        reg = backbone.cls_token[0] + backbone.pos_embed[0, :1] + fusion.reg[scale]
        pixels = F.interpolate(given.images, size=(8 * grid, 8 * grid), mode="area")
        positions = F.adaptive_avg_pool2d(table, grid).flatten(2).transpose(1, 2)
        patches = backbone.patch_embed.proj(pixels).flatten(2).transpose(1, 2) + positions
        patches = patches + fusion.image_type + fusion.scale_type[scale]
        patches = backbone.norm_pre(patches)[given.image]
        placed = torch.where(selected[scale][..., None], patches, fusion.constant)
        parts.append(torch.cat([backbone.norm_pre(reg).expand(3, 1, -1), placed], dim=1))
    stage = torch.cat([torch.full((part.shape[1],), n) for n, part in enumerate(parts)])
    length = given.texts.mask.shape[1]
    allowed = stage[None, :] <= stage[:, None]
    real = F.pad(given.texts.mask, (0, len(stage) - length), value=True)
    states = torch.cat(parts, dim=1)
    for block in backbone.blocks:
        states = block(states, attn_mask=(allowed & real[:, None])[:, None])
    starts = [int((stage == n).nonzero()[0]) for n in (1, 2, 3)]
    found: Tensor = backbone.norm(states)[:, starts]
    return found


def everywhere() -> list[Tensor]:
    return [torch.ones(3, grid * grid).bool() for grid in GRIDS]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("hierarchical", [False, True])
def test_merged_is_unmerged(clip: bool, hierarchical: bool) -> None:
    """Selected by the model itself, at each scale."""
    ours, theirs = (
        list(scene(clip, hierarchical=hierarchical, merge=merge).scan()) for merge in (True, False)
    )
    assert len(ours) == len(theirs) == 3
    for merged, every in zip(ours, theirs, strict=True):
        assert torch.equal(merged.selected, every.selected)
        torch.testing.assert_close(merged.kept, every.kept)
        torch.testing.assert_close(merged.vector, every.vector, rtol=0, atol=1e-10)
        if merged.scale:
            assert merged.kept.min() > 0.05 and merged.kept.max() < 0.95


def test_merged_is_unmerged_in_single_precision() -> None:
    ours, theirs = (
        scene(dtype=torch.float32, merge=merge).run().vectors for merge in (True, False)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_without_counts_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The power of the two tests above."""
    expected = scene(merge=False).vectors(forced())
    monkeypatch.setattr(scan_pass, "log_counts", lambda counts: counts.clamp(max=1).log())
    wrong = scene(merge=True).vectors(forced())
    assert (wrong - expected)[:, 1:].abs().amax(dim=2).min() > 1e-2


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("clip", [False, True])
def test_scales_from_a_cache_are_one_pass(clip: bool, merge: bool) -> None:
    """Values, and gradients of all weights, the constant token's among them."""
    given = scene(clip, merge=merge)
    states = list(given.scan(forced()))
    ours = torch.stack([each.vector for each in states], dim=1)
    theirs = one_pass(given, [each.selected for each in states])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    weights = {n: w for n, w in given.weights().items() if not n.startswith("selector")}
    factor = torch.randn(ours.shape).double()
    found, expected = (
        torch.autograd.grad((vectors * factor).sum(), list(weights.values()), allow_unused=True)
        for vectors in (ours, theirs)
    )
    for name, mine, its in zip(weights, found, expected, strict=True):
        assert mine is not None and its is not None, name
        assert its.abs().max() > 1e-6, name
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-8, msg=name)


@pytest.mark.parametrize("merge", [True, False])
def test_no_scale_sees_a_later_one(merge: bool) -> None:
    given = scene(merge=merge)
    plain, keys = given.vectors(forced()), _text_keys(given)
    for scale in (1, 2):
        features = given.features()
        maps = list(features.pyramid)
        maps[2 - scale] = maps[2 - scale] + torch.randn_like(maps[2 - scale])
        features.pyramid = tuple(maps)
        altered = given.vectors(forced(), features)
        assert torch.equal(altered[:, :scale], plain[:, :scale])
        assert (altered[:, scale] - plain[:, scale]).abs().max() > 1e-3
    other = given._replace(images=torch.randn_like(given.images))
    assert (other.vectors(forced()) - plain).abs().amin((0, 2)).max() > 1e-6
    for mine, its in zip(_text_keys(other), keys, strict=True):
        assert torch.equal(mine, its)


def _text_keys(given: Scene) -> list[Tensor]:
    """Keys and values of the texts in every block, after all scales have run."""
    scanning: Any = given.scan(forced())
    list(scanning)
    return [part[:, :, :5] for seen in scanning._seen for part in seen]


def _lengths(given: Scene, choose: Choose, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each pass through the first block: the text's, then each scale's."""
    found, run = [], given.fusion.run_block

    def recorded(number: int, block: Any, states: Tensor, *others: Any) -> Any:
        if number == 1:
            found.append(states.shape[1])
        return run(number, block, states, *others)

    monkeypatch.setattr(given.fusion, "run_block", recorded)
    given.vectors(choose)
    return found


def test_all_selected_is_the_plain_pyramid(monkeypatch: pytest.MonkeyPatch) -> None:
    given = scene()
    ours = given.vectors(forced(2.0))
    torch.testing.assert_close(ours, one_pass(given, everywhere()), rtol=0, atol=1e-10)
    assert _lengths(given, forced(2.0), monkeypatch) == [5, 1 + 4, 1 + 16, 1 + 64]


def test_none_selected_leaves_reg_and_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    given = scene()
    features = given.features()
    finer = [10 * torch.randn_like(each) for each in features.pyramid[:2]]
    features.pyramid = (*finer, features.pyramid[2])
    none = forced(-1.0)
    assert torch.equal(given.vectors(none, features), given.vectors(none))
    assert _lengths(given, none, monkeypatch) == [5, 1 + 4, 2, 2]


@pytest.mark.parametrize("merge", [True, False])
def test_an_unselected_patch_changes_nothing(merge: bool) -> None:
    given = scene(merge=merge)
    states = list(given.scan(forced()))
    both = states[2].selected[0] | states[2].selected[2]  # the texts of image 0
    row, column = divmod(int((~both).nonzero()[0]), 8)
    seen_row, seen_column = divmod(int(both.nonzero()[0]), 8)
    results = []
    for y, x in ((row, column), (seen_row, seen_column)):
        features = given.features()
        finest = features.pyramid[0].clone()
        finest[0, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] += 5
        features.pyramid = (finest, *features.pyramid[1:])
        results.append(given.vectors(forced(), features))
    plain = torch.stack([each.vector for each in states], dim=1)
    assert torch.equal(results[0], plain)
    assert not torch.allclose(results[1], plain)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_texts_do_not_depend_on_their_batch(dtype: torch.dtype, tolerance: float) -> None:
    given = scene(dtype=dtype)
    together = list(given.scan())
    assert together[2].selected.sum(1).unique().numel() > 1, "the rows are padded"
    for row in range(3):
        alone = given._replace(
            texts=given.texts.take(torch.tensor([row])), image=given.image[row : row + 1]
        )
        for mine, its in zip(alone.scan(), together, strict=True):
            assert torch.equal(mine.selected[0], its.selected[row])
            torch.testing.assert_close(mine.vector[0], its.vector[row], rtol=0, atol=tolerance)


def test_selection_is_the_same_each_time() -> None:
    given = scene()
    first, second = (list(given.scan()) for _ in range(2))
    for mine, its in zip(first, second, strict=True):
        assert torch.equal(mine.selected, its.selected)
        assert torch.equal(mine.vector, its.vector)


def test_a_child_needs_its_parent() -> None:
    one, two = (state.selected for state in list(scene(hierarchical=True).scan())[1:])
    parents = one.view(3, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    assert not (two & ~parents).any()
    one, two = (state.selected for state in list(scene(hierarchical=False).scan())[1:])
    parents = one.view(3, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    assert (two & ~parents).any()


def test_training_computes_what_prediction_does() -> None:
    """Without noise the gates of both are the same; the selection learns in one alone."""
    given = scene(noise=False)
    expected = given.run()
    given.fusion.train()
    found = given.run()
    torch.testing.assert_close(found.vectors, expected.vectors, rtol=0, atol=1e-10)
    assert torch.equal(found.kept, expected.kept)
    assert expected.gates is None
    assert found.gates.shape == (3, 2) and ((found.gates > 0) & (found.gates < 1)).all()
    (given.run().vectors * torch.randn(32).double()).sum().backward()
    for name, weight in given.weights().items():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


def test_probabilities_are_those_of_being_read() -> None:
    """Of a child: its own gate's times its parent's, where it needs the parent."""
    for hierarchical in (True, False):
        given, logits = scene(hierarchical=hierarchical), []
        given.fusion.train()
        given.fusion.selector.register_forward_hook(lambda *args, to=logits: to.append(args[2]))
        gates = given.run().gates
        parents = of_children(logits[0].sigmoid(), 2)
        children = of_children(logits[1].sigmoid(), 4)
        if hierarchical:
            children = children * of_parents(parents, 4)
        expected = torch.stack([parents.mean(1), children.mean(1)], dim=1)
        torch.testing.assert_close(gates, expected, rtol=0, atol=1e-12)


def test_half_of_the_blocks_select() -> None:
    given, order = scene(), []
    for number, block in enumerate(given.vision.blocks(), start=1):
        block.norm1.register_forward_hook(lambda *_, n=number: order.append(n))
    given.fusion.selector.register_forward_hook(lambda *_: order.append(0))
    given.run()
    assert order == [1, 2, 3, 4, *2 * [1, 2, 0, 3, 4], 1, 2, 3, 4]


def test_a_budget_pulls_on_the_gates() -> None:
    given = scene()
    given.fusion.train()
    given.run().gates.sum().backward()
    gradient = given.fusion.selector.four.bias.grad
    assert gradient is not None and (gradient > 0).all()


def test_gates_learn_by_what_stands_in_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """dLoss/dlogit = sigma'(logit) <g, e - c> in the whole model, open and shut gates alike."""
    given = scene(noise=False)
    given.fusion.train()
    logits, patches, tokens = [], [], []
    gates_of, tokens_of = scan_pass.training_gates, scan_pass.all_tokens

    def recorded_gates(given_logits: Tensor, *others: Any) -> Tensor:
        given_logits.retain_grad()
        logits.append(given_logits)
        return gates_of(given_logits, *others)

    def recorded_tokens(reg: Tensor, embedded: Tensor, *others: Any) -> Any:
        found = tokens_of(reg, embedded, *others)
        found.states.retain_grad()
        patches.append(embedded.detach())
        tokens.append(found.states)
        return found

    monkeypatch.setattr(scan_pass, "training_gates", recorded_gates)
    monkeypatch.setattr(scan_pass, "all_tokens", recorded_tokens)
    states = list(given.scan())
    (states[2].vector * torch.randn(32).double()).sum().backward()
    # The finest scale's gates are products with their parents'.
    parents = states[1].selected.view(3, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)
    soft = logits[1].detach().sigmoid()
    gained = (tokens[2].grad[:, 1:] * (patches[2] - given.fusion.constant)).sum(-1)
    expected = soft * (1 - soft) * gained * parents.flatten(1)
    torch.testing.assert_close(logits[1].grad, expected, rtol=0, atol=1e-12)
    assert expected[~states[2].selected & parents.flatten(1)].abs().min() > 0


@pytest.mark.parametrize("training", [True, False])
def test_a_pass_asks_the_host_for_nothing(training: bool) -> None:
    """Tensors without values have none to give; outside training they run unmerged."""
    given = scene(mix=True)
    features = given.features()
    features.pixel_mask = torch.ones(2, 64, 64).bool()
    fusion, vision = given.fusion.to("meta").train(training), given.vision.to("meta")
    texts = TextStates(given.texts.states.to("meta"), given.texts.mask.to("meta"))
    features = ImageFeatures(
        features.cls.to("meta"),
        features.patches.to("meta"),
        features.grid,
        tuple(each.to("meta") for each in features.pyramid),
        pixel_mask=features.pixel_mask.to("meta"),
    )
    fused = fusion(vision, texts, features, IMAGE.to("meta"), Condition())
    assert fused.vectors.shape == (3, 3, 32)
    assert (fused.gates is None) != training


def test_padding_of_the_image_is_not_read() -> None:
    """Neither as pixels nor as a count; merged and unmerged agree."""
    results = []
    for merge in (True, False):
        given = scene(merge=merge, hierarchical=False)
        mask = torch.ones(2, 64, 64).bool()
        mask[0, 32:] = False
        for change in (0.0, 9.0):
            features = given.features()
            features.pixel_mask = mask
            for level, pixels in enumerate(features.pyramid):
                pixels[0, :, (32 >> level) :] += change
            states = list(given.scan(None, features))
            assert not states[2].selected[0, 32:].any()
            assert states[0].kept.tolist() == [1, 1, 1]
            results.append(torch.stack([each.vector for each in states], dim=1))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-10)
    assert not torch.allclose(scene(hierarchical=False).vectors(), results[0])


def test_texts_that_are_sure_stop() -> None:
    given = scene(exit_quality=0.5)
    every = given.run()
    sure = torch.tensor([[0.9, 0.0, 0.2], [0.9, 0.7, 0.4]])
    asked = []

    def quality(scale: int, vectors: Tensor) -> Tensor:
        # Texts are told from one another by their vectors alone.
        distance = torch.cdist(vectors, every.vectors[:, scale])
        rows = distance.argmin(dim=1)
        asked.append(rows.tolist())
        return sure[scale][rows]

    features = given.features()
    fused, answers = given.fusion.read_until(
        given.vision, given.texts, features, given.image, Condition(), quality
    )
    assert asked == [[0, 1, 2], [1, 2]]
    assert answers.tolist() == [0, 1, 2]
    for row, last in enumerate(answers.tolist()):
        own = every.vectors[row, : last + 1]
        torch.testing.assert_close(fused.vectors[row, : last + 1], own, rtol=0, atol=1e-10)
        assert (fused.vectors[row, last:] == fused.vectors[row, last]).all()
        assert (fused.kept[row, last + 1 :] == 0).all()
        assert torch.equal(fused.kept[row, : last + 1], every.kept[row, : last + 1])


def test_all_stop_or_none_does() -> None:
    def ask(exit_quality: float | None, told: float) -> Any:
        given = scene(exit_quality=exit_quality)
        return given.fusion.read_until(
            given.vision,
            given.texts,
            given.features(),
            given.image,
            Condition(),
            lambda _, vectors: vectors.new_full((len(vectors),), told),
        )

    assert ask(0.5, 0.6)[1].tolist() == [0, 0, 0]
    for fused, answers in (ask(0.5, 0.4), ask(None, 1.0)):
        assert answers.tolist() == [2, 2, 2]
        torch.testing.assert_close(fused.vectors, scene().run().vectors, rtol=0, atol=1e-10)


def test_blocks_can_be_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given = scene(noise=False)
    given.fusion.train()
    weights = list(given.weights().values())
    expected = torch.autograd.grad(given.run().vectors.sin().sum(), weights)
    run = given.fusion.run_block
    again: Callable[..., Any] = lambda *given: checkpoint(run, *given, use_reentrant=False)  # noqa: E731
    monkeypatch.setattr(given.fusion, "run_block", again)
    found = torch.autograd.grad(given.run().vectors.sin().sum(), weights)
    for mine, its in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-12)


def test_half_precision_keeps_the_counts() -> None:
    """Merged and unmerged differ by rounding alone."""
    given = scene(dtype=torch.float32)
    exact = given.vectors(forced(0.2))
    errors = []
    with torch.autocast("cpu", torch.bfloat16):
        for merge in (True, False):
            vectors = scene(dtype=torch.float32, merge=merge).vectors(forced(0.2))
            errors.append((vectors.float() - exact).square().mean().sqrt())
    assert errors[0] < 1.5 * errors[1]
    assert errors[1] < 0.1 * exact.std()


def test_counts_as_dimensions_are_those_of_the_bias() -> None:
    ours, theirs = (scene(counts_as=form).run().vectors for form in ("dimensions", "bias"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_weights_of_its_own() -> None:
    with torch.device("meta"):
        vision = VitEncoder(VitVision(image_size=640, patch_size=32, depth=2))
        fusion = ScanFormer(ScanFusion(), vision, text_width=768)
    counts = {name: weight.numel() for name, weight in fusion.named_parameters()}
    assert counts["constant"] == 768
    assert counts["reg"] == counts["scale_type"] == 3 * 768
    assert sum(n for name, n in counts.items() if name.startswith("selector")) == 148_420
    assert sum(counts.values()) == 148_420 + 768 * 769 + 9 * 768
    assert not any(name.startswith("vision") for name in counts)


def test_no_texts_and_no_photo_of_that_size() -> None:
    given = scene()
    none = torch.zeros(0).long()
    empty = given._replace(texts=given.texts.take(none), image=none)
    assert empty.run().vectors.shape == (0, 3, 32)
    with pytest.raises(DataError, match=r"32 x 32, but the encoder's positions .* 64; resize"):
        given._replace(images=given.images[..., :32, :32]).run()
