"""A pair of bottlenecks: its equation, its counts, its start and the gradients that it gets."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from wholegrain.model.adapters.mma_pair import (
    Pair,
    PairedAdapter,
    pair_parameters,
    scale_gradient,
    side_macs,
)

WIDTHS = {"vision": 12, "text": 8}


class Host(nn.Module):
    """One pre-norm block of each modality."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.text = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for width in WIDTHS.values()
        )


class OnePair(PairedAdapter):
    """The smallest adapter: one pair on the two blocks of a host."""

    def __init__(self, host: Host, alpha: float, gradient_trick: bool = False) -> None:
        super().__init__(alpha, gradient_trick)
        pair = Pair(WIDTHS, rank=4)
        self.pairs.append(pair)
        self._beside("vision", pair, "vision", host.vision, host.vision[0])
        self._beside("text", pair, "text", host.text, None)


def parts(alpha: float, gradient_trick: bool = False) -> tuple[Host, OnePair, Tensor]:
    """A host, a pair of which no weight is trivial, and states (2, 5, 12)."""
    torch.manual_seed(3)
    host = Host().double()
    adapter = OnePair(host, alpha, gradient_trick).double()
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.5)
    return host, adapter, torch.randn(2, 5, 12).double()


def test_equation_by_hand() -> None:
    host, adapter, states = parts(alpha=0.3)
    weights = dict(adapter.pairs[0].named_parameters())

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def update(side: str, x: Tensor) -> Tensor:
        down = linear(f"sides.{side}.down", x).clamp(min=0)
        return linear(f"sides.{side}.up", linear("shared", down).clamp(min=0))

    norm = host.vision[0]
    expected = host.vision[1](norm(states)) + 0.3 * update("vision", norm(states))
    torch.testing.assert_close(host.vision(states), expected, rtol=0, atol=1e-12)
    words = torch.randn(7, 8).double()
    with adapter.neutral():
        plain = host.text(words)
    expected = plain + 0.3 * update("text", words)
    torch.testing.assert_close(host.text(words), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("vision", "text", "count"),
    [(768, 512, 84_320), (512, 768, 84_320), (768, 768, 100_960), (1024, 768, 117_600)],
)
def test_counts(vision: int, text: int, count: int) -> None:
    widths = {"vision": vision, "text": text}
    assert pair_parameters(widths, 32) == count
    assert sum(p.numel() for p in Pair(widths, 32).parameters()) == count


def test_cost_of_clip_vit_b16_at_224_px() -> None:
    """Eight blocks, in millions of multiplications: 197 image tokens, 77 text tokens."""
    assert round(8 * 197 * side_macs(768, 32) / 1e6, 1) == 79.1
    assert round(8 * 77 * side_macs(512, 32) / 1e6, 1) == 20.8


def test_cost_is_what_torch_counts() -> None:
    pair = Pair(WIDTHS, rank=4)
    with FlopCounterMode(display=False) as counter:
        pair("vision", torch.randn(3, 5, 12))
    assert counter.get_total_flops() == 2 * 15 * side_macs(12, 4)


def test_start() -> None:
    """Kaiming-normal over the fan-out: variance 2 / outputs; the outputs' weights are not zero."""
    torch.manual_seed(0)
    pair = Pair({"vision": 768, "text": 512}, 32)
    for name, value in pair.named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name
        else:
            expected = math.sqrt(2 / len(value))
            # A sample's deviation of n numbers has a relative error of 1 / sqrt(2 n).
            tolerance = 5 / math.sqrt(2 * value.numel())
            assert value.std().item() == pytest.approx(expected, rel=tolerance), name
    states = torch.randn(4, 768)
    assert pair("vision", states).abs().max() > 0.1
    still = Pair({"vision": 768, "text": 512}, 32, zero_up=True)
    assert not still("vision", states).any()
    assert still.side("vision").down.weight.any()


@pytest.mark.parametrize("alpha", [0.001, 0.25])
def test_gradient_trick(alpha: float) -> None:
    """The pair's weights get 1 / alpha times their gradient, the input its own."""
    found: list[tuple[dict[str, Tensor], Tensor]] = []
    for trick in (False, True):
        host, adapter, states = parts(alpha, trick)
        output = host.vision(states.requires_grad_())
        (output.square().sum() / 2).backward()
        gradients = {n: p.grad for n, p in adapter.named_parameters() if p.grad is not None}
        assert states.grad is not None
        found.append((gradients, states.grad))
    (plain, at_input), (tricked, at_input_tricked) = found
    assert plain.keys() == tricked.keys()
    assert len(plain) == 6
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(tricked[name], gradient / alpha, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at_input_tricked, at_input, rtol=0, atol=1e-12)


@pytest.mark.parametrize("trick", [False, True])
def test_nothing_is_divided_by_an_alpha_of_zero(trick: bool) -> None:
    host, adapter, states = parts(0.0, trick)
    with adapter.neutral():
        expected = host.vision(states)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert torch.equal(host.vision(states), expected)
    host.vision(states).sum().backward()
    pair: Any = adapter.pairs[0]
    gradients = [p.grad for p in pair.side("vision").parameters()]
    # Every weight takes part: on several ranks all that learn must.
    assert all(g is not None and torch.equal(g, torch.zeros_like(g)) for g in gradients)


def test_scaled_gradient_leaves_values() -> None:
    states = torch.randn(3, 4).double().requires_grad_()
    scaled = scale_gradient(states, -2.5)
    assert torch.equal(scaled, states)
    scaled.backward(torch.ones(3, 4).double())
    assert states.grad is not None
    assert torch.equal(states.grad, torch.full((3, 4), -2.5).double())


def test_switched_off_the_host_is_itself() -> None:
    host, adapter, states = parts(alpha=1.0)
    awake = host.vision(states)
    with adapter.neutral():
        still = host.vision(states)
        assert torch.equal(still, host.vision[1](host.vision[0](states)))
        assert adapter.add_at("vision", states, awake) is awake
    assert torch.equal(host.vision(states), awake)
    assert not torch.equal(still, awake)


def test_removed_for_good() -> None:
    host, adapter, states = parts(alpha=1.0)
    adapter.remove()
    assert torch.equal(host.vision(states), host.vision[1](host.vision[0](states)))


def test_a_copy_stands_alone() -> None:
    host, adapter, states = parts(alpha=1.0)
    expected = host.vision(states)
    twin_host, twin = copy.deepcopy((host, adapter))
    assert torch.equal(twin_host.vision(states), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    nn.init.zeros_(twin_host.vision[1].weight)  # type: ignore[arg-type]
    assert torch.equal(host.vision(states), expected)
    assert not torch.equal(twin_host.vision(states), expected)
    twin.remove()
    assert torch.equal(host.vision(states), expected)


def test_adds_in_the_hosts_precision() -> None:
    host, adapter, states = parts(alpha=1.0)
    host.float()
    adapter.float()
    with torch.autocast("cpu", torch.bfloat16):
        output = host.vision(states.float())
    assert output.dtype == torch.bfloat16
