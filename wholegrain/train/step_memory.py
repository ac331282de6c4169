"""How much memory the steps of a dry run add to what is there before them."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


class StepMemory:
    """The most that is held from now on, beyond what is held now.

    On CUDA torch's own account of its allocator. Elsewhere the process's resident memory, whose
    high-water mark Linux lets a process reset.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before: int | None = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        # Freed pages that the allocator keeps would be used again unseen; only glibc has the call.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        try:
            (_PROCESS / "clear_refs").write_text("5", encoding="ascii")
            self._before = _resident("VmRSS")
        except OSError:
            self._before = None

    def growth(self) -> int | None:
        """Bytes; None where the system does not tell."""
        if self._before is None:
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - self._before
        return max(0, _resident("VmHWM") - self._before)


def _resident(name: str) -> int:
    for line in (_PROCESS / "status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{_PROCESS}/status has no {name}")
