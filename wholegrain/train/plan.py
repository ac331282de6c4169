"""What a run needs of each of its ranks: memory by stage of ZeRO, exchanges a step, its length.

Arithmetic alone, so that a run which this machine cannot hold can be planned on it. What arithmetic
cannot know, the activations, a real step of one rank's part measures.

Our engines keep parameters and gradients in fp32; bf16 and fp16 are autocast's, whose copies of the
weights live as long as a part of a step. The counts are those of what runs: torch's
DistributedDataParallel at stage 0, DeepSpeed at stages 1 to 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from wholegrain.errors import ConfigError
from wholegrain.train.config import RunConfig
from wholegrain.train.network import H100, Collective, Kind, Network

STAGES = (0, 1, 2, 3)
_FP32, _MOMENTS, _HALF, _KEY = 4, 8, 2, 8  # bytes; AdamW has two moments in fp32
_DDP_BUCKET = 25 * 2**20  # torch's own, in bytes
_DEEPSPEED_BUCKET, _DEEPSPEED_PREFETCH = 500_000_000, 50_000_000  # its own, in elements
_GIB = 2**30
_LARGE = 8 * _GIB  # shown in GiB
CARDS = (24, 40, 80)
"""GiB of the cards that a plan is compared with where no device is named."""


@dataclass(frozen=True)
class Zero:
    """Settings of DeepSpeed that decide memory and exchanges."""

    stage: int = 0
    bucket: int = _DEEPSPEED_BUCKET
    """Elements of gradients that are reduced in one call."""
    prefetch: int = _DEEPSPEED_PREFETCH
    """Elements of weights that stage 3 fetches ahead."""
    overlaps: bool = False
    """Whether gradients are reduced beside the backward pass, from a second bucket."""
    scatters: bool = False
    """Whether stages 1 and 2 send each rank its own sums alone, instead of all sums to all."""
    sent_bytes: int = _FP32
    """Of a gradient's element on its way."""

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None) -> Zero:
        """From DeepSpeed's JSON, with its own defaults; None is stage 0."""
        zero = dict((settings or {}).get("zero_optimization", {}))
        stage = int(zero.get("stage", 0))
        overlaps = zero.get("overlap_comm")
        every = zero.get("use_multi_rank_bucket_allreduce", True)
        return cls(
            stage,
            int(zero.get("reduce_bucket_size", _DEEPSPEED_BUCKET)),
            int(zero.get("stage3_prefetch_bucket_size", _DEEPSPEED_PREFETCH)),
            stage == 3 if overlaps is None else bool(overlaps),
            bool(zero.get("reduce_scatter", True)) and not every,
            _HALF if "16" in str((settings or {}).get("communication_data_type")) else _FP32,
        )


@dataclass(frozen=True)
class FarNegatives:
    """What is fetched of negatives that lie on other ranks (`objective.negatives: global`)."""

    images: int
    """Of a rank's part."""
    tokens: int
    """Places of one text."""
    text_width: int
    patches: int
    """Of one image."""
    patch_width: int
    own_patches: bool = False
    """Whether each concept has patches of its own (a ViT with local blocks)."""


@dataclass(frozen=True)
class Gather:
    """What the losses exchange in each part: `wholegrain.objectives.gather` sends these rows."""

    concepts: int
    """Rows that each rank sends, whatever it holds: the most concepts of any rank's part."""
    embed_dim: int
    keys: int = 2
    """Integers a concept that tell images and texts apart."""
    chunk: int | None = None
    """Rows of similarities that are held at a time; None holds all of a rank's own."""
    far: FarNegatives | None = None
    scatters: bool = True
    """Whether gradients of rows come back by reduce-scatter; gloo sums all of them on all ranks."""

    def collectives(self, ranks: int, parts: float) -> list[Collective]:
        """Of a step of so many parts; nothing of it hides behind the backward pass."""
        everyone = ranks * self.concepts
        back: Kind = "reduce_scatter" if self.scatters else "all_reduce"
        found = [("vectors", everyone * 2 * self.embed_dim * _FP32, True)]
        found.append(("keys", everyone * (1 + self.keys) * _KEY, False))
        if self.far is not None:
            found += [
                ("far texts", everyone * self.far.tokens * self.far.text_width * _FP32, True),
                ("far concepts", everyone * self.far.patch_width * _FP32, True),
                ("far lengths", everyone * _KEY, False),
                ("far masks", everyone * self.far.patches, False),
                ("far rows", everyone * _KEY, False),
                ("far patches", self._patches(ranks), True),
            ]
        collectives = []
        for name, size, returns in found:
            collectives.append(Collective(name, "all_gather", size, parts))
            if returns:
                collectives.append(Collective(f"gradients of {name}", back, size, parts))
        # In double: counts of five losses' terms, and sums and counts of six losses by grain.
        counts = Collective("counts", "all_reduce", 5 * 8, parts)
        return [*collectives, counts, Collective("figures", "all_reduce", 6 * 3 * 2 * 8, parts)]

    def memory(self, ranks: int) -> int:
        """Bytes that grow with the number of ranks, at their most: gathered vectors with gradient
        and its sum, and the similarities of the rows held at a time with their logarithms, gradient
        and mask; or what is fetched of far negatives, whichever is more.
        """
        everyone = ranks * self.concepts
        rows = min(self.concepts, self.chunk or self.concepts)
        contrast = everyone * 2 * self.embed_dim * 3 * _FP32 + rows * everyone * (3 * _FP32 + 1)
        return max(contrast, 0 if self.far is None else self._patches(ranks))

    def _patches(self, ranks: int) -> int:
        assert self.far is not None
        rows = self.far.images + (self.concepts if self.far.own_patches else 0)
        return ranks * rows * self.far.patches * self.far.patch_width * _FP32


