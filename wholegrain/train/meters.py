"""How fast a run is, what it loses, and what its figures mean over all ranks."""

from __future__ import annotations

import json
import math
import os
import resource
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from wholegrain.data.skips import SkipLedger

SUMS = frozenset({"samples_per_second", "pairs_per_second", "skipped_samples"})
"""Figures that the ranks add up to: each rank counts its own part of the batch."""

MAXIMA = frozenset(
    {
        "step_seconds_p99",
        "data_wait_share",
        "checkpoint_share",
        "validation_share",
        "memory_gib",
    }
)
"""Figures of which the worst rank's stands: all wait for it, so that a mean would hide it."""

_STEPS_AT_MOST = 10_000
_GIB = 2.0**30


class Averages:
    """Means of named scalars since the last look; tensors stay on their device until then.

    What is not finite is left out: one lost step must not hide the others of its line.
    """

    def __init__(self) -> None:
        # Names that are observed together lie in one tensor: sums above, counts below.
        self._seen: dict[tuple[str, ...], Tensor] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Adds one observation of each name."""
        if not values:
            return
        each = [torch.as_tensor(value).detach() for value in values.values()]
        device = max((one.device for one in each), key=lambda place: place.type != "cpu")
        row = torch.stack([one.to(device, torch.float64) for one in each])
        finite = torch.isfinite(row)
        self._add(tuple(values), torch.stack([row.where(finite, 0.0), finite.double()]))

    def take(self) -> dict[str, float]:
        """The means (NaN of nothing), after which counting starts anew. The host waits here."""
        return self.take_over(lambda state: state)

    def take_over(self, mean: Callable[[dict[str, float]], dict[str, float]]) -> dict[str, float]:
        """As `take`, over all ranks.

        Args:
            mean: gives the means of named numbers over ranks. It is asked for sums and counts, so
                that each observation weighs the same, whichever rank made it; that each rank has
                the same names is the caller's part.
        """
        state = mean(self.state())
        self._seen = {}
        means = {}
        for key, total in state.items():
            kind, _, name = key.partition("/")
            if kind == "sum":
                count = state[f"count/{name}"]
                means[name] = total / count if count else math.nan
        return means

    def state(self) -> dict[str, float]:
        """Sums and counts so far, for a checkpoint; the host waits here."""
        found: dict[str, float] = {}
        for names, seen in self._seen.items():
            for kind, row in zip(("sum", "count"), seen.tolist(), strict=True):
                for name, value in zip(names, row, strict=True):
                    found[f"{kind}/{name}"] = found.get(f"{kind}/{name}", 0.0) + value
        return found

    def load(self, state: Mapping[str, float]) -> None:
        """Continues from `state`."""
        names = tuple(key.removeprefix("sum/") for key in state if key.startswith("sum/"))
        if names:
            rows = [[state[f"{kind}/{name}"] for name in names] for kind in ("sum", "count")]
            self._add(names, torch.tensor(rows, dtype=torch.float64))

    def _add(self, names: tuple[str, ...], seen: Tensor) -> None:
        before = self._seen.get(names)
        # One that was read from a checkpoint lies on the CPU and follows to the device of the rest.
        self._seen[names] = seen if before is None else seen + before.to(seen.device)


@dataclass(frozen=True)
class Work:
    """What one rank did with a batch: its own part of a global batch."""

    samples: int = 0
    """Images."""
    pairs: int = 0
    """Pairs of an image or a box with a text."""
    tokens: int = 0
    """Tokens of their texts."""
    padded_tokens: int = 0
    """Tokens that were computed, padding included; 0 where nobody counted."""
    flops: float = 0.0
    """Operations that the model needs, forward and backward; 0 where nobody counted."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.samples + other.samples,
            self.pairs + other.pairs,
            self.tokens + other.tokens,
            self.padded_tokens + other.padded_tokens,
            self.flops + other.flops,
        )


