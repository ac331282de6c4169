"""Peaks: which device is known by which name, and what becomes of those that are not."""

import re
from collections.abc import Iterator

import pytest
import torch

from wholegrain.train import peaks
from wholegrain.train.peaks import PEAKS, Precision, fastest_product, known_peak, peak_flops

CPU = torch.device("cpu")
# As drivers call them, with their dense bf16 peak.
NAMES = {
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "A100-SXM4-40GB": 312,
    "NVIDIA A800-SXM4-80GB": 312,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 64GB HBM2e": 989.4,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H200": 989.5,
    "NVIDIA H200 NVL": 835.5,
    "NVIDIA H20": 148,
    "NVIDIA GH200 480GB": 989.5,
    "NVIDIA B200": 2250,
    "NVIDIA GB200": 2500,
    "NVIDIA L40S": 362,
    "NVIDIA L40": 181,
    "NVIDIA L4": 121,
    "NVIDIA A10": 125,
    "NVIDIA A10G": 70,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 3090": 71,
    "AMD Instinct MI250X": 191.5,
    "AMD Instinct MI250X/MI250": 191.5,
    "AMD Instinct MI250": 181,
    "AMD Instinct MI300X": 1307.4,
    "AMD Instinct MI300X OAM": 1307.4,
}


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("name", NAMES)
def test_known_devices(name: str) -> None:
    assert sum(re.fullmatch(peak.name, name) is not None for peak in PEAKS) == 1
    found = known_peak(name, "bf16")
    assert found is not None
    flops, where = found
    assert flops == NAMES[name] * 1e12
    assert where.startswith(f"{name}, dense bf16: ")


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA L40G",
        "NVIDIA A100X",
        "",
    ],
)
def test_parts_and_namesakes_are_not_known(name: str) -> None:
    assert known_peak(name, "bf16") is None


def test_devices_without_bf16_are_known_for_fp16_alone() -> None:
    assert known_peak("Tesla V100-SXM2-32GB", "bf16") is None
    assert known_peak("Tesla T4", "bf16") is None
    found = known_peak("Tesla V100-SXM2-32GB", "fp16")
    assert found is not None
    assert found[0] == 125e12


def test_fp32_is_no_tf32_unless_torch_may_use_it() -> None:
    found = known_peak("NVIDIA H100 80GB HBM3", "fp32")
    assert found == (
        66.9 * 1e12,
        "NVIDIA H100 80GB HBM3, dense fp32: NVIDIA H100 white paper, SXM5",
    )


@pytest.mark.usefixtures("tf32")
def test_fp32_is_tf32_where_torch_may_use_it_and_the_device_has_it() -> None:
    found = known_peak("NVIDIA H100 80GB HBM3", "fp32")
    assert found == (
        494.7 * 1e12,
        "NVIDIA H100 80GB HBM3, dense tf32: NVIDIA H100 white paper, SXM5",
    )
    assert known_peak("Tesla V100-PCIE-16GB", "fp32") == (
        14e12,
        "Tesla V100-PCIE-16GB, dense fp32: NVIDIA V100 data sheet",
    )


def test_no_peak_of_a_wider_type_is_above_that_of_a_narrower_one() -> None:
    for peak in PEAKS:
        assert peak.fp32 <= (peak.tf32 or peak.fp16) <= peak.fp16
        assert peak.bf16 in (peak.fp16, None)
        assert peak.source


def test_the_fastest_product_within_the_budget() -> None:
    asked = []

    def seconds_of(side: int) -> float:
        asked.append(side)
        # A device of 10^12 operations a second that takes 2 ms to begin with.
        return 2 * side**3 / 1e12 + (0.002 if side < 1024 else 0.0)

    flops, side = fastest_product(seconds_of, budget_s=0.2)
    # 2048 would take 3 x 17 ms after the 30 ms so far, 4096 then 3 x 137 ms.
    assert asked == [128, 256, 512, 1024, 2048]
    assert side == 1024
    assert flops == pytest.approx(1e12)


def test_a_device_that_is_slower_with_larger_products() -> None:
    flops, side = fastest_product(lambda side: 1e-6 * side**4 / 1e6, budget_s=0.2)
    assert side == 128
    assert flops == pytest.approx(2 * 128**3 / (1e-12 * 128**4))


def test_a_device_too_slow_for_a_second_size_is_measured_all_the_same() -> None:
    assert fastest_product(lambda side: 10.0) == (2 * 128**3 / 10, 128)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cpu_is_measured_once(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.get_rng_state()
    flops, where = peak_flops(CPU, precision)
    assert 1e7 < flops < 1e15
    assert re.fullmatch(
        rf"measured: {precision} products of \d+ x \d+ matrices, {torch.get_num_threads()} threads",
        where,
    )
    assert torch.equal(torch.get_rng_state(), random)
    monkeypatch.setattr(peaks, "fastest_product", None)
    assert peak_flops(CPU, precision) == (flops, where)


def test_a_given_peak_stands() -> None:
    assert peak_flops(CPU, "fp32", given=2.5) == (2.5e12, "run.peak_tflops")
