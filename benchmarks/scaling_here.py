"""Tables of what was measured here, each figure beside what the model of the network says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from wholegrain.train.network import Collective, Kind, Network, one_level
from wholegrain.train.plan import Gather, PlannedRun, make_plan

Facts = Mapping[str, Any]


def fitted(collectives: Sequence[Facts], ranks: int) -> Network:
    """The link that makes the model's all-reduces closest to those measured.

    A line by least squares of relative errors: its height at no bytes is 2 (n - 1) latencies, its
    slope 2 (n - 1) / n over the bandwidth.
    """
    size = np.array([each["bytes"] for each in collectives], dtype=float)
    spent = np.array([each["all_reduce"] for each in collectives], dtype=float)
    columns = np.stack([np.ones_like(size), size], axis=1) / spent[:, None]
    height, slope = np.linalg.lstsq(columns, np.ones_like(size), rcond=None)[0]
    latency = max(0.0, float(height)) / (2 * (ranks - 1))
    return one_level("gloo over loopback", latency, 2 * (ranks - 1) / ranks / float(slope))


def network_of(measured: Facts) -> Network:
    """The link of this machine's processes."""
    found = measured["exchanges"]
    return fitted(found["collectives"], found["ranks"])


def link(measured: Facts) -> str:
    """The machine, and what the fit gave."""
    found, machine = network_of(measured).inside, measured["machine"]
    return (
        f"{machine['name']}, {measured['cores']} cores, torch {machine['torch']}; gloo over "
        f"loopback: latency {1e6 * found.latency:,.0f} µs, bandwidth "
        f"{found.bandwidth / 1e9:.2f} GB/s."
    )


def collectives(measured: Facts) -> str:
    """Each collective at each size."""
    network, exchanges = network_of(measured), measured["exchanges"]
    rows = []
    kinds: tuple[Kind, ...] = ("all_reduce", "all_gather")
    for each in exchanges["collectives"]:
        row = [_size(each["bytes"])]
        for kind in kinds:
            collective = Collective("it", kind, each["bytes"])
            modelled, spent = network.seconds(collective, exchanges["ranks"]), each[kind]
            row += [f"{1e3 * spent:,.2f}", f"{1e3 * modelled:,.2f}", _off(modelled, spent)]
        rows.append(row)
    names = ("all-reduce", "all-gather")
    head = [part for name in names for part in (f"{name} ms", "model ms", "off by")]
    return table(["bytes", *head], rows)


def features(measured: Facts) -> str:
    """The exchange of the contrastive loss, forward and backward."""
    network, exchanges = network_of(measured), measured["exchanges"]
    ranks, rows = exchanges["ranks"], []
    for each in exchanges["gathers"]:
        # The losses' counts are not part of it.
        gather = Gather(each["concepts"], each["embed_dim"], scatters=False)
        traffic = gather.collectives(ranks, 1)[:-2]
        modelled = network.step(traffic, ranks, backward=0.0).total
        sent = sum(part.sent(ranks) for part in traffic)
        rows.append(
            [
                str(each["concepts"]),
                str(each["embed_dim"]),
                _size(sent),
                f"{1e3 * each['seconds']:,.2f}",
                f"{1e3 * modelled:,.2f}",
                _off(modelled, each["seconds"]),
            ]
        )
    head = ["concepts a rank", "width", "bytes sent", "measured ms", "model ms", "off by"]
    return table(head, rows)


def exchange(case: Facts, network: Network, ranks: int) -> float:
    """Seconds that the model gives the exchanges of a step; nothing hides where the cores that
    exchange are those that compute."""
    work = PlannedRun(case["parameters"], case["parameters"], 1, case["batch_size"], ranks)
    gather = Gather(case["concepts"], case["embed_dim"], scatters=False)
    return network.step(make_plan(work, None, gather).traffic, ranks, backward=0.0).total


def steps(measured: Facts) -> str:
    """From one process to two ranks."""
    network, ranks = network_of(measured), measured["exchanges"]["ranks"]
    rows = []
    for case in measured["steps"]:
        spent = case["seconds"]
        modelled = exchange(case, network, ranks)
        rows.append(
            [
                f"{case['model']}, {case['parameters'] / 1e6:.1f} M",
                str(case["batch_size"]),
                *(f"{1e3 * spent[name]:,.0f}" for name in ("whole", "half", "apart", "ranks")),
                f"{1e3 * (spent['ranks'] - spent['apart']):,.0f}",
                f"{1e3 * modelled:,.0f}",
                _off(spent["apart"] + modelled, spent["ranks"]),
                f"{spent['whole'] / spent['ranks']:.2f} x",
            ]
        )
    head = ["model", "batch", "1 rank ms", "1 rank, half ms", "2 apart ms", "2 ranks ms"]
    head += ["exchange ms", "model ms", "step off by", "speed-up"]
    return table(head, rows)


def saved(measured: Facts) -> str:
    """Checkpoints: bytes and seconds."""
    rows = []
    small, *_ = measured["checkpoints"]
    rate = small["bytes"] / small["seconds"]
    for each in measured["checkpoints"]:
        planned = make_plan(PlannedRun(each["parameters"], each["parameters"], 1, 1, 1)).checkpoint
        modelled = planned / rate
        rows.append(
            [
                f"{each['parameters'] / 1e6:.1f} M",
                f"{each['bytes'] / 1e6:,.1f}",
                f"{planned / 1e6:,.1f}",
                _off(planned, each["bytes"]),
                f"{1e3 * each['waited']:,.0f}",
                f"{each['seconds']:.2f}",
                f"{modelled:.2f}",
                _off(modelled, each["seconds"]),
            ]
        )
    head = ["parameters", "MB written", "MB planned", "off by", "training waits ms"]
    return table([*head, "written after s", "model s", "off by"], rows)


HERE: dict[str, Callable[[Facts], str]] = {
    "link": link,
    "collectives": collectives,
    "features": features,
    "steps": steps,
    "saved": saved,
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; all columns but the first are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _off(modelled: float, measured: float) -> str:
    return f"{modelled / measured - 1:+.0%}" if measured else "-"


def _size(count: float) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:.0f} B"
