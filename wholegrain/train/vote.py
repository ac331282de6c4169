"""Whether any rank wants to stop, asked at every step without waiting for the answer."""

from __future__ import annotations

import ctypes
import time
from collections import deque
from datetime import timedelta
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor

# A rank that hangs is the watchdog's business. A limit of this group's own would end a run whose
# ranks take long over something else than steps.
_NO_LIMIT = timedelta(days=30)


class StopVote:
    """Within the block, all ranks cast a flag a step and learn whether any had it up.

    The answer is that of `lag` casts ago, the same for all ranks at the same cast. The flags travel
    between the hosts while the device works, in a process group of their own on gloo, so that
    nobody waits for the device and, in practice, nobody for an answer. One rank alone is answered
    at once, and so are all that ask for it.

    Making one and casting are collective: every rank does both, equally often.

    Args:
        world: ranks.
        lag: casts between a flag and its answer.
        patience_s: how long a rank whose block ends by an error waits for the flags of others.
    """

    def __init__(self, world: int, lag: int = 2, patience_s: float = 5.0) -> None:
        self._lag, self._patience_s = lag, patience_s
        self._flying: deque[tuple[dist.Work, Tensor]] = deque()
        self._group = dist.new_group(backend="gloo", timeout=_NO_LIMIT) if world > 1 else None

    def cast(self, flag: bool, at_once: bool = False) -> bool:
        """Hands in this step's flag; the answer of `lag` casts ago, no before there is one.

        Args:
            flag: of this rank.
            at_once: waits for the answers to this flag and to all that are on their way, and says
                whether any of them was yes; all ranks ask for that at the same cast.

        Raises:
            RuntimeError: another rank has gone.
        """
        if self._group is None:
            return flag
        votes = torch.full((1,), int(flag), dtype=torch.int32, device="cpu")
        work = dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._flying.append((work, votes))
        answer = False
        while len(self._flying) > (0 if at_once else self._lag):
            work, votes = self._flying.popleft()
            work.wait()
            answer = answer or bool(votes)
        return answer

    def close(self) -> None:
        """Waits until the flags of all ranks have arrived here, so that none misses this rank's."""
        while self._flying:
            self._flying.popleft()[0].wait()

    def __enter__(self) -> StopVote:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif not self._arrived(time.monotonic() + self._patience_s):
            # The others wait for this rank elsewhere and learn from its end that it has gone. But
            # a group that is destroyed waits for what it has begun, and so would the interpreter's
            # exit. With one reference too many it is never destroyed.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._group))

    def _arrived(self, deadline: float) -> bool:
        """Whether all that was handed in has come to an end, be it a bad one, by the deadline."""
        for work, _ in self._flying:
            try:
                # No time at all would mean no limit.
                left = max(deadline - time.monotonic(), 0.001)
                work.wait(timedelta(seconds=left))
            except RuntimeError:
                # Another rank has gone, or keeps us waiting. The error that ends the block says
                # more than this one.
                if not work.is_completed():
                    return False
        return True
