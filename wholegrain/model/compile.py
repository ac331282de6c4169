"""torch.compile of the model's blocks: elementwise work joins the matrix products around it.

Blocks are compiled, not the model: blocks of one kind share a program, and attention over texts of
unequal length, whose shapes depend on the batch, stays outside. Images have one shape, and a
training batch one number of them. Rows of tokens have any length, which is a symbol of the program.
So once each kind of block has been seen, nothing is compiled again. Evaluation, whose batches may
have any number of images, runs as it is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.text import TextLayer

_PROGRAMS = 64  # kinds of blocks that one method may be compiled for; Swin-B at one size has seven


def compile_blocks(model: MultiGrainModel, backend: str = "inductor") -> None:
    """Compiles the blocks of the image, text and cross encoder in place, on their first use.

    Names and values of the weights stay as they are. The first steps are slow: some twenty seconds
    for each kind of block on a CPU.

    Args:
        model: on its final device.
        backend: of torch.compile.
    """
    torch._dynamo.config.recompile_limit = max(_PROGRAMS, torch._dynamo.config.recompile_limit)
    for block in _blocks_of_images(model):
        # Fixed shapes: stages differ in theirs, and as symbols they would take minutes to solve.
        _compile(block, "forward", backend, dynamic=False)
    for layer in model.modules():
        if isinstance(layer, TextLayer):
            _compile(layer, "feed", backend, dynamic=True)
            _compile(layer.attention_residual, "forward", backend, dynamic=True)
            if hasattr(layer, "cross_residual"):
                _compile(layer.cross_residual, "forward", backend, dynamic=True)


def _blocks_of_images(model: MultiGrainModel) -> list[Any]:
    """Blocks that run once an image; of texts, which others run for, a batch has any number."""
    blocks = model.vision.blocks()
    for adapter in model.text_adapters:
        blocks = blocks[: adapter.untouched_blocks]
    return blocks


def _compile(module: Any, method: str, backend: str, dynamic: bool) -> None:
    written: Callable[..., Any] = getattr(module, method)
    compiled = torch.compile(written, backend=backend, dynamic=dynamic)

    def run(*args: Any, **options: Any) -> Any:
        training = module.training and torch.is_grad_enabled()
        return (compiled if training else written)(*args, **options)

    setattr(module, method, run)
