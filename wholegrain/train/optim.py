"""Parameter groups, learning-rate schedule and optimizer."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from wholegrain.errors import CheckpointError
from wholegrain.train.config import OptimConfig, RunConfig
from wholegrain.train.loss_scale import LossScale
from wholegrain.train.optimizer_state import MOMENTS, Fragment, StoredState
from wholegrain.train.outliers import OutlierWatch
from wholegrain.train.partitioned_adamw import Limits, PartitionedAdamW, Piece

# X-VLM decides by substrings of names, which lets these one-dimensional parameters through.
_XVLM_DECAYED = ("temperature", "match_head.1.weight", "box_head.mlp.1.weight")
_UNDECAYED_MATRICES = ("relative_position_bias_table",)
_NORM_EPS = 1e-6  # as torch and X-VLM clip
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_NEW = (
    "cross_attention",
    "cross_residual",
    "image_projection",
    "text_projection",
    "temperature",
    "contrastive_bias",
    "match_head",
    "box_head",
    "fusion.",
)


@dataclass(frozen=True)
class OwnGroup:
    """Parameters that the model's rates and clipping do not concern. They do not decay."""

    name: str
    """In the metrics: ``learning_rate/NAME``."""
    parameters: Sequence[nn.Parameter]
    """In no other own group. Those that need no gradient are passed over."""
    lr: float
    """Peak learning rate, whatever `optim.lr` is; it follows the schedule."""
    clip_norm: float
    """Largest norm of their gradient. The model's norm is without them, so that neither clips the
    other."""


