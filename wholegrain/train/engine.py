"""Where a stage runs: one process or several, as its launcher started it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from wholegrain.errors import ConfigError
from wholegrain.train.config import RunConfig


class Engine:
    """Device, ranks, precision and backward; a thin layer over Accelerate.

    Batches, schedule and checkpoints are ours, so nothing but the model is handed over.
    """

    def __init__(self, run: RunConfig) -> None:
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        _refuse_clash(run)
        self.accelerator = Accelerator(
            mixed_precision="bf16" if run.precision == "bf16" else "no",
            cpu=not torch.cuda.is_available(),
        )
        if self.accelerator.num_processes != asked:
            raise ConfigError(
                f"the launcher started {asked} processes, but {self.accelerator.num_processes} "
                "joined; start with `torchrun --standalone --nproc-per-node N -m ...`"
            )
        if run.batch_size % (run.accumulation * asked):
            raise ConfigError(
                f"run.batch_size {run.batch_size} does not divide into {asked} ranks x "
                f"{run.accumulation} accumulated parts; make it a multiple"
            )

    @property
    def rank(self) -> int:
        """This process."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """All processes."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        """Of this process."""
        device: torch.device = self.accelerator.device
        return device

    def wrap(self, module: nn.Module, some_unused: bool = False) -> nn.Module:
        """The module on its device, synchronised over ranks.

        Args:
            some_unused: some updates pass by some of the parameters. Those keep no gradient, so
                that the optimizer leaves them alone, on every rank; finding them takes the host a
                walk through each graph.
        """
        if self.world == 1:
            return module.to(self.device)
        self.accelerator.ddp_handler = DistributedDataParallelKwargs(
            find_unused_parameters=some_unused
        )
        wrapped: nn.Module = self.accelerator.prepare_model(module)
        return wrapped

    def backward(self, loss: Tensor) -> None:
        """Accumulates gradients."""
        self.accelerator.backward(loss)

    @contextmanager
    def part(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Autocast for one part of a step; ranks exchange gradients in the last one alone."""
        silent = not last and self.world > 1
        with self.accelerator.autocast():
            if silent:
                with self.accelerator.no_sync(module):
                    yield
            else:
                yield

    def share_buffers(self, module: nn.Module) -> None:
        """Gives every rank the first one's running statistics, which are those that are saved."""
        if self.world == 1:
            return
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.broadcast(buffer, src=0)

    def synchronise(self) -> None:
        """Waits until the device has done what it was given; for clocks, never in the loop."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def wait(self) -> None:
        """All ranks meet."""
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Ends the run together: a process group left open may abort the interpreter's exit."""
        self.wait()
        self.accelerator.end_training()

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes; so that all ranks stop at the same step."""
        if self.world == 1:
            return flag
        votes = torch.tensor([int(flag)], device=self.device)
        total: Tensor = self.accelerator.reduce(votes, reduction="sum")
        return bool(total.item())

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Means over ranks; all ranks hold the same names."""
        if self.world == 1 or not values:
            return values
        tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        tensor = self.accelerator.reduce(tensor, reduction="mean")
        return dict(zip(values, tensor.tolist(), strict=True))


def _refuse_clash(run: RunConfig) -> None:
    # `accelerate launch --cpu --num_processes 2` starts one process and says nothing; what it
    # leaves in the environment gives it away.
    by_accelerate = {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys()
    if by_accelerate and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "the launcher set MASTER_ADDR but started one process alone (`accelerate launch --cpu` "
            "does so); for N processes use `torchrun --standalone --nproc-per-node N` or "
            "`accelerate launch --multi_gpu --num_processes N`"
        )
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    ours = "bf16" if run.precision == "bf16" else "no"
    if launched not in {"no", ours}:
        raise ConfigError(
            f"the launcher sets mixed precision to {launched!r}, run.precision is "
            f"{run.precision!r}; set one of them, best run.precision"
        )
    parts = int(os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"))
    if parts not in {1, run.accumulation}:
        raise ConfigError(
            f"the launcher sets {parts} accumulation steps, run.accumulation is "
            f"{run.accumulation}; set run.accumulation alone"
        )
