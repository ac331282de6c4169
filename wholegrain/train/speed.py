"""What a run may change of a model's execution, and not of its results."""

from __future__ import annotations

from wholegrain.model.checkpointing import checkpoint_blocks
from wholegrain.model.compile import compile_blocks
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.train.config import RunConfig


def prepare_model(model: MultiGrainModel, run: RunConfig) -> None:
    """Applies `run.checkpoint_activations` and `run.compile`, in place, before any wrapper.

    Raises:
        ConfigError: the image encoder cannot be recomputed.
    """
    if run.checkpoint_activations:
        checkpoint_blocks(model)
    if run.compile:
        compile_blocks(model)