def parameter_groups(
    model: nn.Module,
    optim: OptimConfig,
    adapters: Iterable[nn.Parameter] = (),
    own: Sequence[OwnGroup] = (),
) -> list[dict[str, Any]]:
    """Groups by decay and by rate: {decay, no decay} x {lr, new, adapter}; empty ones left out.

    Matrices decay; biases, norms and position-bias tables do not. New parameters are those that no
    pretrained encoder brings: cross-attention, projections, temperature, heads.

    Args:
        model: parameters that need no gradient are passed over.
        optim: rates and decay.
        adapters: parameters of adapters, which have a rate of their own.
        own: groups besides, which ``group["own"]`` holds; it is None of the others.

    Raises:
        KeyError: a parameter of an own group is not among the model's.
    """
    of_adapters = {id(parameter) for parameter in adapters}
    owner = {id(parameter): each for each in own for parameter in each.parameters}
    missing = owner.keys() - {id(parameter) for parameter in model.parameters()}
    if missing:
        names = sorted({owner[each].name for each in missing})
        raise KeyError(f"the model lacks parameters of its own groups {', '.join(names)}")
    groups: dict[tuple[str, float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not name.endswith(_UNDECAYED_MATRICES)
        if optim.recipe == "xvlm":
            decays = decays or name.removeprefix("model.").endswith(_XVLM_DECAYED)
        factor = 1.0
        if id(parameter) in of_adapters:
            factor = optim.adapter_lr_factor
        elif any(part in name for part in _NEW):
            factor = optim.new_lr_factor
        decay = optim.weight_decay if decays else 0.0
        apart = owner.get(id(parameter))
        if apart is not None:
            factor, decay = apart.lr / optim.lr, 0.0
        group = groups.setdefault(
            ("" if apart is None else apart.name, factor, decay),
            {"params": [], "names": [], "factor": factor, "weight_decay": decay, "own": apart},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """The rate of step 0 .. steps - 1: linear from 0 over the warm-up, then down to 0."""
    warmup = optim.warmup * steps if optim.warmup < 1 else optim.warmup
    if step < warmup:
        return optim.lr * step / max(1.0, warmup)
    left = (steps - step) / max(1.0, steps - warmup)
    if optim.schedule == "constant":
        return optim.lr
    if optim.schedule == "cosine":
        return optim.lr * 0.5 * (1 - math.cos(math.pi * min(1.0, left)))
    return optim.lr * left


class Update(NamedTuple):
    """What became of an update; () fp32 tensors on the device."""

    norm: Tensor
    """Gradient norm before clipping, the loss scale taken out; without own groups."""
    skipped: Tensor
    """1 where the update was left out because a norm, also of an own group, is not finite."""
    outlier: Tensor
    """1 where the norm is far from those before it; the update is left out if `run.outliers` says
    so."""
    lost: Tensor
    """1 where `skipped` is, unless it is fp16's loss scale that was too large: finding the scale
    costs a few updates and is no sign of trouble. At its least the scale is no excuse."""


class Gradients(Protocol):
    """Where the gradients of an update are, and who has AdamW apply them."""

    def norm(self, groups: Collection[int] | None = None) -> Tensor:
        """() of the gradient of these groups, over all ranks' parts of it; None for all groups."""

    def multiply(self, groups: Collection[int], factor: Tensor) -> None:
        """Multiplies the gradient of these groups by a () factor."""

    def apply(self) -> None:
        """Takes AdamW's step with what the optimizer gave it, and clears the gradients."""


class WholeGradients:
    """Gradients that every rank holds whole, as one process and plain data parallelism do."""

    def __init__(self, groups: list[list[nn.Parameter]], adamw: PartitionedAdamW) -> None:
        self._groups, self._adamw = groups, adamw

    def norm(self, groups: Collection[int] | None = None) -> Tensor:
        """() of the gradients that there are."""
        return get_total_norm(list(self._gradients(groups)))

    def multiply(self, groups: Collection[int], factor: Tensor) -> None:
        """Multiplies the gradients that there are."""
        for gradient in self._gradients(groups):
            gradient.mul_(factor)

    def _gradients(self, groups: Collection[int] | None) -> Iterator[Tensor]:
        for number, group in enumerate(self._groups):
            if groups is None or number in groups:
                yield from (p.grad for p in group if p.grad is not None)

    def apply(self) -> None:
        """Updates and clears."""
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)


class Optimizer:
    """AdamW that takes its rate from the schedule and leaves non-finite gradients out.

    Whether an update is skipped is decided on the device: the fused kernel reads a flag, so that
    the host need not wait for the norm. A skipped update leaves no trace: the running statistics
    that its forward pass moved are put back as well.

    The same decisions hold for every engine. Under DeepSpeed `Engine.wrap` replaces `gradients`,
    and AdamW works on the pieces of parameters that ZeRO leaves to this rank.

    Args:
        model: parameters that need no gradient are passed over.
        optim: rates, decay, clipping.
        steps: of the schedule.
        adapters: parameters of adapters, which have a rate of their own.
        own: groups besides, each with a rate and a clipping of its own.
        run: its precision (fp16 scales the loss) and what it calls an outlier; None looks for none.
        limits: by parameter's name, the bounds that its values are cut to: now, and after each
            update. An engine may hold another copy of a parameter than the module has, so that a
            module cannot cut its own parameters.

    Raises:
        KeyError: a limit is for no trained parameter, or an own group's parameter is not of the
            model.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        steps: int,
        adapters: Iterable[nn.Parameter] = (),
        *,
        own: Sequence[OwnGroup] = (),
        run: RunConfig | None = None,
        limits: Mapping[str, Limits] | None = None,
    ) -> None:
        self.optim, self.steps = optim, steps
        adapters = list(adapters)
        self._has_adapters = bool(adapters)
        self._rate = 0.0
        groups = parameter_groups(model, optim, adapters, own)
        self.names = [group.pop("names") for group in groups]
        self._own: dict[int, OwnGroup] = {
            number: each
            for number, group in enumerate(groups)
            if (each := group.pop("own")) is not None
        }
        self._shared = set(range(len(groups))) - self._own.keys()
        self.adamw = PartitionedAdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
        self.updates = 0
        """Updates so far, those that were skipped included; a resumed run goes on counting."""
        self.grouped: list[list[nn.Parameter]] = [list(group["params"]) for group in groups]
        """The trained parameters of each group, as the model has them."""
        self.parameters: list[nn.Parameter] = [p for group in self.grouped for p in group]
        self.named: dict[str, nn.Parameter] = dict(
            zip((name for names in self.names for name in names), self.parameters, strict=True)
        )
        """The trained parameters, in the order of the groups."""
        self.shapes = {name: tuple(p.shape) for name, p in self.named.items()}
        """Of the whole parameters, which ZeRO may take apart."""
        self.gradients: Gradients = WholeGradients(self.grouped, self.adamw)
        self._model = model
        self._statistics: list[tuple[Tensor, Tensor]] = []
        self._scale = LossScale() if run is not None and run.precision == "fp16" else None
        self._rules = run.outliers if run is not None else None
        self._outliers: dict[str, OutlierWatch] = {}
        self._skips_outliers = run is not None and run.outliers.skip
        self._limit(limits or {})

    def _limit(self, limits: Mapping[str, Limits]) -> None:
        for name, bounds in limits.items():
            whole = self.named[name]
            self.adamw.limits |= {name: bounds, whole: bounds}
            with torch.no_grad():
                whole.clamp_(*bounds)

    def begin_step(self, step: int) -> float:
        """Sets the rate of every group for an update of a step; returns the base rate.

        Call it before the update's forward pass, whose effect on running statistics `step` may
        undo. A step may have two updates, which then have the same rate.
        """
        self._rate = rate = learning_rate(self.optim, step, self.steps)
        for group in self.adamw.param_groups:
            group["lr"] = rate * group["factor"]
        self._statistics = [
            (buffer, buffer.clone())
            for name, buffer in self._model.named_buffers()
            if name.endswith(_STATISTICS)
        ]
        return rate

    def rates(self) -> dict[str, float]:
        """``learning_rate`` of this step, ``learning_rate/GROUP`` where a group has another; and
        fp16's ``loss_scale``, for which the host waits.
        """
        base = self._rate
        others = {"new": self.optim.new_lr_factor, "adapters": self.optim.adapter_lr_factor}
        groups = enumerate(self.adamw.param_groups)
        used = {group["factor"] for number, group in groups if number not in self._own} - {1.0}
        found = {"learning_rate": base}
        for name, factor in others.items():
            if factor in used and (name != "adapters" or self._has_adapters):
                found[f"learning_rate/{name}"] = base * factor
        for number, each in self._own.items():
            group = self.adamw.param_groups[number]
            found[f"learning_rate/{each.name}"] = base * group["factor"]
        if self._scale is not None:
            found["loss_scale"] = float(self._scale.state()["scale"])
        return found

    def scaled(self, loss: Tensor) -> Tensor:
        """What to take the gradient of: the loss times the loss scale.

        Where the loss is not finite its gradient is NaN throughout, though what made the loss may
        have a finite one: by the exchange of gradients all ranks then skip the update, not only the
        one whose loss it was.
        """
        loss_scale = 1.0 if self._scale is None else self._scale.on(loss.device)
        return loss * torch.where(torch.isfinite(loss.detach()), loss_scale, math.nan)

    def step(self, kind: str = "") -> Update:
        """Clips, updates and clears the gradients.

        Args:
            kind: of the update. What is an outlier goes by the updates of the same kind.

        X-VLM's AdamW (transformers 4) adds epsilon to ``sqrt(v)`` before the correction of its
        bias, which is torch's with ``eps / sqrt(1 - beta2^t)``; it matters for tiny gradients. Here
        t counts all updates, also for a parameter that only some of them reach.
        """
        norm = self.gradients.norm(self._shared) if self._own else self.gradients.norm()
        own = {number: self.gradients.norm({number}) for number in self._own}
        scale = None if self._scale is None else self._scale.on(norm.device)
        if scale is not None:
            norm = norm / scale
            own = {number: each / scale for number, each in own.items()}
        finite = torch.isfinite(norm)
        for each in own.values():
            finite = finite & torch.isfinite(each)
        skipped = (~finite).float()
        outlier = torch.zeros_like(skipped)
        if self._rules is not None:
            if kind not in self._outliers:
                self._outliers[kind] = OutlierWatch(self._rules)
            outlier = self._outliers[kind].see(norm, skipped)
        left_out = torch.maximum(skipped, outlier) if self._skips_outliers else skipped
        self.updates += 1
        if self.optim.recipe == "xvlm":
            eps = self.optim.eps / math.sqrt(1 - self.optim.betas[1] ** self.updates)
            for group in self.adamw.param_groups:
                group["eps"] = eps
        # The fused kernel divides the gradients by `grad_scale` as it reads them: clipping costs no
        # pass of its own.
        excess = _excess(norm, self.optim.clip_norm)
        for number, each in own.items():
            # The kernel has one divisor for all groups: it is undone where another is due.
            factor = excess / _excess(each, self._own[number].clip_norm)
            self.gradients.multiply({number}, factor)
        self.adamw.grad_scale = excess if scale is None else excess * scale  # type: ignore[attr-defined]
        self.adamw.found_inf = left_out  # type: ignore[attr-defined]
        self.gradients.apply()
        for buffer, before in self._statistics:
            buffer.copy_(torch.where(left_out > 0, before, buffer))
        lost = skipped if self._scale is None else self._scale.update(skipped)
        return Update(norm, skipped, outlier, lost)

    # --- what a checkpoint holds ----------------------------------------------------------------

    def fragments(self) -> list[Fragment]:
        """AdamW's state as far as this rank is the one that holds it; the host waits here.

        Whole parameters are rank 0's. Parameters that have had no update are left out.
        """
        if self.adamw.pieces:
            return list(self._partitioned_fragments())
        if dist.is_initialized() and dist.get_rank() != 0:
            return []
        found = []
        for name, parameter in self.named.items():
            state = self.adamw.state.get(parameter)
            step = float(state["step"]) if state else 0.0
            if state and step:
                moments = {moment: state[moment].flatten() for moment in MOMENTS}
                found.append(Fragment(name, 0, self.shapes[name], step, moments))
        return found

    def _partitioned_fragments(self) -> Iterator[Fragment]:
        for flat, pieces in self.adamw.pieces.items():
            state = self.adamw.moments(flat)
            for piece, step in zip(pieces, state["steps"].tolist(), strict=True):
                if step:
                    moments = {moment: piece.of(state[moment]) for moment in MOMENTS}
                    yield Fragment(piece.name, piece.start, piece.shape, step, moments)

    @torch.no_grad()
    def load(self, stored: StoredState) -> None:
        """Continues from what any number of ranks under any engine had; after `Engine.wrap`.

        Raises:
            CheckpointError: the state is of another model, or some of it is missing.
        """
        stored.require_fit(self.shapes)
        for flat, pieces in self.adamw.pieces.items():
            state = self.adamw.moments(flat)
            for number, piece in enumerate(pieces):
                self._load_piece(stored, piece, state, number)
        if self.adamw.pieces:
            return
        known = set(stored.names())
        for name, parameter in self.named.items():
            if name not in known:
                self.adamw.state.pop(parameter, None)
                continue
            step, moments = stored.read(name, 0, parameter.numel())
            state = self.adamw.state[parameter]
            state["step"] = torch.tensor(step, device=parameter.device)
            for moment, values in moments.items():
                state[moment] = torch.empty_like(
                    parameter, memory_format=torch.preserve_format
                ).copy_(values.view(parameter.shape))

    @staticmethod
    def _load_piece(
        stored: StoredState, piece: Piece, state: Mapping[str, Tensor], number: int
    ) -> None:
        step, moments = stored.read(piece.name, piece.start, piece.count)
        state["steps"][number] = step
        for moment, values in moments.items():
            piece.of(state[moment]).copy_(values)

    def state(self) -> dict[str, Any]:
        """The rest of the state, the same on all ranks and ready for JSON; the host waits here."""
        return {
            "updates": self.updates,
            "loss_scale": None if self._scale is None else self._scale.state(),
            "outliers": {kind: watch.state() for kind, watch in self._outliers.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from `state`; a run that begins to scale its loss begins as a new one does.

        Raises:
            CheckpointError: it is no state of an optimizer.
        """
        try:
            self.updates = int(state["updates"])
            scale, outliers = state["loss_scale"], dict(state["outliers"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint's state of the optimizer cannot be read ({error!r}); resume from "
                "another checkpoint"
            ) from error
        if self._scale is not None and scale is not None:
            self._scale.load(scale)
        if self._rules is not None:
            for kind, seen in outliers.items():
                self._outliers[kind] = OutlierWatch(self._rules)
                self._outliers[kind].load(seen)


def _excess(norm: Tensor, clip_norm: float) -> Tensor:
    """What to divide a gradient by so that its norm is at most `clip_norm`."""
    return ((norm + _NORM_EPS) / clip_norm).clamp(min=1.0).nan_to_num(1.0)
