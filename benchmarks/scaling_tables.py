"""The tables of `docs/scaling.md`, computed from the measurements and from what is assumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scaling_here import HERE, table
from benchmarks.scaling_recipes import Recipe, recipe
from wholegrain.train.network import A100, EFFICIENCY, ETHERNET, H100, Network, StepTime
from wholegrain.train.plan import Plan, PlannedRun, Zero, make_plan, memory_of

Rows = list[Sequence[str]]
Facts = Mapping[str, Any]

WORLDS = (8, 64, 1024)
NETWORKS = {"H100, InfiniBand": H100, "A100, InfiniBand": A100, "H100, Ethernet": ETHERNET}
SIZES = (0.2156e9, 1e9, 3e9, 10e9)
RECIPES = ("4m", "16m")
WEAK = 64  # images a GPU where the batch grows with their number
_GIB = 2**30


@dataclass(frozen=True)
class Assumed:
    """What no measurement of ours gives."""

    peak: float = 989e12
    """FLOP a second of an H100 in bf16, dense."""
    mfu: float = 0.4
    """Share of the peak that training reaches; the low end for Swin is `low_mfu`."""
    low_mfu: float = 0.3
    card: float = 79 * _GIB
    """Bytes of a card of 80 GB that a program gets."""
    room: float = 30 * _GIB
    """Of it for activations, where model sizes are compared: about 128 images of the base model."""
    dollars: float = 2.5
    """A GPU-hour of an H100."""
    host_copy: float = 20e9
    """Bytes a second from a GPU to its host's memory."""
    writer: float = 1e9
    """Bytes a second that one process writes with a checksum."""
    storage: float = 10e9
    """Bytes a second that the shared storage takes of all writers together."""


ASSUMED = Assumed()
_SETTINGS = Path(__file__).resolve().parent.parent / "configs" / "deepspeed"
ZERO = {0: Zero()} | {
    stage: Zero.of(json.loads((_SETTINGS / f"zero{stage}.json").read_text(encoding="utf-8")))
    for stage in (1, 2, 3)
}
"""Settings of the engines that we ship."""


def tables(measured: Facts, data: Facts, memory: Facts) -> dict[str, str]:
    """Name of each table to its Markdown.

    Args:
        measured: `benchmarks/results/scaling.json`.
        data: results of `benchmarks.data`.
        memory: results of `benchmarks.train_step`.
    """
    found: dict[str, Callable[[], str]] = {name: _bound(f, measured) for name, f in HERE.items()}
    found |= {
        "assumed": assumed,
        "weights": weights,
        "step": step,
        "checkpoint": checkpoint,
        "states": states,
        "pays": pays,
        "activations": lambda: activations(memory),
        "loader": lambda: loader(data),
        "storage": lambda: storage(data),
        "runs": runs,
    }
    return {name: make() for name, make in found.items()}


def _bound(make: Callable[[Facts], str], measured: Facts) -> Callable[[], str]:
    return lambda: make(measured)


def work_of(parameters: float, world: int, batch_size: int | None = None) -> PlannedRun:
    """A run in bf16 on so many ranks."""
    count = round(parameters)
    return PlannedRun(count, count, 1, batch_size or world, world, precision="bf16")


def plan_for(chosen: Recipe, world: int, batch_size: int, stage: int = 0) -> Plan:
    """Of a recipe, at a batch of so many images."""
    work = work_of(chosen.parameters, world, batch_size)
    return make_plan(work, ZERO[stage], chosen.gather(world, batch_size))


def assumed() -> str:
    """What stands in place of measurements."""
    a, chosen = ASSUMED, [recipe(name) for name in RECIPES]
    rows: Rows = [
        ["peak of an H100, bf16 dense", f"{a.peak / 1e12:,.0f} TFLOP/s"],
        ["share of the peak that training reaches", f"{a.low_mfu:.0%} to {a.mfu:.0%}"],
        ["room for a program on a card of 80 GB", f"{a.card / _GIB:,.0f} GiB"],
        ["of it for activations, where sizes are compared", f"{a.room / _GIB:,.0f} GiB"],
        ["a GPU-hour of an H100", f"{a.dollars:.2f} dollars"],
        ["from a GPU to its host", f"{a.host_copy / 1e9:,.0f} GB/s"],
        ["one process that writes with checksums", f"{a.writer / 1e9:,.0f} GB/s"],
        ["shared storage, all writers together", f"{a.storage / 1e9:,.0f} GB/s"],
        ["bandwidth of links, of the nominal", f"{EFFICIENCY:.0%}"],
    ]
    for each in chosen:
        concepts = f"{each.concepts:,} concepts, at most {each.most_concepts:,}"
        rows.append(
            [
                f"{each.name}: a step of {each.batch_size:,} images, {concepts}",
                f"{each.flops / 1e12:,.1f} TFLOP",
            ]
        )
    return table(["assumed", "value"], rows)


