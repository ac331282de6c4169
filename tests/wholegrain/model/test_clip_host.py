"""MMA on a CLIP of transformers: the paper's equations, the frozen host, files and the cache."""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wholegrain.errors import CheckpointError, ConfigError
from wholegrain.model.clip_host import (
    MmaClip,
    TextFeatureCache,
    attach_clip,
    host_fingerprint,
    load_clip,
    weights_mark,
)
from wholegrain.model.config import MmaConfig
from wholegrain.model.tensor_file import write_tensors

END = 49
Clip = Any  # transformers carries no types


def make_clip(seed: int = 0) -> Clip:
    """A stirred CLIP of 3 blocks in double precision."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    size = {"num_hidden_layers": 3, "num_attention_heads": 2, "projection_dim": 10}
    vision = {"hidden_size": 16, "intermediate_size": 24, "image_size": 32, "patch_size": 8}
    text = {"hidden_size": 12, "intermediate_size": 20, "vocab_size": 50, "eos_token_id": END}
    config = CLIPConfig(
        vision_config=vision | size,
        text_config=text | size | {"max_position_embeddings": 9, "bos_token_id": 48},
        projection_dim=10,
    )
    model = CLIPModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


@pytest.fixture
def clip() -> Clip:
    return make_clip()


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()


@pytest.fixture
def ids() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 48, (3, 7), generator=generator)
    ids[0, 6] = ids[1, 3] = ids[2, 5] = END
    return ids


def awaken(adapter: MmaClip, seed: int = 5) -> MmaClip:
    """Gives every weight a value that does something."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return adapter


def adapted(clip: Clip, seed: int = 5, **options: Any) -> MmaClip:
    return awaken(
        attach_clip(clip, MmaConfig(**{"rank": 8, "blocks": 2, "alpha": 0.5, **options})), seed
    )


def logits(clip: Clip, pixels: Tensor, ids: Tensor) -> Tensor:
    found: Tensor = clip(input_ids=ids, pixel_values=pixels).logits_per_image
    return found


def test_c1_an_alpha_of_zero_is_the_host(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    expected = logits(clip, pixels, ids)
    names = list(clip.state_dict())
    adapter = adapted(clip, alpha=0.0, gradient_trick=True)
    found = logits(clip, pixels, ids)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in adapter.parameters())
    with torch.no_grad():
        assert torch.equal(logits(clip, pixels, ids), expected)
    assert list(clip.state_dict()) == names
    adapter.alpha = 0.5
    assert (logits(clip, pixels, ids) - expected).abs().max() > 1e-3
    with adapter.neutral():
        assert torch.equal(logits(clip, pixels, ids), expected)
    adapter.remove()
    assert torch.equal(logits(clip, pixels, ids), expected)


