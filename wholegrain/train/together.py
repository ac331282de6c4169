"""What one rank finds out, all ranks know; and what one rank fails at, all ranks fail at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from wholegrain.errors import WholegrainError

T = TypeVar("T")


def on_main(action: Callable[[], T]) -> T:
    """Does something on rank 0 alone; every rank gets its result.

    Args:
        action: its result must be picklable: the ranks of one run trust each other.

    Raises:
        WholegrainError: `action` raised it on rank 0; all ranks raise the same.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return action()
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = action()
        except WholegrainError as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    result: T = told[0]
    return result