def weights() -> str:
    """Gradients and weights that the base model's ranks exchange."""
    rows: Rows = []
    for world in WORLDS:
        for stage, zero in ZERO.items():
            plan = make_plan(work_of(recipe("4m").parameters, world), zero)
            traffic = [each for each in plan.traffic if each.name in {"gradients", "weights"}]
            sent = sum(each.sent(world) for each in traffic)
            times = [
                network.step(traffic, world, backward=0.0).total for network in NETWORKS.values()
            ]
            spent = [f"{1e3 * each:,.1f}" for each in times]
            rows.append([f"{world:,}", str(stage), f"{sent / 1e9:.2f}", *spent])
    return table(["GPUs", "ZeRO stage", "GB sent", *(f"ms, {name}" for name in NETWORKS)], rows)


def step_time(
    chosen: Recipe, world: int, batch_size: int, network: Network, peak: float, stage: int = 0
) -> tuple[float, StepTime]:
    """Seconds of a step's arithmetic at the assumed share of the peak, and of its exchanges."""
    share = batch_size / chosen.batch_size / world / (peak * ASSUMED.mfu)
    plan = plan_for(chosen, world, batch_size, stage)
    return share * chosen.flops, network.step(plan.traffic, world, share * chosen.backward)


def step() -> str:
    """A step of the recipes: arithmetic, gradients, features, and how much of them hides."""
    rows: Rows = []
    for name in RECIPES:
        chosen = recipe(name)
        batches = [(world, chosen.batch_size) for world in WORLDS]
        for world, batch in [*batches, *((world, WEAK * world) for world in WORLDS[1:])]:
            plan = plan_for(chosen, world, batch)
            rows_of = [each for each in plan.traffic if each.name != "gradients"]
            features = sum(each.sent(world) for each in rows_of)
            for label in ("H100, InfiniBand", "H100, Ethernet"):
                network = NETWORKS[label]
                if world <= network.ranks_a_node and label != "H100, InfiniBand":
                    continue
                compute, spent = step_time(chosen, world, batch, network, ASSUMED.peak)
                shown = sum(network.seconds(each, world) for each in rows_of)
                rows.append(
                    [
                        f"{name}, batch {batch:,}",
                        f"{world:,}",
                        label,
                        f"{batch / world:g}",
                        f"{1e3 * compute:,.1f}",
                        f"{1e3 * (spent.total - shown):,.1f}",
                        f"{features / 1e6:,.2f}",
                        f"{1e3 * shown:,.2f}",
                        f"{spent.hidden_share:.0%}",
                        f"{compute / (compute + spent.exposed):.0%}",
                    ]
                )
    head = ["recipe", "GPUs", "network", "images a GPU", "arithmetic ms", "gradients ms"]
    head += ["features MB sent", "features ms", "hidden", "efficiency"]
    return table(head, rows)


def checkpoint() -> str:
    """Bytes and seconds of a checkpoint."""
    rows: Rows = []
    for size in (SIZES[0], SIZES[-1]):
        for world in WORLDS:
            for stage in (0, 1):
                plan = make_plan(work_of(size, world), ZERO[stage])
                share = plan.checkpoint_share
                writing = max(share / ASSUMED.writer, plan.checkpoint / ASSUMED.storage)
                rows.append(
                    [
                        _billions(size),
                        f"{world:,}",
                        "0" if stage == 0 else "1 to 3",
                        f"{plan.checkpoint / 1e9:,.2f}",
                        f"{share / 1e9:,.2f}",
                        f"{share / ASSUMED.host_copy:,.2f}",
                        f"{writing:,.1f}",
                    ]
                )
    head = ["parameters", "GPUs", "ZeRO stage", "GB", "GB of the first rank"]
    return table([*head, "training waits s", "written after s"], rows)


def states() -> str:
    """GiB of a rank before activations."""
    rows: Rows = []
    for size in SIZES:
        for world in WORLDS:
            found = [memory_of(work_of(size, world), ZERO[stage], stage) for stage in ZERO]
            rows.append(
                [_billions(size), f"{world:,}", *(f"{each.total / _GIB:,.1f}" for each in found)]
            )
    return table(["parameters", "GPUs", *(f"stage {stage}" for stage in ZERO)], rows)


