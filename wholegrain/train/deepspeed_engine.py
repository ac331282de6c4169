"""A module under DeepSpeed, trained to the same weights as without it.

DeepSpeed brings ZeRO (Rajbhandari et al. 2020): moments (stage 1), gradients (2) and parameters (3)
are divided over the ranks. Its parameters stay fp32; lower precision is autocast around our
module's forward, as in the other engines. Clipping, skipping, loss scale and AdamW are ours:
`Optimizer.step` takes the norm from this rank's part of the gradient, and DeepSpeed's own step then
runs our AdamW on its partitions, copies and gathers.

Where the host waits for the device: with `overlap_comm` stages 1 and 2 wait for the exchange of
gradients at the end of the backward pass, stage 3 always does, and takes a norm of its own in its
step, for which it waits again. Stage 0 waits nowhere.

This module imports DeepSpeed, which takes seconds: import it where DeepSpeed is asked for.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from wholegrain.errors import ConfigError
from wholegrain.train.deepspeed_config import DeepSpeedSettings
from wholegrain.train.optim import Optimizer
from wholegrain.train.partitioned_adamw import Piece

# DeepSpeed looks for a device by itself, and would take another one than we do where it finds one.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
from deepspeed import comm
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero import utils as zero_utils
from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation
from deepspeed.utils import logger

_GATHERED_AT_ONCE = 1 << 28  # elements


class Autocast(nn.Module):
    """A module whose forward runs in another precision.

    DeepSpeed switches an autocast off that stands outside of the module it was given.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None, device: torch.device) -> None:
        super().__init__()
        self.module, self.dtype, self.device = module, dtype, device

    def forward(self, *inputs: Any) -> Any:
        """The module's outputs."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return self.module(*inputs)


class _Engine(DeepSpeedEngine):
    """DeepSpeed's, but for scalar parameters.

    It sends the bytes of a parameter, as which torch does not view a tensor without dimensions.
    """

    def _broadcast_model(self) -> None:
        for parameter in self.module.parameters():
            dist.broadcast(parameter.data, src=0)

    def _configure_zero_optimizer(self, optimizer: Any) -> Any:
        if self.zero_optimization_stage() < 3:
            return super()._configure_zero_optimizer(optimizer)
        scalars = [parameter for parameter in self.module.parameters() if parameter.ndim == 0]
        for scalar in scalars:
            scalar.data = scalar.data.reshape(1)
        made = super()._configure_zero_optimizer(optimizer)
        for scalar in scalars:
            scalar.ds_shape = torch.Size([])
        return made


class DeepSpeedModule:
    """What `Engine` needs of DeepSpeed; as `Gradients`, what `Optimizer` needs of it.

    Args:
        module: on its device, with the weights that training starts from.
        optimizer: whose AdamW DeepSpeed is to run, and whose `gradients` this becomes.
        settings: checked.
        dtype: of autocast; None for fp32.
        device: of this rank.
        some_unused: some updates pass by some of the parameters, the same ones on all ranks. They
            are left alone, as `Engine.wrap` describes.

    Raises:
        ConfigError: DeepSpeed refuses the settings.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        settings: DeepSpeedSettings,
        dtype: torch.dtype | None,
        device: torch.device,
        some_unused: bool,
    ) -> None:
        settings.require_optim(optimizer.optim)
        self.stage, self._optimizer = settings.stage, optimizer
        self._device, self._watched = device, some_unused
        self._used: set[str] = set()
        self._module = module
        self._names = {id(parameter): name for name, parameter in optimizer.named.items()}
        self.engine = _initialise(Autocast(module, dtype, device), optimizer, settings)
        if self.stage:
            optimizer.adamw.pieces = dict(self._partitions())
        if self.stage == 3:
            _show_tensors_of_dataclasses(self.engine.module)
        optimizer.gradients = self
        if some_unused:
            for name, parameter in optimizer.named.items():
                parameter.register_post_accumulate_grad_hook(self._noting(name))

    # --- a step ---------------------------------------------------------------------------------

    def part(self, last: bool) -> None:
        """Before each part of a step: gradients are complete after the last one."""
        self.engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: Tensor) -> None:
        """Accumulates gradients, in stages 2 and 3 exchanging them."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def norm(self, groups: Collection[int] | None = None) -> Tensor:
        """() of these groups' gradient: the squares of this rank's part, summed over ranks."""
        if self.stage == 0:
            self._forget_unused()
        held = list(self._held(groups))
        # torch's norm of none is on the host, and the device would be waited for to move it.
        norm = get_total_norm(held) if held else torch.zeros((), device=self._device)
        if self.stage == 0 or dist.get_world_size() == 1:
            return norm
        squared = norm.square()
        dist.all_reduce(squared)
        return squared.sqrt()

    def multiply(self, groups: Collection[int], factor: Tensor) -> None:
        """Multiplies this rank's part of these groups' gradient."""
        for gradient in self._held(groups):
            gradient.mul_(factor)

    def apply(self) -> None:
        """Has DeepSpeed take its step."""
        adamw = self._optimizer.adamw
        if self._watched:
            adamw.left_out = frozenset(self._optimizer.named.keys() - self._used)
            self._used.clear()
        self.engine.step()
        if self._watched and self.stage == 3:
            # DeepSpeed overwrites only the gradients that come, and would apply the others again.
            self.engine.optimizer.grad_partitions_flat_buffer.zero_()

    def _held(self, groups: Collection[int] | None) -> Iterator[Tensor]:
        """This rank's gradients of these groups, None for all; what is behind the end of a
        parameter is zero or left out.
        """
        if self.stage == 0:
            for number, group in enumerate(self._optimizer.grouped):
                if groups is None or number in groups:
                    yield from (p.grad for p in group if p.grad is not None)
            return
        zero = self.engine.optimizer
        for number, gradients in zero.averaged_gradients.items():
            # Stage 3 cuts groups into smaller ones.
            of = number if self.stage < 3 else zero.sub_group_to_group_id[number]
            if groups is not None and of not in groups:
                continue
            for place, gradient in enumerate(gradients):
                if self.stage < 3:
                    yield gradient
                    continue
                count = _count(zero.fp16_groups[number][place])
                if count:
                    yield gradient.narrow(0, 0, count)

    def _forget_unused(self) -> None:
        # DeepSpeed exchanges zeros for gradients that did not come.
        for name, parameter in self._optimizer.named.items():
            if self._watched and name not in self._used:
                parameter.grad = None

    def _noting(self, name: str) -> Any:
        return lambda parameter: self._used.add(name)

    # --- where parameters are -------------------------------------------------------------------

    def _partitions(self) -> Iterator[tuple[Tensor, Sequence[Piece]]]:
        """This rank's flat partitions, and what lies in each."""
        zero = self.engine.optimizer
        if self.stage == 3:
            flats, groups, pieces = zero.fp32_partitioned_groups_flat, zero.fp16_groups, self._own
        else:
            flats, groups = zero.single_partition_of_fp32_groups, zero.bit16_groups
            pieces = self._linked
        for flat, group in zip(flats, groups, strict=True):
            yield flat, list(pieces(group))

    def _linked(self, group: Sequence[Any]) -> Iterator[Piece]:
        """Of stages 1 and 2, where a parameter may lie in two ranks' partitions."""
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is not None:
                start, held = mapping.lp_fragment_address.start, mapping.hp_fragment_address
                yield self._piece(parameter, start, held.start, held.numel)

    def _own(self, group: Sequence[Any]) -> Iterator[Piece]:
        """Of stage 3, where every rank has an equal share of each parameter."""
        zero, rank = self.engine.optimizer, dist.get_rank()
        for parameter in group:
            _, place, size = zero.grad_position[zero.get_param_id(parameter)]
            count = _count(parameter)
            if count:
                yield self._piece(parameter, rank * size, place, count)

    def _piece(self, parameter: nn.Parameter, start: int, place: int, count: int) -> Piece:
        name = self._names[id(parameter)]
        return Piece(name, self._optimizer.shapes[name], start, place, count)

    def whole(self) -> AbstractContextManager[Any]:
        """Within the block every parameter is whole and modules are called as without DeepSpeed."""
        if self.stage < 3:
            return nullcontext()
        return _unwrapped(self.engine)

    def whole_weights(self, model: nn.Module) -> dict[str, Tensor] | None:
        """The state of a part of the module, on rank 0; in stage 3 on the host there."""
        held = model.state_dict(keep_vars=True)
        if self.stage < 3:
            whole = {name: value.detach() for name, value in held.items()}
            return whole if dist.get_rank() == 0 else None
        taken: dict[int, Tensor] = {}
        parameters = {id(value): value for value in held.values() if hasattr(value, "ds_id")}
        for some in _portions(list(parameters.values())):
            with deepspeed.zero.GatheredParameters(some):
                if dist.get_rank() == 0:
                    taken |= {id(each): each.detach().to("cpu", copy=True) for each in some}
        if dist.get_rank() != 0:
            return None
        return {name: taken.get(id(value), value.detach()) for name, value in held.items()}

    def unwrap(self) -> None:
        """Ends DeepSpeed's part: the module is whole and plain again."""
        self._optimizer.adamw.pieces = {}
        if self.stage < 3:
            self.engine.destroy()
            for parameter in self._module.parameters():
                parameter.data = parameter.data.clone()  # else it keeps the flat group alive
                parameter.grad = None
            return
        parameters = list(self._module.parameters())
        plain: dict[int, nn.Parameter] = {}
        for some in _portions(parameters):
            with deepspeed.zero.GatheredParameters(some):
                for each in some:
                    values = each.detach().clone()
                    plain[id(each)] = nn.Parameter(values, requires_grad=each.requires_grad)
        self.engine.destroy()
        for part in self._module.modules():
            held = part._parameters.items()
            part._parameters = {
                name: None if value is None else plain[id(value)] for name, value in held
            }