@dataclass(frozen=True)
class PlannedRun:
    """What is trained, and on how many ranks."""

    parameters: int
    trained: int
    """Of them."""
    steps: int
    batch_size: int
    """Images of a global batch."""
    world: int
    accumulation: int = 1
    precision: str = "fp32"
    updates: float = 1.0
    """Updates a step: more than one where others precede some steps."""

    @property
    def images(self) -> int:
        """Of a rank's part of a batch."""
        return self.batch_size // (self.world * self.accumulation)


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at one stage of ZeRO."""

    stage: int
    weights: int
    """In fp32; with DeepSpeed's own copy of a rank's share, which stages 1 and 2 have."""
    gradients: int
    buckets: int
    """Gradients on their way, and the weights that stage 3 has gathered. At stage 0 the buckets are
    the gradients themselves."""
    optimizer: int
    """AdamW's moments in fp32."""
    copies: int
    """Weights in half precision that autocast keeps through a part of a step."""
    gathered: int
    """Rows of all ranks."""
    activations: int | None
    """Measured; None where they were not."""

    @property
    def total(self) -> int:
        """All of it; without the activations where they were not measured."""
        return self.states + self.copies + self.gathered + (self.activations or 0)

    @property
    def states(self) -> int:
        """What is there whatever the batch is."""
        return self.weights + self.gradients + self.buckets + self.optimizer


@dataclass(frozen=True)
class Plan:
    """A run before it runs."""

    work: PlannedRun
    zero: Zero
    memory: tuple[Memory, ...]
    """By stage, 0 to 3."""
    traffic: tuple[Collective, ...]
    """Exchanges of a step at the run's stage."""
    checkpoint: int
    """Bytes of a checkpoint in all: weights, and both moments of what is trained."""
    checkpoint_share: int
    """Bytes of it that the busiest rank writes."""

    def fitting(self, device: int) -> list[int]:
        """Stages whose memory a device of so many bytes holds."""
        return [each.stage for each in self.memory if each.total <= device]

    def sent(self) -> int:
        """Bytes that each rank sends a step; it receives as many."""
        return round(sum(each.sent(self.work.world) for each in self.traffic))


