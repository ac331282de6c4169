"""Pieces of flat partitions are updated as the parameters that they are part of."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wholegrain.train.partitioned_adamw import PartitionedAdamW, Piece

SETTINGS: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.05}


def whole() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"matrix": (3, 4), "bias": (5,), "scalar": ()}
    return {n: nn.Parameter(torch.randn(size, generator=generator)) for n, size in sizes.items()}


def gradients(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step + 1)
    return {n: torch.randn(p.shape, generator=generator) for n, p in whole().items()}


class Divided:
    """The parameters end to end, cut over two ranks, the second one with three more to align it."""

    def __init__(self) -> None:
        values = torch.cat([*(p.detach().flatten() for p in whole().values()), torch.ones(4)])
        self.flats = [nn.Parameter(half.clone()) for half in values.chunk(2)]
        pieces = [
            [Piece("matrix", (3, 4), 0, 0, 11)],
            [
                Piece("matrix", (3, 4), 11, 0, 1),
                Piece("bias", (5,), 0, 1, 5),
                Piece("scalar", (), 0, 6, 1),
            ],
        ]
        self.adamws = []
        for flat, held in zip(self.flats, pieces, strict=True):
            adamw = PartitionedAdamW([{"params": [flat]}], **SETTINGS)
            adamw.pieces = {flat: held}
            self.adamws.append(adamw)

    def step(self, step: int, **attributes: Any) -> None:
        parts = [*(g.flatten() for g in gradients(step).values()), torch.full((4,), 7.0)]
        for flat, adamw, part in zip(
            self.flats, self.adamws, torch.cat(parts).chunk(2), strict=True
        ):
            for name, value in attributes.items():
                setattr(adamw, name, value)
            flat.grad = part.clone()
            adamw.step()

    def values(self) -> dict[str, Tensor]:
        flat, found, place = torch.cat([f.detach() for f in self.flats]), {}, 0
        for name, parameter in whole().items():
            count = parameter.numel()
            found[name] = flat[place : place + count].view(parameter.shape)
            place += count
        assert torch.equal(flat[place:], torch.ones(4)), "what aligns the pieces has moved"
        return found


def expected(steps: list[set[str]], scales: Sequence[float] = ()) -> dict[str, Tensor]:
    """What torch's own AdamW makes of the whole parameters that have a gradient in each step.

    Each step's gradients are divided by its scale.
    """
    parameters = whole()
    adamw = torch.optim.AdamW(parameters.values(), fused=True, **SETTINGS)
    for step, given in enumerate(steps):
        for name, gradient in gradients(step).items():
            scale = scales[step] if scales else 1.0
            parameters[name].grad = gradient / scale if name in given else None
        adamw.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


EVERY = {"matrix", "bias", "scalar"}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values, rtol=1e-6, atol=1e-7)


def test_pieces_are_updated_as_the_whole() -> None:
    divided = Divided()
    for step in range(4):
        divided.step(step)
    assert_equal(divided.values(), expected([EVERY] * 4))


def test_what_is_left_out_keeps_its_value_and_its_count() -> None:
    divided = Divided()
    for step in range(4):
        out = frozenset({"bias"}) if step in (0, 2) else frozenset()
        divided.step(step, left_out=out)
    assert_equal(divided.values(), expected([EVERY - {"bias"}, EVERY, EVERY - {"bias"}, EVERY]))
    assert divided.adamws[1].moments(divided.flats[1])["steps"].tolist() == [4, 2, 4]


def test_a_flag_on_the_device_skips_and_a_scale_divides() -> None:
    divided = Divided()
    divided.step(0)
    before = divided.values()
    divided.step(1, found_inf=torch.tensor(1.0), grad_scale=torch.tensor(1.0))
    assert_equal(divided.values(), before)
    assert divided.adamws[0].moments(divided.flats[0])["steps"].tolist() == [1]
    # Another one on each step: AdamW does not see a constant factor.
    scales, scaled = (2.0, 16.0, 0.25), Divided()
    for step, scale in enumerate(scales):
        scaled.step(step, found_inf=torch.tensor(0.0), grad_scale=torch.tensor(scale))
    assert_equal(scaled.values(), expected([EVERY] * 3, scales))


def test_values_stay_within_their_limits() -> None:
    divided = Divided()
    start = whole()["scalar"].item()
    limits = {"scalar": (start - 0.05, start + 0.05), "matrix": (-0.5, 0.5)}
    divided.step(0, limits=limits)
    found = divided.values()
    assert abs(float(found["scalar"]) - start) <= 0.05 + 1e-6
    assert abs(float(expected([EVERY])["scalar"]) - start) > 0.05
    assert found["matrix"].abs().max() <= 0.5
    assert_equal({"bias": found["bias"]}, {"bias": expected([EVERY])["bias"]})


def test_whole_parameters_are_torchs_own() -> None:
    parameters = whole()
    adamw = PartitionedAdamW([{"params": list(parameters.values())}], **SETTINGS)
    adamw.limits = {parameters["bias"]: (-0.1, 0.1)}
    for step in range(3):
        for name, gradient in gradients(step).items():
            parameters[name].grad = gradient
        adamw.step()
    wanted = expected([EVERY] * 3)
    assert torch.equal(parameters["matrix"].detach(), wanted["matrix"])
    assert parameters["bias"].abs().max() <= 0.1
