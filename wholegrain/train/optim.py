"""Parameter groups, learning-rate schedule and optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from wholegrain.train.config import OptimConfig

# X-VLM decides by substrings of names, which lets these one-dimensional parameters through.
_XVLM_DECAYED = ("temperature", "match_head.1.weight", "box_head.mlp.1.weight")
_UNDECAYED_MATRICES = ("relative_position_bias_table",)
_NORM_EPS = 1e-6  # as torch and X-VLM clip
_STATISTICS = ("running_mean", "running_var")
_NEW = (
    "cross_attention",
    "cross_residual",
    "image_projection",
    "text_projection",
    "temperature",
    "contrastive_bias",
    "match_head",
    "box_head",
)


def parameter_groups(
    model: nn.Module, optim: OptimConfig, adapters: Iterable[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """Groups by decay and by rate: {decay, no decay} x {lr, new, adapter}; empty ones left out.

    Matrices decay; biases, norms and position-bias tables do not. New parameters are those that no
    pretrained encoder brings: cross-attention, projections, temperature, heads.

    Args:
        model: parameters that need no gradient are passed over.
        optim: rates and decay.
        adapters: parameters of adapters, which have a rate of their own.
    """
    of_adapters = {id(parameter) for parameter in adapters}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
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
        group = groups.setdefault(
            (factor, decay),
            {"params": [], "names": [], "factor": factor, "weight_decay": decay},
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


class Optimizer:
    """AdamW that takes its rate from the schedule and leaves non-finite gradients out.

    Whether an update is skipped is decided on the device: the fused kernel reads a flag, so that
    the host need not wait for the norm. A skipped update leaves no trace: the running statistics
    that its forward pass moved are put back as well.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        steps: int,
        adapters: Iterable[nn.Parameter] = (),
    ) -> None:
        self.optim, self.steps = optim, steps
        groups = parameter_groups(model, optim, adapters)
        self.names = [group.pop("names") for group in groups]
        self.adamw = torch.optim.AdamW(
            groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True
        )
        self.updates = 0
        """Updates so far, those that were skipped included; a resumed run goes on counting."""
        self.parameters = [p for group in groups for p in group["params"]]
        self._model = model
        self._statistics: list[tuple[Tensor, Tensor]] = []

    def begin_step(self, step: int) -> float:
        """Sets the rate of every group for an update of a step; returns the base rate.

        Call it before the update's forward pass, whose effect on running statistics `step` may
        undo. A step may have two updates, which then have the same rate.
        """
        rate = learning_rate(self.optim, step, self.steps)
        for group in self.adamw.param_groups:
            group["lr"] = rate * group["factor"]
        self._statistics = [
            (buffer, buffer.clone())
            for name, buffer in self._model.named_buffers()
            if name.endswith(_STATISTICS)
        ]
        return rate

    def step(self) -> tuple[Tensor, Tensor]:
        """Clips, updates and clears the gradients.

        X-VLM's AdamW (transformers 4) adds epsilon to ``sqrt(v)`` before the correction of its
        bias, which is torch's with ``eps / sqrt(1 - beta2^t)``; it matters for tiny gradients. Here
        t counts all updates, also for a parameter that only some of them reach.

        Returns:
            The gradient norm before clipping, and 1.0 where the update was skipped because that is
            not finite; both stay on the device.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        skipped = (~torch.isfinite(norm)).float()
        self.updates += 1
        if self.optim.recipe == "xvlm":
            eps = self.optim.eps / math.sqrt(1 - self.optim.betas[1] ** self.updates)
            for group in self.adamw.param_groups:
                group["eps"] = eps
        # The fused kernel divides the gradients by `grad_scale` as it reads them: clipping costs no
        # pass of its own.
        excess = ((norm + _NORM_EPS) / self.optim.clip_norm).clamp(min=1.0)
        self.adamw.grad_scale = excess.nan_to_num(1.0)  # type: ignore[attr-defined]
        self.adamw.found_inf = skipped  # type: ignore[attr-defined]
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        for buffer, before in self._statistics:
            buffer.copy_(torch.where(skipped > 0, before, buffer))
        return norm, skipped