def _initialise(module: Autocast, optimizer: Optimizer, settings: DeepSpeedSettings) -> _Engine:
    """DeepSpeed's engine on the process group that is there."""
    # It warns of what we decide (an optimizer of ours) and of what we report (a skipped update).
    logger.setLevel(logging.ERROR)
    # What DeepSpeed calls is deprecated in newer torch, which the user can do nothing about.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        alone = dist.HashStore()
        dist.init_process_group(backend, store=alone, rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")
    # A kernel that only inference uses, and that DeepSpeed would compile here for half a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    try:
        comm.init_distributed()
        config = DeepSpeedConfig(settings.values)
        engine = _Engine(
            args=None,
            model=module,
            optimizer=optimizer.adamw,
            config=settings.values,
            config_class=config,
        )
    except (AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{settings.path}: DeepSpeed refuses it ({reason}); correct it"
        ) from error
    return engine


def _count(parameter: Any) -> int:
    """Elements of a parameter that stage 3 leaves to this rank, without what aligns them."""
    size = parameter.partition_numel()
    return max(0, min(size, parameter.ds_numel - dist.get_rank() * size))


def _portions(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters by so many that they may be whole at the same time."""
    some: list[Any] = []
    for parameter in parameters:
        some.append(parameter)
        if sum(each.ds_numel for each in some) >= _GATHERED_AT_ONCE:
            yield some
            some = []
    if some:
        yield some


@contextmanager
def _unwrapped(engine: _Engine) -> Iterator[None]:
    # DeepSpeed's hooks would take parameters apart again after each submodule's forward.
    with unwrap_model_for_generation(engine):
        yield


def _show_tensors_of_dataclasses(module: nn.Module) -> None:
    """Lets stage 3 see the backward pass of submodules that return dataclasses.

    DeepSpeed makes a submodule's own parameters whole before its backward pass by a hook on the
    tensors that it returned, for which it looks into lists, tuples and dictionaries only.
    """

    zero_utils.warned = True  # of what is mended here

    def show(part: Any, inputs: Any, output: Any) -> Any:
        if not hasattr(output, "__dataclass_fields__") or not torch.is_grad_enabled():
            return None
        shown = {
            field.name: zero_utils.apply_to_tensors_only(
                part.pre_bwd_fn.apply, getattr(output, field.name)
            )
            for field in dataclasses.fields(output)
        }
        return dataclasses.replace(output, **shown)

    for part in module.modules():
        part.register_forward_hook(show)
