"""How long, how fast and how exactly a stage trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wholegrain.config import config
from wholegrain.errors import ConfigError


@config
class OptimConfig:
    """AdamW with a warm-up and a decay."""

    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    new_lr_factor: float = Field(default=2.0, gt=0)
    """Factor on the rate of parameters that start from nothing (cross-attention, heads)."""
    adapter_lr_factor: float = Field(default=1.0, gt=0)
    """Factor on the rate of adapters, which have a group of their own."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of matrices."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""
    warmup: float = Field(default=0.1, ge=0)
    """Steps of linear warm-up from 0: a share of all steps below 1, a number of steps from 1 on."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls to 0 at the last step."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest global gradient norm."""
    recipe: Literal["plain", "xvlm"] = "plain"
    """`plain` decays matrices only. `xvlm` repeats its AdamW: head norms and temperature decay too,
    and epsilon is added before the bias correction."""


@config
class RunConfig:
    """Length, precision, reporting and checkpoints of a run."""

    steps: int = Field(default=1000, ge=1)
    """Steps of the schedule: one optimizer update each, or two where another precedes it."""
    batch_size: int = Field(default=64, ge=1)
    """Images of a global batch, over all ranks and accumulated parts."""
    accumulation: int = Field(default=1, ge=1)
    """Parts that a global batch is computed in."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of matrix products; parameters, losses and similarities stay fp32."""
    compile: bool = False
    """Compiles the model's blocks with ``torch.compile``: minutes at the start, faster steps."""
    checkpoint_activations: bool = False
    """Computes activations again in the backward pass instead of keeping them: at most half of the
    memory for about a third more time."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights, order, augmentation and dropout."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines of metrics."""
    validate_every: int = Field(default=0, ge=0)
    """Steps between validations; 0 validates at the end alone."""
    save_every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 saves at the end alone."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept."""
    max_skipped: int = Field(default=10, ge=0)
    """Updates in a row that may be lost to a non-finite gradient before the run stops."""

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"run.batch_size {self.batch_size} does not divide into run.accumulation "
                f"{self.accumulation} parts; make it a multiple"
            )