def pays() -> str:
    """The lowest stage that leaves room, and what each costs a step."""
    rows: Rows = []
    for size in SIZES:
        for world in WORLDS[:2]:
            exposed, fits = [], []
            for stage, zero in ZERO.items():
                plan = make_plan(work_of(size, world), zero)
                # Arithmetic in proportion to the parameters, with the 4M recipe's images a GPU on
                # eight of them.
                chosen = recipe("4m")
                share = size / chosen.parameters / 8 / (ASSUMED.peak * ASSUMED.mfu)
                spent = H100.step(plan.traffic, world, share * chosen.backward)
                exposed.append(f"{spent.exposed / (share * chosen.flops):.1%}")
                if plan.memory[stage].total + ASSUMED.room <= ASSUMED.card:
                    fits.append(stage)
            first = "none" if not fits else str(fits[0])
            rows.append([_billions(size), f"{world:,}", first, *exposed])
    head = ["parameters", "GPUs", "lowest stage that fits"]
    return table([*head, *(f"stage {stage} adds" for stage in ZERO)], rows)


def image_bytes(memory: Facts, checkpointed: bool) -> float:
    """Activations of an image of the base model in bf16, as `benchmarks.train_step` measured."""
    found = next(
        each
        for each in memory["memory"]
        if (each["vision"], each["iteration"], each["path"]) == ("swin", "image", "fast")
        and each["precision"] == "bf16"
        and each["checkpointed"] is checkpointed
    )
    return float(found["step_bytes"] / found["images"])


def activations(memory: Facts) -> str:
    """GiB of a rank of the recipes, states and activations."""
    rows: Rows = []
    for name in RECIPES:
        for world in WORLDS[:2]:
            for stage in (0, 1):
                chosen = recipe(name)
                found = plan_for(chosen, world, chosen.batch_size, stage).memory[stage]
                images = chosen.batch_size // world
                row = [name, f"{world:,}", str(images), str(stage), f"{found.total / _GIB:,.1f}"]
                for checkpointed in (False, True):
                    part = images * image_bytes(memory, checkpointed)
                    total = found.total + part
                    fits = "" if total <= ASSUMED.card else " (too much)"
                    row.append(f"{total / _GIB:,.1f}{fits}")
                rows.append(row)
    head = ["recipe", "GPUs", "images a GPU", "ZeRO stage", "states GiB"]
    return table([*head, "with activations GiB", "recomputed GiB"], rows)


_STORED = {
    "as stored": "ours",
    "longer side 384": "ours, longer side 384",
    "longer side 256": "ours, longer side 256",
}


def loader(data: Facts) -> str:
    """What a node of 8 H100 reads and decodes."""
    figures = data["figures"]
    rows: Rows = []
    for name in RECIPES:
        chosen = recipe(name)
        rate = 8 * ASSUMED.peak * ASSUMED.mfu / (chosen.flops / chosen.batch_size)
        for stored, measured in _STORED.items():
            size = figures["bytes"][stored] / figures["photos"]["count"]
            a_core = figures["photos_per_s"][measured]
            rows.append(
                [
                    name,
                    stored,
                    f"{rate:,.0f}",
                    f"{a_core:,.0f}",
                    f"{rate / a_core:,.0f}",
                    f"{size / 1e3:,.0f}",
                    f"{rate * size / 1e9:,.2f}",
                ]
            )
    head = ["recipe", "photos", "photos/s a node", "photos/s a core", "cores a node"]
    return table([*head, "kB a photo", "GB/s a node"], rows)


def storage(data: Facts) -> str:
    """What the corpora take."""
    figures = data["figures"]
    rows: Rows = []
    for name in RECIPES:
        chosen = recipe(name)
        epochs = chosen.steps * chosen.batch_size / chosen.photos
        sizes = [
            f"{chosen.photos * figures['bytes'][stored] / figures['photos']['count'] / 1e9:,.0f}"
            for stored in _STORED
        ]
        rows.append([name, f"{chosen.photos / 1e6:.2f}", f"{epochs:,.0f}", *sizes])
    return table(["corpora", "million photos", "times read", *(f"GB, {s}" for s in _STORED)], rows)


def runs() -> str:
    """Hours and cost of the recipes."""
    rows: Rows = []
    for name in RECIPES:
        chosen = recipe(name)
        for world in WORLDS[:2]:
            for mfu in (ASSUMED.low_mfu, ASSUMED.mfu):
                compute = chosen.flops / world / (ASSUMED.peak * mfu)
                back = chosen.backward / world / (ASSUMED.peak * mfu)
                plan = plan_for(chosen, world, chosen.batch_size)
                exposed = H100.step(plan.traffic, world, back).exposed
                hours = chosen.steps * (compute + exposed) / 3600
                rows.append(
                    [
                        name,
                        f"{world:,} H100",
                        f"{mfu:.0%}",
                        f"{1e3 * (compute + exposed):,.1f}",
                        f"{hours:,.1f}",
                        f"{hours * world:,.0f}",
                        f"{hours * world * ASSUMED.dollars:,.0f}",
                    ]
                )
    head = ["recipe", "on", "share of peak", "ms a step", "hours", "GPU-hours", "dollars"]
    return table(head, rows)


def _billions(size: float) -> str:
    return f"{size / 1e9:.2g} B"
