"""Ranks hold the same weights to the bit; where they do not, the run stops and says which."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from wholegrain.errors import WholegrainError

_PIECE = 1 << 18  # elements; what is computed of them stays in a processor's cache
_SPREAD = 0x9E3779B1  # odd, so that multiples modulo a power of two are all different
_SHOWN = 8


class RankDivergence(WholegrainError):
    """Ranks that should hold the same weights do not."""

    exit_status = 71
    """Starting again from the last checkpoint is right."""


@torch.no_grad()
def weights_checksum(tensors: Iterable[Tensor]) -> Tensor:
    """A number of the tensors' bits that every rank must agree on.

    One flipped bit always changes it, and so does an exchange of two elements that are close to
    each other. What else may happen to the bits goes unseen by a chance of less than 2^-30. Sums of
    integers do not depend on their order, so that the number is the same on every kind of device.
    Nothing waits for the device.

    Args:
        tensors: on one device, in an order that all ranks share.

    Returns:
        int64 scalar on that device.
    """
    total = factors = products = None
    number = 0
    for tensor in tensors:
        bits = _bits(tensor)
        if total is None or factors is None or products is None:
            total = torch.zeros((), dtype=torch.int64, device=bits.device)
            products = torch.empty(_PIECE, dtype=torch.int64, device=bits.device)
            factors = torch.arange(_PIECE, dtype=torch.int64, device=bits.device)
            # An element's bits count times an odd number below 2^31 that no other of its piece
            # has: what an exchange of two changes is then not 0 and less than 2^64.
            factors = factors.mul_(_SPREAD).remainder_(1 << 30).mul_(2).add_(1)
        for start in range(0, len(bits), _PIECE):
            piece = bits[start : start + _PIECE]
            weighted = products[: len(piece)].copy_(piece).mul_(factors[: len(piece)])
            total += weighted.sum() * _odd(number)
            number += 1
        number += 1  # an empty tensor counts too
    return torch.zeros((), dtype=torch.int64) if total is None else total


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's elements as flat integers of at most 32 bits."""
    integer = {1: torch.uint8, 2: torch.int16}.get(tensor.element_size(), torch.int32)
    return tensor.detach().reshape(-1).view(integer)


def _odd(number: int) -> int:
    """The odd 64-bit factor of a piece, far from its neighbours' (SplitMix64's finaliser)."""
    mask = (1 << 64) - 1
    mixed = (number + 1) * 0x9E3779B97F4A7C15 & mask
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & mask
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & mask
    mixed = (mixed ^ (mixed >> 31)) | 1
    return mixed - (1 << 64) if mixed >> 63 else mixed


def compare_ranks(checksum: Tensor, step: int) -> None:
    """Compares the ranks' checksums; every rank calls it and gets the same outcome.

    The host waits for the device here.

    Args:
        checksum: of `weights_checksum`.
        step: optimizer steps done, for the message.

    Raises:
        RankDivergence: they differ; names the ranks that are not of one mind with the majority,
            and their hosts.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    found = [torch.empty_like(checksum.reshape(1)) for _ in range(dist.get_world_size())]
    dist.all_gather(found, checksum.reshape(1))
    values: list[int] = torch.cat(found).tolist()
    if len(set(values)) == 1:
        return
    hosts: list[str] = [""] * len(values)
    dist.all_gather_object(hosts, platform.node())
    raise RankDivergence(_described(values, hosts, step))


def _described(values: Sequence[int], hosts: Sequence[str], step: int) -> str:
    (common, count), *_ = Counter(values).most_common()
    world = len(values)
    if 2 * count > world:
        odd = [rank for rank in range(world) if values[rank] != common]
        whose = "its" if len(odd) == 1 else "their"
        others = "rank" if count == 1 else f"{count} ranks"
        what = (
            f"the weights of {_ranks(odd)} differ from those of the other {others} at step {step} "
            f"(a fault of {whose} memory, or a bug)"
        )
    else:
        odd = list(range(world))
        camps: dict[int, list[int]] = {}
        for rank, value in enumerate(values):
            camps.setdefault(value, []).append(rank)
        sides = [_ranks(camp) for camp in camps.values()]
        what = (
            f"the weights of {_some(sides, ' and ')} differ at step {step}, and no majority says "
            "whose are right (a fault of somebody's memory, or a bug)"
        )
    where = _some(list(dict.fromkeys(hosts[rank] for rank in odd)), ", ")
    return f"{what}; nothing was saved; start again from the last checkpoint, and look at {where}"


def _ranks(ranks: Sequence[int]) -> str:
    noun = "rank" if len(ranks) == 1 else "ranks"
    return f"{noun} {_some([str(rank) for rank in ranks], ', ')}"


def _some(names: Sequence[str], between: str) -> str:
    shown = between.join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
