"""Where a stage runs: one process or several, as its launcher started it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wholegrain.errors import ConfigError
from wholegrain.train.config import RunConfig
from wholegrain.train.deepspeed_config import DeepSpeedSettings, read_deepspeed
from wholegrain.train.join import join
from wholegrain.train.launch import find_place
from wholegrain.train.optim import Optimizer

if TYPE_CHECKING:
    from wholegrain.train.deepspeed_engine import DeepSpeedModule

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_MARGIN_S = 120.0  # beyond `patience_s`, so that the watchdog's stacks come before torch's abort


class Engine:
    """Device, ranks, precision and backward: one process, plain data parallelism or DeepSpeed.

    A run gives the same losses and weights in any of them, up to rounding. Batches, schedule,
    precision, clipping and checkpoints are ours, so nothing but the model is handed over.

    Raises:
        ConfigError: launcher, DeepSpeed's file and config contradict each other, or the batch does
            not divide over the ranks; names both values and the remedy.
    """

    def __init__(self, run: RunConfig) -> None:
        place = find_place(os.environ)
        asked = place.world
        _refuse_indivisible(run, asked)
        self._settings = read_deepspeed(run, asked) if run.deepspeed is not None else None
        _refuse_clash(run, self._settings)
        on_gpu = torch.cuda.is_available()
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
            join(place, backend, collective_s=run.patience_s + _MARGIN_S)
        self.accelerator = Accelerator(mixed_precision="no", cpu=not on_gpu)
        if self.accelerator.num_processes != asked:
            raise ConfigError(
                f"the launcher started {asked} processes, but {self.accelerator.num_processes} "
                "joined; start with `torchrun --standalone --nproc-per-node N -m ...`"
            )
        self._run = run
        self._dtype = _AUTOCAST[run.precision]
        self._deepspeed: DeepSpeedModule | None = None

    @property
    def rank(self) -> int:
        """This process."""
        return int(self.accelerator.process_index)

    @property
    def local_rank(self) -> int:
        """This process among those of its node."""
        return int(self.accelerator.local_process_index)

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

    @property
    def replicated(self) -> bool:
        """Whether every rank holds every parameter whole; under ZeRO's stage 3 none does."""
        return self._settings is None or self._settings.stage < 3

    # --- the module -----------------------------------------------------------------------------

    def wrap(self, module: nn.Module, optimizer: Optimizer, some_unused: bool = False) -> nn.Module:
        """The module on its device, synchronised over ranks, and the optimizer made to fit.

        Its weights are those that training starts from, its optimizer's state is loaded afterwards.

        Args:
            module: takes a batch.
            optimizer: of its parameters.
            some_unused: some updates pass by some of the parameters. Those keep no gradient, so
                that the optimizer leaves them alone, on every rank; finding them takes the host a
                walk through each graph. Under DeepSpeed an update must pass by the same ones on
                all ranks.

        Raises:
            ConfigError: DeepSpeed refuses its settings, or they contradict the optimizer's.
        """
        module = module.to(self.device)
        if self._settings is not None:
            from wholegrain.train.deepspeed_engine import DeepSpeedModule

            self._deepspeed = DeepSpeedModule(
                module, optimizer, self._settings, self._dtype, self.device, some_unused
            )
            wrapped: nn.Module = self._deepspeed.engine
            return wrapped
        if self.world == 1:
            return module
        return DistributedDataParallel(
            module,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            # Running statistics are exchanged where they are read, see `share_buffers`.
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=some_unused,
            static_graph=not some_unused and self._run.accumulation == 1,
        )

    def whole(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Within the block every parameter of the module is whole, to be read and not changed.

        Ranks enter and leave together. Only ZeRO's stage 3 has to do anything.
        """
        return nullcontext() if self._deepspeed is None else self._deepspeed.whole()

    def whole_weights(self, model: nn.Module) -> dict[str, Tensor] | None:
        """The state of the module, or of a part of it, on rank 0; None elsewhere. Ranks meet."""
        if self._deepspeed is not None:
            return self._deepspeed.whole_weights(model)
        return model.state_dict() if self.is_main else None

    def unwrap(self, module: nn.Module) -> None:
        """After training: makes the module plain and whole on every rank, as before `wrap`."""
        if self._deepspeed is not None:
            self._deepspeed.unwrap()
            self._deepspeed = None
        module.zero_grad(set_to_none=True)  # views of buckets that would stay

    @contextmanager
    def part(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Autocast for one part of a step; ranks exchange gradients in the last one alone.

        Stages 2 and 3 of ZeRO, which keep no whole gradient, exchange them in each part.
        """
        if self._deepspeed is not None:
            self._deepspeed.part(last)
            yield
            return
        silent: AbstractContextManager[None] = nullcontext()
        if isinstance(module, DistributedDataParallel) and not last:
            silent = module.no_sync()  # the forward pass decides for its backward pass
        with silent, torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
            yield

    def backward(self, loss: Tensor) -> None:
        """Accumulates gradients."""
        if self._deepspeed is not None:
            self._deepspeed.backward(loss)
        else:
            loss.backward()

    def share_buffers(self, module: nn.Module) -> None:
        """Gives every rank the first one's running statistics, which are those that are saved."""
        if self.world == 1:
            return
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.broadcast(buffer, src=0)

    # --- the ranks ------------------------------------------------------------------------------

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


def _refuse_indivisible(run: RunConfig, world: int) -> None:
    if world > run.batch_size:
        raise ConfigError(
            f"run.batch_size {run.batch_size} is less than the {world} ranks that the launcher "
            "started; raise it or start fewer"
        )
    if run.batch_size % (run.accumulation * world):
        raise ConfigError(
            f"run.batch_size {run.batch_size} does not divide into {world} ranks x "
            f"{run.accumulation} accumulated parts; make it a multiple"
        )


# --- what a launcher wants ------------------------------------------------------------------------

_TRUE = {"1", "true", "yes", "on", "y", "t"}
_OTHER_ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


def _refuse_clash(run: RunConfig, settings: DeepSpeedSettings | None) -> None:
    """Refuses what `accelerate launch` was told and our config contradicts; the rest is dropped."""
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
    ours = "no" if run.precision == "fp32" else run.precision
    if launched not in {"no", ours}:
        raise ConfigError(
            f"the launcher sets mixed precision to {launched!r}, run.precision is "
            f"{run.precision!r}; set one of them, best run.precision"
        )
    parts = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if parts not in {"1", str(run.accumulation)}:
        raise ConfigError(
            f"the launcher sets {parts} accumulation steps, run.accumulation is "
            f"{run.accumulation}; set run.accumulation alone"
        )
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if compiler != "no" and not run.compile:
        raise ConfigError(
            f"the launcher sets the dynamo backend to {compiler!r}, run.compile is False; set "
            "run.compile alone"
        )
    for name, engine in _OTHER_ENGINES.items():
        if os.environ.get(name, "").lower() in _TRUE:
            raise ConfigError(
                f"the launcher sets {engine}, run.deepspeed is {run.deepspeed!r}; start without "
                f"{engine}: set run.deepspeed to divide a model over ranks"
            )
    _refuse_deepspeed_clash(run, settings)
    # What is left agrees with ours. Accelerate must not act on it a second time.
    for name in (
        "ACCELERATE_USE_DEEPSPEED",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        "ACCELERATE_DYNAMO_BACKEND",
    ):
        os.environ.pop(name, None)


def _refuse_deepspeed_clash(run: RunConfig, settings: DeepSpeedSettings | None) -> None:
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() not in _TRUE:
        return
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "none")
    theirs = f"the file {file}" if file.lower() != "none" else f"ZeRO stage {stage}"
    if settings is None:
        raise ConfigError(
            f"the launcher sets DeepSpeed with {theirs}, run.deepspeed is None; set run.deepspeed "
            "to a file of DeepSpeed's settings, or start without DeepSpeed"
        )
    if file.lower() != "none":
        if Path(file).resolve() != settings.path.resolve():
            raise ConfigError(
                f"the launcher sets DeepSpeed with {theirs}, run.deepspeed is {run.deepspeed!r}; "
                "set run.deepspeed alone"
            )
    elif stage.lower() not in {"none", str(settings.stage)}:
        raise ConfigError(
            f"the launcher sets DeepSpeed with {theirs}, run.deepspeed is {run.deepspeed!r} with "
            f"stage {settings.stage}; set run.deepspeed alone"
        )
