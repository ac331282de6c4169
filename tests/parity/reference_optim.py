"""X-VLM's optimizer as its specification reads: groups by substrings, AdamW of transformers 4."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

RATE, NEW_FACTOR, DECAY, BETAS, EPS, CLIP = 1e-4, 2.0, 0.01, (0.9, 0.98), 1e-8, 1.0
# A name that contains one of these is not decayed. "bias" alone also meets Swin's tables, and none
# of them meets the norms inside the heads ("itm_head.1.weight"), CLIP's class embedding or `temp`.
UNDECAYED = (
    "bias",
    "LayerNorm.bias",
    "LayerNorm.weight",
    "norm.bias",
    "norm.weight",
    "norm1.bias",
    "norm1.weight",
    "norm2.bias",
    "norm2.weight",
)
# What neither the image backbone's nor BERT's file brings.
NEW = ("crossattention", "vision_proj.", "text_proj.", "itm_head.", "bbox_head.")


def is_new(name: str) -> bool:
    return name == "temp" or any(part in name for part in NEW)


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Decayed and undecayed at the base rate, then both at the rate of new parameters."""
    groups: list[dict[str, Any]] = [
        {"lr": rate, "weight_decay": decay, "betas": list(BETAS), "eps": EPS, "params": []}
        for rate in (RATE, NEW_FACTOR * RATE)
        for decay in (DECAY, 0.0)
    ]
    for name, _ in model.named_parameters():
        undecayed = any(part in name for part in UNDECAYED)
        groups[2 * is_new(name) + undecayed]["params"].append(name)
    return groups


class AdamW:
    """Epsilon joins ``sqrt(v)`` before the bias is corrected; decay comes after the update."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = dict(model.named_parameters())
        self.settings = {
            name: (group["lr"], group["weight_decay"])
            for group in parameter_groups(model)
            for name in group["params"]
        }
        self.state: dict[str, tuple[int, Tensor, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> Tensor:
        """Clips the whole gradient to norm 1, updates and clears; returns the norm before."""
        given = {n: p.grad for n, p in self.parameters.items() if p.grad is not None}
        norm = torch.stack([gradient.norm() for gradient in given.values()]).norm()
        factor = (CLIP / (norm + 1e-6)).clamp(max=1.0)
        for name, gradient in given.items():
            self._update(name, gradient * factor)
            self.parameters[name].grad = None
        return norm

    def _update(self, name: str, gradient: Tensor) -> None:
        parameter, (rate, decay) = self.parameters[name], self.settings[name]
        zero = torch.zeros_like(parameter)
        step, mean, square = self.state.get(name, (0, zero, zero))
        step += 1
        mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient * gradient
        self.state[name] = (step, mean, square)
        corrected = rate * math.sqrt(1 - BETAS[1] ** step) / (1 - BETAS[0] ** step)
        parameter -= corrected * mean / (square.sqrt() + EPS)
        parameter -= rate * decay * parameter