def check_world(counts: Mapping[str, int], accumulation: int, world: int) -> None:
    """Refuses a number of ranks that cannot share what a global batch holds.

    Args:
        counts: name of a setting to what all ranks and parts share of it evenly: images, and
            concepts or texts where the config bounds them.
        accumulation: parts.
        world: ranks.

    Raises:
        ConfigError: names the setting, and the nearest numbers of ranks that work.
    """
    if world < 1:
        raise ConfigError(f"a run of {world} ranks does not exist; give --world-size 1 or more")
    whole = [count // accumulation for count in counts.values() if count % accumulation == 0]
    if len(whole) == len(counts) and all(count % world == 0 for count in whole):
        return
    name = next(n for n, count in counts.items() if count % (world * accumulation))
    refused = (
        f"{name} {counts[name]} does not divide into {world} ranks x {accumulation} accumulated "
        "parts; "
    )
    if len(whole) < len(counts):
        raise ConfigError(f"{refused}make it a multiple of run.accumulation first")
    most = math.gcd(*whole)
    below = next(ranks for ranks in range(min(world, most), 0, -1) if most % ranks == 0)
    above = next((ranks for ranks in range(world + 1, most + 1) if most % ranks == 0), None)
    nearest = f"{below} ranks" if above is None else f"{below} or {above} ranks"
    raise ConfigError(f"{refused}nearest that work: {nearest}")


def make_plan(
    work: PlannedRun,
    zero: Zero | None = None,
    gather: Gather | None = None,
    activations: int | None = None,
) -> Plan:
    """The plan of a run.

    Args:
        work: what is trained.
        zero: the engine's settings; None is stage 0, plain data-parallel processes.
        gather: what the losses exchange; None where they exchange nothing.
        activations: bytes beside weights, gradients, moments and autocast's copies that a part of a
            step of one rank needs (`activation_bytes`).

    Raises:
        ConfigError: the batch does not divide by ranks and parts.
    """
    check_world({"run.batch_size": work.batch_size}, work.accumulation, work.world)
    zero = zero or Zero()
    gathered = 0 if gather is None or work.world == 1 else gather.memory(work.world)
    memory = tuple(memory_of(work, zero, stage, gathered, activations) for stage in STAGES)
    traffic: list[Collective] = []
    if work.world > 1:
        traffic += weight_traffic(work, zero)
        if gather is not None:
            traffic += gather.collectives(work.world, work.accumulation * work.updates)
        # The vote on stopping, and the sums of the figures.
        traffic.append(Collective("vote", "all_reduce", 8))
    moments = _MOMENTS * work.trained
    weights = _FP32 * work.parameters
    share = weights + (moments if zero.stage == 0 else -(-moments // work.world))
    return Plan(work, zero, memory, tuple(traffic), weights + moments, share)


def plan_of(
    module: nn.Module,
    run: RunConfig,
    world: int,
    *,
    updates: float = 1.0,
    settings: Mapping[str, Any] | None = None,
    gather: Gather | None = None,
    growth: int | None = None,
    here: int = 1,
) -> Plan:
    """The plan of a run as it is configured, on `world` ranks.

    Args:
        module: what is trained, whole.
        run: length, batch, precision.
        world: ranks.
        updates: a step; 1.5 where another precedes every second one.
        settings: DeepSpeed's JSON where the run names one.
        gather: what the losses exchange.
        growth: bytes that real steps of one rank's part added (`StepMemory`); None where they were
            not taken.
        here: ranks that took those steps, with the same settings.
    """
    sizes = [(each.numel(), each.requires_grad) for each in module.parameters()]
    work = PlannedRun(
        parameters=sum(size for size, _ in sizes),
        trained=sum(size for size, trained in sizes if trained),
        steps=run.steps,
        batch_size=run.batch_size,
        world=world,
        accumulation=run.accumulation,
        precision=run.precision,
        updates=updates,
    )
    zero, taken = Zero.of(settings), replace(work, world=here)
    activations = None if growth is None else activation_bytes(growth, taken, zero)
    return make_plan(work, zero, gather, activations)


def memory_of(
    work: PlannedRun, zero: Zero, stage: int, gathered: int = 0, activations: int | None = None
) -> Memory:
    """Bytes of a rank at a stage, with the buckets of `zero` (whose own stage is not read)."""
    ranks, trained = work.world, work.trained
    whole, share = _FP32 * trained, -(-_FP32 * trained // ranks)
    frozen = _FP32 * (work.parameters - trained)
    bucket = _FP32 * min(zero.bucket, trained)
    reducing = (2 if zero.overlaps else 1) * bucket
    fetching = _FP32 * min(2 * zero.prefetch, work.parameters)
    weights, gradients, buckets = frozen + whole, whole, 0
    if stage == 1:
        weights, buckets = weights + share, reducing
    elif stage == 2:
        weights, gradients, buckets = weights + share, share, reducing
    elif stage == 3:
        weights = -(-_FP32 * work.parameters // ranks)
        gradients, buckets = share, reducing + fetching
    moments = _MOMENTS * trained
    optimizer = moments if stage == 0 else -(-moments // ranks)
    # Autocast's copies stand beside the weights they are of, which at stage 3 come and go.
    kept = work.parameters if stage < 3 else min(2 * zero.prefetch, work.parameters)
    copies = 0 if work.precision == "fp32" else _HALF * kept
    return Memory(stage, weights, gradients, buckets, optimizer, copies, gathered, activations)


def weight_traffic(work: PlannedRun, zero: Zero) -> list[Collective]:
    """Exchanges of gradients and weights in a step.

    Stage 0 sums gradients once an update (2 (N - 1) / N x 4 bytes a parameter). Stages 1 and 2 then
    send each rank's new weights to all; stage 2, which keeps no whole gradient, sums after each
    part. Stage 3 gathers the weights forward and backward in each part, and scatters the sums.
    """
    updates, parts = work.updates, work.updates * work.accumulation
    if zero.stage == 0:
        gradients = _FP32 * work.trained
        calls = max(1, -(-gradients // _DDP_BUCKET))
        size, often = gradients / calls, calls * updates
        return [Collective("gradients", "all_reduce", size, often, hides=True)]
    calls = max(1, -(-work.trained // zero.bucket))
    size = zero.sent_bytes * work.trained / calls
    if zero.stage == 3:
        weights, fetches = _FP32 * work.parameters, max(1, -(-work.parameters // zero.prefetch))
        return [
            Collective("weights", "all_gather", weights / fetches, 2 * fetches * parts, hides=True),
            Collective("gradients", "reduce_scatter", size, calls * parts, hides=zero.overlaps),
        ]
    kind: Kind = "reduce_scatter" if zero.scatters else "all_reduce"
    often = calls * (updates if zero.stage == 1 else parts)
    return [
        Collective("gradients", kind, size, often, hides=zero.overlaps),
        Collective("weights", "all_gather", _FP32 * work.trained / calls, calls * updates),
    ]


def activation_bytes(growth: int, work: PlannedRun, zero: Zero) -> int:
    """Activations, and scratch, of one rank's part: at least what they are, at most the gradients
    more. Both do not peak together, and a plan must not promise room that is not there.

    Args:
        growth: the most that a process held in the first steps, less what it held before them (the
            weights).
        work: with the ranks that took those steps.
        zero: the settings that they were taken under.
    """
    here = memory_of(work, zero, zero.stage)
    states = here.states - here.gradients - _FP32 * work.parameters
    return max(0, growth - states - here.copies)


def plan_lines(plan: Plan, device: int | None = None, network: Network = H100) -> str:
    """The plan to read, a line a fact; bytes are a rank's own.

    Args:
        plan: of a run.
        device: bytes of a rank's device; None compares with common cards.
        network: that times are given for.
    """
    work, zero = plan.work, plan.zero
    lines = [
        f"{'plan':12} {_count(work.world, 'rank')} x {_count(work.accumulation, 'part')} x "
        f"{_count(work.images, 'image')} = {work.batch_size:,} images a step; "
        f"{work.steps:,} steps, {work.steps * work.batch_size:,} images",
    ]
    head = "weights + gradients + buckets + moments + half copies + gathered + activations"
    # One rank has nothing to divide: other stages would only add their buckets.
    stages = plan.memory if work.world > 1 else plan.memory[zero.stage : zero.stage + 1]
    large = max(each.total for each in stages) >= _LARGE
    unit, size = ("GiB", _GIB) if large else ("MiB", 2**20)
    lines.append(f"{'memory':12} {unit} a rank: {head}")
    lines += [_memory_line(each, size, device, each.stage == zero.stage) for each in stages]
    lines.append(f"{'exchanged':12} {_traffic_line(plan)}")
    if work.world > 1:
        spent = network.step(plan.traffic, work.world, backward=0.0).total
        lines.append(
            f"{'network':12} {1e3 * spent:.2f} ms a step if nothing hides it ({network.name})"
        )
    written = f"{_bytes(plan.checkpoint)}, of which the first rank {_bytes(plan.checkpoint_share)}"
    lines.append(f"{'checkpoint':12} {written}")
    return "\n".join(lines)


def _memory_line(memory: Memory, unit: int, device: int | None, chosen: bool) -> str:
    states = (memory.weights, memory.gradients, memory.buckets, memory.optimizer)
    shown = [f"{part / unit:.2f}" for part in (*states, memory.copies, memory.gathered)]
    activations = memory.activations
    shown.append("?" if activations is None else f"{activations / unit:.2f}")
    if device is not None:
        fits = "fits" if memory.total <= device else "does not fit"
        verdict = f"{fits} {device / _GIB:.0f} GiB"
    else:
        card = next((card for card in CARDS if memory.total <= card * _GIB), None)
        verdict = f"more than {CARDS[-1]} GiB" if card is None else f"fits {card} GiB"
    if activations is None:
        verdict += " without activations, which were not measured"
    mark = "  <- this run" if chosen else ""
    total = f"{memory.total / unit:.2f}"
    return f"  stage {memory.stage}    {' + '.join(shown)} = {total}, {verdict}{mark}"


def _traffic_line(plan: Plan) -> str:
    if not plan.traffic:
        return "nothing: one rank"
    ranks = plan.work.world
    sent: dict[str, float] = {}
    calls: dict[str, float] = {}
    for each in plan.traffic:
        kind = each.name if each.name in {"gradients", "weights"} else "losses and votes"
        sent[kind] = sent.get(kind, 0.0) + each.sent(ranks)
        calls[kind] = calls.get(kind, 0.0) + each.calls
    shown = [f"{kind} {_bytes(count)} in {calls[kind]:.4g} calls" for kind, count in sent.items()]
    return f"{_bytes(plan.sent())} sent by each rank a step: {', '.join(shown)}"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" + ("" if number == 1 else "s")


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"
