"""What a device can do at most, so that a run can be told how much of it it uses."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SIDES = (128, 256, 512, 1024, 2048, 4096, 8192)
_REPEATS = 3
_MEASURED_S = 0.2


@dataclass(frozen=True)
class Peak:
    """Dense matrix products of one device, 10^12 operations a second; None where it has none."""

    name: str
    """A regular expression for the whole of the name that the driver gives. Parts of devices (MIG),
    laptop versions and namesakes do not match it: they are slower."""
    fp16: float
    """With sums in fp32, as torch computes them."""
    bf16: float | None
    tf32: float | None
    fp32: float
    source: str


# Where a maker gives figures with sparsity alone, they are halved. Of a GPU with two dies that
# count as two devices, each has half.
PEAKS = (
    Peak("NVIDIA GB200", 2500, 2500, 1250, 80, "NVIDIA GB200 NVL72 specifications"),
    Peak("NVIDIA B200", 2250, 2250, 1100, 75, "NVIDIA HGX B200 specifications"),
    Peak("NVIDIA H200", 989.5, 989.5, 494.7, 66.9, "NVIDIA H200 data sheet"),
    Peak("NVIDIA H200 NVL", 835.5, 835.5, 417.5, 60, "NVIDIA H200 data sheet"),
    Peak("NVIDIA GH200 .*GB", 989.5, 989.5, 494.7, 66.9, "NVIDIA GH200 data sheet"),
    Peak("NVIDIA H100 .*HBM[23]e?", 989.4, 989.4, 494.7, 66.9, "NVIDIA H100 white paper, SXM5"),
    Peak("NVIDIA H100 PCIe", 756, 756, 378, 51.2, "NVIDIA H100 white paper, PCIe"),
    Peak("NVIDIA H100 NVL", 835.5, 835.5, 417.5, 60, "NVIDIA H100 NVL data sheet"),
    Peak("NVIDIA H800", 989.4, 989.4, 494.7, 66.9, "NVIDIA H100 white paper, the same die"),
    Peak("NVIDIA H20", 148, 148, 74, 44, "NVIDIA H20 data sheet"),
    Peak(r"(NVIDIA )?A[18]00-[\w-]+GB", 312, 312, 156, 19.5, "NVIDIA A100 data sheet"),
    Peak("NVIDIA A[18]00 80GB PCIe", 312, 312, 156, 19.5, "NVIDIA A100 data sheet"),
    Peak("NVIDIA A40", 149.7, 149.7, 74.8, 37.4, "NVIDIA A40 data sheet"),
    Peak("NVIDIA A30", 165, 165, 82, 10.3, "NVIDIA A30 data sheet"),
    Peak("NVIDIA A10", 125, 125, 62.5, 31.2, "NVIDIA A10 data sheet"),
    Peak("NVIDIA A10G", 70, 70, 35, 35, "NVIDIA A10G data sheet of AWS"),
    Peak("NVIDIA L40S", 362, 362, 183, 91.6, "NVIDIA L40S data sheet"),
    Peak("NVIDIA L40", 181, 181, 90.5, 90.5, "NVIDIA L40 data sheet"),
    Peak("NVIDIA L4", 121, 121, 60, 30.3, "NVIDIA L4 data sheet"),
    Peak("NVIDIA RTX A6000", 154.8, 154.8, 77.4, 38.7, "NVIDIA GA102 white paper"),
    Peak("NVIDIA RTX 6000 Ada Generation", 364.2, 364.2, 182.1, 91.1, "NVIDIA AD102 white paper"),
    Peak("NVIDIA GeForce RTX 5090", 209.5, 209.5, 104.8, 104.8, "NVIDIA RTX Blackwell white paper"),
    Peak("NVIDIA GeForce RTX 4090", 165.2, 165.2, 82.6, 82.6, "NVIDIA AD102 white paper"),
    Peak("NVIDIA GeForce RTX 3090", 71, 71, 35.6, 35.6, "NVIDIA GA102 white paper"),
    Peak("Tesla V100-SXM2-.*", 125, None, None, 15.7, "NVIDIA V100 data sheet"),
    Peak("Tesla V100-PCIE-.*", 112, None, None, 14, "NVIDIA V100 data sheet"),
    Peak("Tesla V100S-PCIE-.*", 130, None, None, 16.4, "NVIDIA V100 data sheet"),
    Peak("(Tesla|NVIDIA) T4", 65, None, None, 8.1, "NVIDIA T4 data sheet"),
    Peak("AMD Instinct MI325X", 1307.4, 1307.4, 653.7, 163.4, "AMD MI325X data sheet"),
    Peak("AMD Instinct MI300X.*", 1307.4, 1307.4, 653.7, 163.4, "AMD MI300X data sheet"),
    Peak("AMD Instinct MI300A", 980.6, 980.6, 490.3, 122.6, "AMD MI300A data sheet"),
    Peak("AMD Instinct MI250X.*", 191.5, 191.5, None, 47.9, "AMD MI250X data sheet, one die"),
    Peak("AMD Instinct MI250", 181, 181, None, 45.3, "AMD MI250 data sheet, one die"),
    Peak("AMD Instinct MI210", 181, 181, None, 45.3, "AMD MI210 data sheet"),
)


def peak_flops(
    device: torch.device, precision: Precision, given: float | None = None
) -> tuple[float, str]:
    """The most operations a second that a device does in products of dense matrices.

    TF32 counts as fp32 where torch may use it (``torch.set_float32_matmul_precision``) and the
    device has it. A device that `PEAKS` does not know, and any CPU, multiplies matrices once, for a
    fifth of a second; that is what it reaches with the threads it has, and not what its maker says.

    Args:
        device: of this rank.
        precision: of the matrix products.
        given: 10^12 operations a second, taken instead of all that.

    Returns:
        Operations a second, and where the number comes from.
    """
    if given is not None:
        return given * 1e12, "run.peak_tflops"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = known_peak(name, precision)
    return known or _measured_once(device, precision)


def known_peak(name: str, precision: Precision) -> tuple[float, str] | None:
    """The peak of a device that the driver calls `name`; None where the table has none."""
    for peak in PEAKS:
        if re.fullmatch(peak.name, name):
            tflops, spoken = peak.fp32, str(precision)
            if precision == "fp16":
                tflops = peak.fp16
            elif precision == "bf16":
                if peak.bf16 is None:
                    return None
                tflops = peak.bf16
            elif peak.tf32 is not None and torch.backends.cuda.matmul.fp32_precision == "tf32":
                tflops, spoken = peak.tf32, "tf32"
            return tflops * 1e12, f"{name}, dense {spoken}: {peak.source}"
    return None


@cache
def _measured_once(device: torch.device, precision: Precision) -> tuple[float, str]:
    dtype = _DTYPES[precision]
    _product_seconds(device, dtype, _SIDES[0])  # loads the library
    flops, side = fastest_product(lambda side: _product_seconds(device, dtype, side))
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return flops, f"measured: {precision} products of {side} x {side} matrices{threads}"


def fastest_product(
    seconds_of: Callable[[int], float], budget_s: float = _MEASURED_S
) -> tuple[float, int]:
    """Operations a second of the fastest product of square matrices, and their side.

    Sides double, since a device is full from some size on, for as long as the budget lasts.

    Args:
        seconds_of: takes a side, multiplies `_REPEATS` times, gives the seconds of the fastest.
        budget_s: seconds for all products.
    """
    best, best_side, spent = 0.0, 0, 0.0
    for side in _SIDES:
        seconds = seconds_of(side)
        flops = 2 * side**3 / seconds
        if flops > best:
            best, best_side = flops, side
        spent += _REPEATS * seconds
        if spent + _REPEATS * 8 * seconds > budget_s:  # twice the side, eight times the work
            break
    return best, best_side


def _product_seconds(device: torch.device, dtype: torch.dtype, side: int) -> float:
    # Numbers of its own: a run must not depend on whether a device was measured. Zeros would
    # flatter it, as they take less power.
    generator = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2)
    )
    times = []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for _ in range(_REPEATS):
            _synchronise(device)
            begin = time.perf_counter()
            torch.mm(left, right)
            _synchronise(device)
            times.append(time.perf_counter() - begin)
    return min(times)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