def test_c2_the_change_is_proportional_to_alpha(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    expected = logits(clip, pixels, ids)
    adapter = adapted(clip)
    gaps = []
    for alpha in (1e-6, 1e-7):
        adapter.alpha = alpha
        gaps.append((logits(clip, pixels, ids) - expected).abs().max().item())
    assert gaps[0] == pytest.approx(10 * gaps[1], rel=1e-2)
    assert gaps[0] > 1e-9


def test_c3_the_host_is_frozen(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    before = host_fingerprint(clip)
    adapter = adapted(clip)
    assert not any(p.requires_grad for p in clip.parameters())
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loss = nn.functional.cross_entropy(logits(clip, pixels, ids), torch.tensor([0, 2]))
    loss.backward()
    moved = {name: p.clone() for name, p in adapter.named_parameters()}
    optimizer.step()
    assert all(p.grad is None for p in clip.parameters())
    assert all(not torch.equal(p, moved[name]) for name, p in adapter.named_parameters())
    assert host_fingerprint(clip) == before
    with torch.no_grad():
        clip.logit_scale += 1e-12
    assert host_fingerprint(clip) != before


def test_c4_either_modality_teaches_the_shared_map(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    adapter = adapted(clip)
    weights = torch.randn(10).double()  # a unit vector's length teaches nothing
    losses: dict[str, Callable[[], Tensor]] = {
        "text": lambda: adapter.text_features(ids) @ weights,
        "vision": lambda: adapter.image_features(pixels) @ weights,
    }
    for side, loss in losses.items():
        adapter.zero_grad()
        loss().sum().backward()
        for name, parameter in adapter.named_parameters():
            learns = "shared" in name or f".{side}." in name
            assert (parameter.grad is not None and bool(parameter.grad.any())) == learns, name


def states_of(clip: Clip, pixels: Tensor, ids: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """Input of the first block and outputs of all."""
    found = clip(input_ids=ids, pixel_values=pixels, output_hidden_states=True)
    return {
        "vision": found.vision_model_output.hidden_states,
        "text": found.text_model_output.hidden_states,
    }


@pytest.mark.parametrize("recorded_before", [False, True])
def test_c5_and_the_equation_by_hand(
    clip: Clip, pixels: Tensor, ids: Tensor, recorded_before: bool
) -> None:
    """Blocks below the pairs are the host's, the others ``Block(x) + alpha A(LN1(x))``."""
    if recorded_before:  # transformers sets its recording hooks once, at the first such call
        states_of(clip, pixels, ids)
    adapter = adapted(clip, pairs=((2, 3),), blocks=None)
    found = states_of(clip, pixels, ids)
    with adapter.neutral():
        host = states_of(clip, pixels, ids)
    assert torch.equal(found["vision"][1], host["vision"][1])
    assert torch.equal(found["text"][2], host["text"][2])
    pair: Any = adapter.pairs[0]
    encoders = {"vision": clip.vision_model.encoder, "text": clip.text_model.encoder}
    for side, block in (("vision", 2), ("text", 3)):
        entry = host[side][block - 1]
        update = pair(side, encoders[side].layers[block - 1].layer_norm1(entry))
        expected = host[side][block] + 0.5 * update
        torch.testing.assert_close(found[side][block], expected, rtol=0, atol=1e-12)
        assert (found[side][block] - host[side][block]).abs().max() > 1e-3
    assert adapter.sites() == ("vision.block.2", "text.layer.3")


def test_c6_the_gradient_trick(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    adapter = adapted(clip, alpha=0.01)
    found = []
    for trick in (False, True):
        adapter.gradient_trick = trick
        adapter.zero_grad()
        at = pixels.clone().requires_grad_()
        logits(clip, at, ids)[:, 0].sum().backward()
        assert at.grad is not None
        found.append(({n: p.grad for n, p in adapter.named_parameters()}, at.grad))
    (plain, at_input), (tricked, at_input_tricked) = found
    for name, gradient in plain.items():
        assert gradient is not None
        assert gradient.any()
        torch.testing.assert_close(tricked[name], gradient / 0.01, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(at_input_tricked, at_input, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("blocks", "count"), [(None, 674_560), (4, 337_280)])
def test_c7_counts_of_clip_vit_b(blocks: int | None, count: int) -> None:
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig())  # 12 blocks of 768 and of 512 channels
        adapter = attach_clip(clip, MmaConfig(blocks=blocks))
    assert sum(p.numel() for p in adapter.parameters()) == count
    first = 5 if blocks is None else 9
    numbers = range(first, 13)
    expected = [(f"vision.block.{n}", f"text.layer.{n}") for n in numbers]
    assert adapter.sites() == tuple(name for pair in expected for name in pair)


@pytest.mark.parametrize("reentrant", [False, True])
def test_blocks_computed_again_in_the_backward_pass(
    clip: Clip, pixels: Tensor, ids: Tensor, reentrant: bool
) -> None:
    adapter = adapted(clip)
    clip.train()
    found = []
    for again in (False, True):
        if again:
            clip.activation_checkpointing_enable({"use_reentrant": reentrant})
        adapter.zero_grad()
        # Both passes are taken before either is taken back.
        (logits(clip, pixels, ids)[:, 0] + logits(clip, pixels.flip(3), ids)[:, 1]).sum().backward()
        found.append({n: p.grad for n, p in adapter.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient is not None
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-10, atol=1e-12, msg=name)


def test_features_give_the_hosts_logits(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    adapter = adapted(clip)
    images, texts = adapter.image_features(pixels), adapter.text_features(ids)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(2).double())
    expected = logits(clip, pixels, ids)
    torch.testing.assert_close(adapter.logits(images, texts), expected, rtol=0, atol=1e-10)
    mask = torch.ones_like(ids)
    torch.testing.assert_close(adapter.text_features(ids, mask), texts, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pairs_take_the_hosts_precision(pixels: Tensor, dtype: torch.dtype) -> None:
    clip = make_clip().to(dtype)
    adapter = attach_clip(clip, MmaConfig(rank=4, blocks=2))
    assert all(p.dtype == dtype for p in adapter.parameters())
    assert adapter.image_features(pixels.to(dtype)).dtype == torch.float32


def test_c8_features_of_a_text_follow_what_is_taken_out_and_the_precision(
    clip: Clip, ids: Tensor
) -> None:
    clip.float()
    adapter = adapted(clip)
    cache = TextFeatureCache.of_clip(adapter)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = cache(ids)
    fine = cache(ids)
    assert 0 < (fine - coarse).abs().max() < 0.1
    adapter.remove()
    torch.testing.assert_close(cache(ids), adapter.text_features(ids, None), rtol=0, atol=0)
    assert (cache(ids) - fine).abs().max() > 1e-3


def test_c9_a_file_of_the_pairs_alone(
    clip: Clip, pixels: Tensor, ids: Tensor, tmp_path: Path
) -> None:
    adapter = adapted(clip)
    adapter.alpha = 0.25  # as chosen after training
    expected = logits(clip, pixels, ids)
    adapter.save(tmp_path / "mma.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["mma.safetensors"]
    other = make_clip()
    loaded = load_clip(other, tmp_path / "mma.safetensors")
    assert torch.equal(logits(other, pixels, ids), expected)
    assert loaded.config == adapter.config
    awaken(loaded, seed=6)
    loaded.alpha = 1.0
    assert not torch.equal(logits(other, pixels, ids), expected)
    loaded.load(tmp_path / "mma.safetensors")
    assert torch.equal(logits(other, pixels, ids), expected)


def test_a_file_of_another_host(clip: Clip, tmp_path: Path) -> None:
    path = tmp_path / "mma.safetensors"
    adapted(clip).save(path)
    for other in (make_clip(seed=1), make_clip().float()):
        with pytest.raises(CheckpointError, match="a host whose weights are"):
            load_clip(other, path)
        attach_clip(other, MmaConfig(blocks=1))  # nothing was left in it


def test_a_file_of_other_pairs(clip: Clip, tmp_path: Path) -> None:
    adapted(clip).save(tmp_path / "mma.safetensors")
    other = adapted(make_clip(), rank=3, alpha=0.1)
    before = {name: p.clone() for name, p in other.named_parameters()}
    with pytest.raises(CheckpointError, match=r"rank is 3, not 8; alpha is 0.1, not 0.5"):
        other.load(tmp_path / "mma.safetensors")
    assert all(torch.equal(p, before[name]) for name, p in other.named_parameters())


@pytest.mark.parametrize("content", ["missing", "text", "foreign", "config"])
def test_files_that_are_none_of_ours(clip: Clip, tmp_path: Path, content: str) -> None:
    path = tmp_path / "mma.safetensors"
    if content == "text":
        path.write_text("no tensors")
    elif content == "foreign":
        write_tensors(path, {"x": torch.zeros(2)}, {})
    elif content == "config":
        given = {"config": '{"ranks": 3}', "alpha": "0.1", "host": "0"}
        write_tensors(path, {"x": torch.zeros(2)}, given)
    with pytest.raises(CheckpointError, match=r"give a file of MmaClip\.save"):
        load_clip(clip, path)


def test_wrong_hosts(clip: Clip) -> None:
    with pytest.raises(ConfigError, match="the host is a Linear"):
        attach_clip(nn.Linear(2, 2), MmaConfig())
    with pytest.raises(ConfigError, match=r"adapters.blocks is 8 \(the default\), but there are 3"):
        attach_clip(clip, MmaConfig())
    with pytest.raises(ConfigError, match="CLIP has no cross encoder"):
        attach_clip(clip, MmaConfig(blocks=1, cross=True))
    assert all(p.requires_grad for p in clip.parameters()), "a refusal changes nothing"
    adapter = attach_clip(clip, MmaConfig(blocks=1))
    with pytest.raises(ConfigError, match="has adapters already"):
        attach_clip(clip, MmaConfig(blocks=1))
    adapter.remove()
    attach_clip(clip, MmaConfig(blocks=1))


def test_a_copy_stands_alone(clip: Clip, pixels: Tensor, ids: Tensor) -> None:
    adapter = adapted(clip)
    expected = logits(clip, pixels, ids)
    twin = copy.deepcopy(adapter)
    assert torch.equal(logits(twin.host, pixels, ids), expected)
    with torch.no_grad():
        for parameter in (*twin.parameters(), *twin.host.parameters()):
            parameter.mul_(0.5)
    assert torch.equal(logits(clip, pixels, ids), expected)
    assert not torch.equal(logits(twin.host, pixels, ids), expected)


# --- the cache of text features -----------------------------------------------------------------


class Counted:
    """A cache, and how often it has texts encoded."""

    def __init__(self, adapter: MmaClip) -> None:
        self.count = 0
        self.adapter = adapter
        host: Clip = adapter.host
        modules = (host.text_model, host.text_projection, adapter)
        self.cache = TextFeatureCache(self.encode, *modules)

    def encode(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        self.count += 1
        return self.adapter.text_features(ids, mask)


def step_of_sgd(adapter: MmaClip, ids: Tensor) -> None:
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1e-3)
    adapter.text_features(ids)[:, 0].sum().backward()
    optimizer.step()


def step_of_fused_adamw(adapter: MmaClip, ids: Tensor) -> None:
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-3, fused=True)
    adapter.text_features(ids)[:, 0].sum().backward()
    optimizer.step()


def behind_autograds_back(adapter: MmaClip, _: Tensor) -> None:
    pair: Any = adapter.pairs[0]
    pair.side("text").down.weight.data[0, 0] += 1e-6


def in_the_host(adapter: MmaClip, _: Tensor) -> None:
    host: Clip = adapter.host
    with torch.no_grad():
        host.text_model.embeddings.token_embedding.weight[3, 0] += 1e-6


def swapped(adapter: MmaClip, _: Tensor) -> None:
    pair: Any = adapter.pairs[0]
    weight = pair.shared.weight
    with torch.no_grad():
        weight.copy_(weight.flip(0))


def loaded(adapter: MmaClip, _: Tensor) -> None:
    state = {name: value + 1e-6 for name, value in adapter.state_dict().items()}
    adapter.load_state_dict(state)


def other_alpha(adapter: MmaClip, _: Tensor) -> None:
    adapter.alpha *= 2


def switched_off(adapter: MmaClip, _: Tensor) -> None:
    adapter.enabled = False


CHANGES: Iterable[Callable[[MmaClip, Tensor], None]] = (
    step_of_sgd,
    step_of_fused_adamw,
    behind_autograds_back,
    in_the_host,
    swapped,
    loaded,
    other_alpha,
    switched_off,
)


@pytest.mark.parametrize("change", CHANGES)
def test_c9_kept_features_go_when_weights_change(
    clip: Clip, ids: Tensor, change: Callable[[MmaClip, Tensor], None]
) -> None:
    adapter = adapted(clip)
    counted = Counted(adapter)
    first = counted.cache(ids)
    assert not first.requires_grad
    assert counted.cache(ids) is first
    assert counted.count == 1
    change(adapter, ids)
    found = counted.cache(ids)
    assert counted.count == 2
    with torch.no_grad():
        expected = adapter.text_features(ids)
    assert torch.equal(found, expected)
    assert not torch.equal(found, first)
    assert len(counted.cache) == 1, "what was kept of the old weights is dropped"


def test_texts_are_told_apart(clip: Clip, ids: Tensor) -> None:
    cache = TextFeatureCache.of_clip(adapted(clip))
    mask = torch.ones_like(ids)
    mask[:, 0] = 0
    found = [cache(ids), cache(ids.flip(0)), cache(ids, mask), cache(ids[:2]), cache(ids.clone())]
    assert len(cache) == 4
    assert found[4] is found[0]
    torch.testing.assert_close(found[1], found[0].flip(0), rtol=0, atol=1e-12)
    assert not torch.equal(found[2], found[0])


def test_a_mark_of_every_kind_of_tensor() -> None:
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    tensors = [torch.ones(3, 2).T.to(kind) for kind in kinds] + [
        torch.tensor(2.0),
        torch.ones(9)[1:],
    ]
    with torch.inference_mode():
        tensors.append(torch.ones(2))
    before = weights_mark(tensors)
    assert weights_mark(tensors) == before
    assert weights_mark([]) != before
    for tensor in tensors[:-1]:
        tensor.data.zero_()
        assert weights_mark(tensors) != before
        before = weights_mark(tensors)
