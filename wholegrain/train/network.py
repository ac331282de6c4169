"""A small model of the network: how long ranks exchange bytes.

Each message costs a latency and its bytes over a bandwidth (Hockney's alpha and beta). Collectives
are sums of messages (Thakur, Rabenseifner and Gropp 2005, "Optimization of Collective Communication
Operations in MPICH"): over n ranks and S bytes

    ring, all-gather or reduce-scatter   (n - 1) (alpha + S / (n beta))
    ring, all-reduce                     twice that
    tree, all-reduce                     2 log2(n) alpha + 2 S / beta

Nodes make two levels: ranks of a node first share S among themselves, then each exchanges its part
with the ranks of the same place in other nodes. The levels are taken one after the other, though
libraries overlap them: a time of this model is on the slow side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["all_reduce", "all_gather", "reduce_scatter"]


@dataclass(frozen=True)
class Link:
    """What connects a rank with its neighbours."""

    latency: float
    """Seconds that a message takes at least."""
    bandwidth: float
    """Bytes a second of one rank in one direction, while all ranks send."""

    def ring(self, size: float, ranks: int) -> float:
        """Seconds of an all-gather or reduce-scatter of `size` bytes in all."""
        return (ranks - 1) * (self.latency + size / ranks / self.bandwidth)

    def all_reduce(self, size: float, ranks: int) -> float:
        """Seconds by ring or tree, whichever is faster: few bytes take the tree."""
        if ranks == 1:
            return 0.0
        tree = 2 * math.ceil(math.log2(ranks)) * self.latency + 2 * size / self.bandwidth
        return min(2 * self.ring(size, ranks), tree)


@dataclass(frozen=True)
class Collective:
    """What ranks exchange in one way, some times a step."""

    name: str
    """What travels."""
    kind: Kind
    size: float
    """Bytes of the whole, in one call: of the summed tensor, or of what all ranks have together."""
    calls: float = 1.0
    """How often a step; a fraction where not every step has it."""
    hides: bool = False
    """Whether it runs beside the backward pass."""

    def sent(self, ranks: int) -> float:
        """Bytes that each rank sends in a step, as a ring does; it receives as many."""
        rounds = 2 if self.kind == "all_reduce" else 1
        return rounds * (ranks - 1) / ranks * self.size * self.calls


@dataclass(frozen=True)
class Network:
    """Nodes of so many ranks."""

    name: str
    ranks_a_node: int
    inside: Link
    """Between ranks of a node."""
    between: Link
    """Between nodes; the bandwidth is a rank's share where ranks share an adapter."""

    def seconds(self, collective: Collective, ranks: int) -> float:
        """Of a step's calls; 0 for one rank.

        Raises:
            ValueError: there is no rank.
        """
        if ranks < 1:
            raise ValueError(f"{ranks} ranks exchange nothing; give at least 1")
        here, nodes = min(ranks, self.ranks_a_node), -(-ranks // self.ranks_a_node)
        size = collective.size
        if collective.kind != "all_reduce":
            once = self.inside.ring(size, here) + self.between.ring(size / here, nodes)
        elif nodes == 1:
            once = self.inside.all_reduce(size, here)
        else:
            # Sum within the node, over nodes, and back to all within the node.
            level = self.between.all_reduce(size / here, nodes)
            once = 2 * self.inside.ring(size, here) + level
        return once * collective.calls

    def step(self, traffic: Iterable[Collective], ranks: int, backward: float) -> StepTime:
        """What a step's exchanges cost it.

        Those that hide run while the backward pass makes what they send. The last call cannot: it
        waits for the last gradient.

        Args:
            traffic: of a step.
            ranks: of the run.
            backward: seconds of the backward pass that exchanges may run beside; 0 hides nothing.
        """
        hiding = last = shown = 0.0
        for each in traffic:
            spent = self.seconds(each, ranks)
            if each.hides:
                hiding += spent
                last = max(last, spent / max(1.0, each.calls))
            else:
                shown += spent
        exposed = max(last, hiding - backward)
        return StepTime(hiding + shown, exposed + shown)


@dataclass(frozen=True)
class StepTime:
    """Seconds that the exchanges of a step take."""

    total: float
    """All of them."""
    exposed: float
    """By which they make the step longer."""

    @property
    def hidden_share(self) -> float:
        """Of `total` that costs no time; 0 of nothing."""
        return 1 - self.exposed / self.total if self.total else 0.0


EFFICIENCY = 0.8
"""Share of a link's nominal bandwidth that collectives of many megabytes reach: an assumption;
`all_reduce_perf` of nccl-tests says what a cluster's is."""

_GIGABIT = 1e9 / 8
_NVLINK_LATENCY = 3.4e-6
_INFINIBAND_LATENCY = 9.6e-6
_TCP_LATENCY = 30e-6

H100 = Network(
    "H100, NVLink 450 GB/s, InfiniBand 400 Gb/s a GPU",
    8,
    Link(_NVLINK_LATENCY, 450e9 * EFFICIENCY),
    Link(_INFINIBAND_LATENCY, 400 * _GIGABIT * EFFICIENCY),
)
"""Nodes of 8 H100: NVLink 4 has 900 GB/s in both directions together, and a node 8 adapters of
400 Gb/s (NVIDIA DGX H100 data sheet). Latencies are those that NCCL's own model gives a step of a
ring over NVLink and over the network (ring, simple protocol; `src/graph/tuning.cc` of 2.8)."""

A100 = Network(
    "A100, NVLink 300 GB/s, InfiniBand 200 Gb/s a GPU",
    8,
    Link(_NVLINK_LATENCY, 300e9 * EFFICIENCY),
    Link(_INFINIBAND_LATENCY, 200 * _GIGABIT * EFFICIENCY),
)
"""Nodes of 8 A100: NVLink 3 has 600 GB/s in both directions together, and a node 8 adapters of
200 Gb/s (NVIDIA DGX A100 data sheet); latencies as for `H100`."""

ETHERNET = Network(
    "H100, NVLink 450 GB/s, Ethernet 100 Gb/s a node",
    8,
    Link(_NVLINK_LATENCY, 450e9 * EFFICIENCY),
    Link(_TCP_LATENCY, 100 * _GIGABIT / 8 * EFFICIENCY),
)
"""The same nodes with one adapter of 100 Gb/s that their 8 GPUs share, and TCP, whose round trip
through two kernels takes some tens of microseconds."""

PRESETS = {"h100": H100, "a100": A100, "ethernet": ETHERNET}


def one_level(name: str, latency: float, bandwidth: float) -> Network:
    """Ranks without nodes, such as processes of one machine that talk over its loopback."""
    link = Link(latency, bandwidth)
    return Network(name, 2**31, link, link)
