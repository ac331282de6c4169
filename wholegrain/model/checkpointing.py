"""Activation checkpointing: blocks are computed again in the backward pass, not remembered."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from wholegrain.errors import ConfigError
from wholegrain.model.adapters.condition import Condition
from wholegrain.model.cross import CrossEncoder, CrossLayer
from wholegrain.model.grounding.scan import ScanFormer
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.text import TextLayer
from wholegrain.model.vision import VitEncoder


def checkpoint_blocks(model: MultiGrainModel) -> None:
    """Makes every block of the image, text and cross encoder keep its input alone, in place.

    The first cross layer keeps that of either half, since they run over different rows.

    Values and gradients do not change, nor do the draws of dropout; a step costs about a third
    more. Call it before `compile_blocks`, and after adapters are attached.

    Raises:
        ConfigError: the image encoder is convolutional; its batch norms would count each batch
            twice.
    """
    blocks = model.vision.blocks()
    if not blocks:
        raise ConfigError(
            "run.checkpoint_activations needs an image encoder of transformer blocks (vision.kind "
            "swin, vit or detr); set it to false for this one"
        )
    untouched = min((each.untouched_blocks for each in model.text_adapters), default=len(blocks))
    for number, block in enumerate(blocks):
        _recompute(block, "forward", model.condition if number >= untouched else None)
    if isinstance(model.vision, VitEncoder):
        model.vision.recompute_local = True
    if isinstance(model.fusion, ScanFormer):
        _recompute(model.fusion, "run_block", model.condition)
    for part in model.modules():
        if isinstance(part, CrossEncoder):
            for layer, method in part.steps():
                _recompute(layer, method)
        elif isinstance(part, TextLayer) and not isinstance(part, CrossLayer):
            _recompute(part, "forward")


def _recompute(module: Any, method: str, condition: Condition | None = None) -> None:
    """Has a method run again in the backward pass, under the condition of its first run."""
    run: Callable[..., Any] = getattr(module, method)

    def recomputed(*args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled() or not module.training:
            return run(*args, **options)
        if condition is None:  # without a context of its own it can be compiled
            return checkpoint(run, *args, use_reentrant=False, **options)
        then = condition.again()

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            # By the time of the backward pass the condition of adapters is over.
            return nullcontext(), then

        return checkpoint(run, *args, use_reentrant=False, context_fn=contexts, **options)

    setattr(module, method, recomputed)