class Throughput:
    """Speed of a rank, and what its time goes to.

    The clock is the host's, and no device is waited for. Its steps are true all the same. The host
    runs ahead of a device by what fits into the device's queue, and once that is full it advances
    as the device does: a step of the host lasts as long as one of the device, less what its lead
    grew, which in a steady state is nothing. Only where whole steps fit into the queue do the
    percentiles blur. The rates do not even then: `take` belongs after the reading of the averages,
    for which the host waits, so that a window begins and ends with the device idle.

    Args:
        clock: seconds; replaced in tests.
        peak_flops: of the rank's device, operations a second; None reports no share of it.
        memory: gives GiB in use, see `memory_meter`; None reports none.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        *,
        peak_flops: float | None = None,
        memory: Callable[[], float] | None = None,
    ) -> None:
        self._clock, self._peak_flops, self._memory = clock, peak_flops, memory
        self._start: float | None = None
        self._step_from = 0.0
        self._wait_from = 0.0
        self._waited = 0.0
        self._work = Work()
        self._paused: dict[str, float] = {}
        self._steps: deque[float] = deque(maxlen=_STEPS_AT_MOST)

    def waiting(self) -> None:
        """The loop asks for a batch. Time counts from the first of these on."""
        self._wait_from = self._clock()
        if self._start is None:
            self._start = self._step_from = self._wait_from

    def arrived(self) -> None:
        """The batch is there."""
        self._waited += self._clock() - self._wait_from

    def add(self, work: Work) -> None:
        """A batch was trained on. A step has one or several: accumulated parts, extra updates."""
        self._work += work

    def step(self) -> None:
        """A step is done; the next one begins."""
        now = self._clock()
        self._steps.append(now - self._step_from)
        self._step_from = now

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Keeps what is no training out of steps and rates, and reports it as ``NAME_share``."""
        begin = self._clock()
        try:
            yield
        finally:
            if self._start is not None:
                seconds = self._clock() - begin
                self._paused[name] = self._paused.get(name, 0.0) + seconds
                self._step_from += seconds

    def take(self) -> dict[str, float]:
        """Figures since the last look; those that have nothing to go by are left out.

        - ``samples_per_second``, ``pairs_per_second``: of this rank, pauses left out;
        - ``real_token_share``: of the tokens that were computed, those that are no padding;
        - ``data_wait_share``: of the training time, that spent waiting for a batch;
        - ``step_seconds_p50``, ``step_seconds_p99``: exact, by nearest rank, of the last 10,000;
        - ``tflops``: 10^12 operations a second of this rank; ``peak_share`` of its device's peak;
        - ``checkpoint_share`` and the like: of all time, that of the pause of that name;
        - ``memory_gib``.
        """
        now = self._clock()
        elapsed = now - self._start if self._start is not None else 0.0
        trained = elapsed - sum(self._paused.values())
        figures: dict[str, float] = {}
        if trained > 0:
            figures = self._rates(trained)
        if self._steps:
            ordered = sorted(self._steps)
            figures["step_seconds_p50"] = _percentile(ordered, 50)
            figures["step_seconds_p99"] = _percentile(ordered, 99)
        if elapsed > 0:
            figures |= {f"{name}_share": s / elapsed for name, s in self._paused.items()}
        if self._memory is not None:
            figures["memory_gib"] = self._memory()
        if self._start is not None:
            self._start = now
        self._waited, self._work = 0.0, Work()
        # A pause that was reported once stays in the lines, so that its curve comes down again.
        self._paused = dict.fromkeys(self._paused, 0.0)
        self._steps.clear()
        return figures

    def _rates(self, seconds: float) -> dict[str, float]:
        work = self._work
        figures = {
            "samples_per_second": work.samples / seconds,
            "data_wait_share": self._waited / seconds,
        }
        if work.pairs:
            figures["pairs_per_second"] = work.pairs / seconds
        if work.padded_tokens:
            figures["real_token_share"] = work.tokens / work.padded_tokens
        if work.flops:
            figures["tflops"] = work.flops / seconds / 1e12
            if self._peak_flops:
                figures["peak_share"] = work.flops / seconds / self._peak_flops
        return figures


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """The least value that at least `percent` of all do not exceed."""
    return ordered[-(-len(ordered) * percent // 100) - 1]


def memory_meter(device: torch.device) -> Callable[[], float]:
    """Gives GiB at each call: a GPU's peak since the call before, else this process's memory."""
    if device.type == "cuda":

        def peak() -> float:
            allocated = torch.cuda.max_memory_allocated(device) / _GIB
            torch.cuda.reset_peak_memory_stats(device)
            return allocated

        return peak
    return _resident


def _resident() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # no Linux: the most that it ever was is the next best
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return pages * os.sysconf("SC_PAGE_SIZE") / _GIB


class SkippedSamples:
    """Bad samples that were replaced since the last look, by cause.

    Args:
        ledgers: of this rank's streams; those that are added to the list later count too.
    """

    def __init__(self, ledgers: Sequence[SkipLedger]) -> None:
        self._ledgers = ledgers
        self._told: Counter[str] = Counter()

    def take(self) -> dict[str, float]:
        """``skipped_samples``, and ``skipped_samples/CAUSE`` for each cause met so far."""
        if not self._ledgers:
            return {}
        now: Counter[str] = Counter()
        for ledger in self._ledgers:
            now.update(ledger.causes)
        new = {cause: count - self._told[cause] for cause, count in now.items()}
        self._told = now
        figures = {"skipped_samples": float(sum(new.values()))}
        return figures | {f"skipped_samples/{_word(c)}": float(n) for c, n in new.items()}


def _word(cause: str) -> str:
    return cause.replace(" ", "_")


def across_ranks(figures: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """The run's figures from each rank's; every rank calls it and gets the same.

    `SUMS` are added, of `MAXIMA` the greatest stands, the others are means. A rank that lacks a
    figure, or has one that is not finite, is left out of it.

    Args:
        figures: of this rank, names to values; ranks may differ in their names.
        device: that the ranks talk through.
    """
    return combined(_gathered(figures, device))


def combined(ranks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One value for each name from those of all ranks, see `across_ranks`; NaN where none is."""
    figures = {}
    for name in dict.fromkeys(name for rank in ranks for name in rank):
        values = [rank[name] for rank in ranks if math.isfinite(rank.get(name, math.nan))]
        family = name.partition("/")[0]
        if not values:
            figures[name] = math.nan
        elif family in SUMS:
            figures[name] = math.fsum(values)
        elif family in MAXIMA:
            figures[name] = max(values)
        else:
            figures[name] = math.fsum(values) / len(values)
    return figures


def _gathered(figures: Mapping[str, float], device: torch.device) -> list[dict[str, float]]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [dict(figures)]
    # As text: causes of bad samples are names that only some ranks have met.
    text = torch.frombuffer(bytearray(json.dumps(dict(figures)).encode()), dtype=torch.uint8)
    size = torch.tensor([len(text)], device=device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    lengths = [int(each) for each in sizes]
    padded = torch.zeros(max(lengths), dtype=torch.uint8, device=device)
    padded[: len(text)] = text.to(device)
    texts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(texts, padded)
    pairs = zip(texts, lengths, strict=True)
    return [json.loads(bytes(each[:length].tolist())) for each, length in pairs]
