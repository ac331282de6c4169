"""The machine under the figures: what it is, how fast its matrix products are, what they held."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Facts = dict[str, Any]
PRECISIONS = ("fp32", "bf16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

# So that what is freed goes back to the system at once, and resident memory is memory in use.
HONEST_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}


def facts(device: torch.device) -> Facts:
    """What a reader needs in order to compare the figures with another machine's."""
    found: Facts = {
        "device": device.type,
        "name": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "processor": found["name"],
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "fp32_matmul": torch.get_float32_matmul_precision(),
        }
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def synchronise(device: torch.device) -> None:
    """Waits until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release() -> None:
    """Gives back what models that are gone have held, before the next one is measured."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, the device's own work included."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def matmul_peak(device: torch.device, precision: str, side: int, repeats: int = 5) -> float:
    """FLOP/s of the fastest of some products of two (side, side) matrices."""
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randn(side, side, generator=generator).to(device, DTYPES[precision]) for _ in range(2)
    )

    def product() -> Tensor:
        return first @ second

    product()
    fastest = min(seconds_of(product, device) for _ in range(repeats))
    return 2 * side**3 / fastest


def peak_notes(peaks: dict[str, float]) -> list[str]:
    """What the measured peaks say about this machine."""
    gain = peaks["bf16"] / peaks["fp32"]
    measured = (
        f"Measured matrix peaks: fp32 {peaks['fp32'] / 1e9:,.0f} GFLOP/s, "
        f"bf16 {peaks['bf16'] / 1e9:,.0f} GFLOP/s ({gain:.2f} x)."
    )
    if gain < 1:
        measured += (
            " bf16 products are slower than fp32 here, as on processors without units for them: "
            "no bf16 step can gain on its fp32 form through its products."
        )
    elif gain < 1.5:
        measured += " bf16 products gain little here, so bf16 steps cannot gain much either."
    return [measured]


class PeakMemory:
    """Bytes that were held while a block ran.

    On CUDA torch's own account of its allocator. On the CPU the process's resident memory, whose
    high-water mark Linux lets a process reset: nothing escapes it, neither scratch space of kernels
    nor what the allocator keeps. Start the process with `HONEST_ALLOCATOR` in its environment.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = 0
        """Held when the block began."""
        self.peak = 0
        """The most that was held in it."""

    @contextmanager
    def watch(self) -> Iterator[PeakMemory]:
        """Sets `before` and `peak`."""
        synchronise(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
            yield self
            synchronise(self.device)
            self.peak = torch.cuda.max_memory_allocated(self.device)
            return
        _give_back()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.before = _status("VmRSS")
        yield self
        self.peak = _status("VmHWM")


def can_watch(device: torch.device) -> bool:
    """Whether this system lets a process see and reset its high-water mark."""
    return device.type == "cuda" or os.access("/proc/self/clear_refs", os.W_OK)


def _give_back() -> None:
    # Only glibc has the call; elsewhere the high-water mark is as honest as the allocator is.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}; memory can be measured on Linux alone")
