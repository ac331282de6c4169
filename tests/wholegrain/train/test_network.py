"""The model of the network gives what a hand counts, and goes to the limits that it must."""

import math

import pytest

from wholegrain.train.network import (
    ETHERNET,
    H100,
    PRESETS,
    Collective,
    Kind,
    Link,
    Network,
    StepTime,
    one_level,
)

FAST, SLOW = Link(1e-6, 100e9), Link(10e-6, 10e9)
TWO_LEVELS = Network("two levels", 4, FAST, SLOW)
KINDS: tuple[Kind, ...] = ("all_reduce", "all_gather", "reduce_scatter")


def test_a_ring_by_hand() -> None:
    # 3 steps of a quarter of 400 MB each over 100 GB/s.
    assert FAST.ring(400e6, 4) == pytest.approx(3 * (1e-6 + 100e6 / 100e9))
    # Two such rings, which beat a tree of 2 x 2 messages of all 400 MB.
    assert FAST.all_reduce(400e6, 4) == pytest.approx(6 * (1e-6 + 1e-3))


def test_few_bytes_take_the_tree() -> None:
    # 8 bytes over 64 ranks: 12 messages by tree, 126 by ring.
    assert SLOW.all_reduce(8, 64) == pytest.approx(12 * 10e-6, rel=1e-4)
    assert 2 * SLOW.ring(8, 64) == pytest.approx(126 * 10e-6, rel=1e-4)


def test_two_levels_by_hand() -> None:
    # 8 ranks in 2 nodes: a part of 200 MB in the node, 50 MB of each rank between the nodes.
    gather = Collective("rows", "all_gather", 200e6)
    inside, between = 3 * (1e-6 + 50e6 / 100e9), 1 * (10e-6 + 25e6 / 10e9)
    assert TWO_LEVELS.seconds(gather, 8) == pytest.approx(inside + between)
    reduce = Collective("gradients", "all_reduce", 200e6)
    assert TWO_LEVELS.seconds(reduce, 8) == pytest.approx(2 * inside + 2 * between)


def test_within_a_node_its_own_link_counts() -> None:
    reduce = Collective("gradients", "all_reduce", 200e6)
    assert TWO_LEVELS.seconds(reduce, 4) == FAST.all_reduce(200e6, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_exchanges_nothing(kind: Kind) -> None:
    for network in (*PRESETS.values(), TWO_LEVELS, one_level("loopback", 1e-4, 1e9)):
        assert network.seconds(Collective("it", kind, 1e9, calls=7), 1) == 0
    assert Collective("it", kind, 1e9).sent(1) == 0
    with pytest.raises(ValueError, match="at least 1"):
        H100.seconds(Collective("it", kind, 1e9), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_bytes_cost_latency_alone_and_many_bytes_none(kind: Kind) -> None:
    none, many = Collective("it", kind, 0.0), Collective("it", kind, 1e15)
    for ranks in (2, 4, 8, 32):
        assert TWO_LEVELS.seconds(none, ranks) > 0
        slow = Network("late", 4, Link(2e-6, 100e9), Link(20e-6, 10e9))
        assert slow.seconds(none, ranks) == pytest.approx(2 * TWO_LEVELS.seconds(none, ranks))
        assert slow.seconds(many, ranks) == pytest.approx(TWO_LEVELS.seconds(many, ranks), rel=1e-6)
        wide = Network("wide", 4, Link(1e-6, 200e9), Link(10e-6, 20e9))
        half = TWO_LEVELS.seconds(many, ranks) / 2
        assert wide.seconds(many, ranks) == pytest.approx(half, rel=1e-6)


def test_a_ring_needs_nearly_the_same_time_at_any_number_of_ranks() -> None:
    link = Link(0.0, 1e9)
    times = [link.all_reduce(1e9, ranks) for ranks in (2, 8, 64, 1024)]
    assert times == sorted(times) and times[-1] == pytest.approx(2.0, rel=2e-3)
    assert times[0] == pytest.approx(1.0)


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather() -> None:
    sizes = {kind: Collective("it", kind, 3e9) for kind in KINDS}
    for ranks in (2, 8, 64):
        parts = sum(H100.seconds(sizes[kind], ranks) for kind in KINDS[1:])
        assert H100.seconds(sizes["all_reduce"], ranks) == pytest.approx(parts)
        sent = sum(sizes[kind].sent(ranks) for kind in KINDS[1:])
        assert sizes["all_reduce"].sent(ranks) == pytest.approx(sent)


def test_bytes_sent_by_hand() -> None:
    assert Collective("it", "all_reduce", 800, calls=2).sent(4) == 2 * 2 * 600
    assert Collective("it", "all_gather", 800).sent(4) == 600


def test_a_node_s_shared_adapter_is_the_bottleneck() -> None:
    gradients = Collective("gradients", "all_reduce", 862e6)
    assert ETHERNET.seconds(gradients, 8) == H100.seconds(gradients, 8)
    # 8 GPUs share 100 Gb/s, which is a 32nd of what they have with adapters of their own.
    nodes = 8
    share = 2 * (nodes - 1) / nodes * 862e6 / 8 / (100e9 / 8 / 8 * 0.8)
    spent = ETHERNET.seconds(gradients, 64) - H100.seconds(gradients, 8)
    assert spent == pytest.approx(share, rel=0.02)


def test_calls_add_up() -> None:
    once = Collective("it", "all_reduce", 25e6)
    often = Collective("it", "all_reduce", 25e6, calls=2.5)
    assert H100.seconds(often, 64) == pytest.approx(2.5 * H100.seconds(once, 64))


def test_what_hides_behind_the_backward_pass() -> None:
    link = one_level("plain", 0.0, 1e9)
    # 4 calls of 0.1 GB on 2 ranks: 0.1 s each; and 0.05 s that nothing hides.
    hides = Collective("gradients", "all_reduce", 0.1e9, calls=4, hides=True)
    shown = Collective("rows", "all_gather", 0.1e9)
    traffic = (hides, shown)
    alone = link.step(traffic, 2, backward=0.0)
    assert alone.total == pytest.approx(0.45) and alone.exposed == pytest.approx(0.45)
    partly = link.step(traffic, 2, backward=0.25)
    assert partly.exposed == pytest.approx(0.15 + 0.05)
    assert partly.hidden_share == pytest.approx(1 - 0.2 / 0.45)
    # The last call waits for the last gradient, however long the pass is.
    assert link.step(traffic, 2, backward=100.0).exposed == pytest.approx(0.1 + 0.05)
    assert link.step((), 2, backward=1.0) == StepTime(0.0, 0.0)
    assert link.step((), 2, backward=1.0).hidden_share == 0.0


def test_presets_are_ordered_as_their_links_are() -> None:
    gradients = Collective("gradients", "all_reduce", 862e6)
    times = [PRESETS[name].seconds(gradients, 64) for name in ("h100", "a100", "ethernet")]
    assert times == sorted(times) and not math.isclose(times[0], times[1], rel_tol=0.2)
    # A sum over 8 H100 by hand: 7/8 of the bytes twice over 360 GB/s.
    assert H100.seconds(gradients, 8) == pytest.approx(2 * 7 / 8 * 862e6 / 360e9, rel=0.02)
