"""Activation checkpointing: blocks are computed again in the backward pass, not remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from wholegrain.errors import ConfigError
from wholegrain.model.cross import CrossLayer
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.text import TextLayer
from wholegrain.model.vision import VitEncoder


def checkpoint_blocks(model: MultiGrainModel) -> None:
    """Makes every block of the image, text and cross encoder keep its input alone, in place.

    Values and gradients do not change, nor do the draws of dropout; a step costs about a third
    more. Call it before `compile_blocks`.

    Raises:
        ConfigError: the image encoder is convolutional; its batch norms would count each batch
            twice.
    """
    blocks = model.vision.blocks()
    if not blocks:
        raise ConfigError(
            "run.checkpoint_activations needs an image encoder of transformer blocks (vision.kind "
            "swin or vit); set it to false for this one"
        )
    for block in blocks:
        _recompute(block, "forward")
    if isinstance(model.vision, VitEncoder):
        model.vision.recompute_local = True
    for layer in model.modules():
        if isinstance(layer, CrossLayer):
            _recompute(layer, "fuse")
        elif isinstance(layer, TextLayer):
            _recompute(layer, "forward")


def _recompute(module: Any, method: str) -> None:
    run: Callable[..., Any] = getattr(module, method)

    def recomputed(*args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled() or not module.training:
            return run(*args, **options)
        return checkpoint(run, *args, use_reentrant=False, **options)

    setattr(module, method, recomputed)
