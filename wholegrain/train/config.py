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
class OutlierConfig:
    """Updates whose gradient is far from those before it."""

    deviations: float = Field(default=6.0, gt=0)
    """An update is an outlier where its gradient norm exceeds the mean of the window by more
    standard deviations than this."""
    window: int = Field(default=128, ge=8)
    """Updates looked back on; none is an outlier before half of them are there."""
    skip: bool = False
    """Whether outliers are left out like updates that are not finite, or only flagged."""


@config
class ProfileConfig:
    """A window of steps under torch's profiler."""

    start: int = Field(default=20, ge=0)
    """First step, counted from the start or resume of the run."""
    steps: int = Field(default=5, ge=1)
    """How many."""


@config
class WandbConfig:
    """Weights & Biases; needs its package (`pip install wholegrain[wandb]`)."""

    project: str
    """Project that the run appears in."""
    name: str | None = None
    """Of the run; null takes the run folder's name."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes to the run folder, for `wandb sync` later."""


@config
class RunConfig:
    """Length, precision, reporting and checkpoints of a run."""

    steps: int = Field(default=1000, ge=1)
    """Steps of the schedule: one optimizer update each, or two where another precedes it."""
    batch_size: int = Field(default=64, ge=1)
    """Images of a global batch, over all ranks and accumulated parts."""
    accumulation: int = Field(default=1, ge=1)
    """Parts that a global batch is computed in."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of matrix products; parameters, losses and similarities stay fp32. fp16 scales the
    loss, which bf16 does not need: it is for devices without bf16."""
    deepspeed: str | None = None
    """A JSON file of DeepSpeed's own settings (`configs/deepspeed/`), among them the stage of ZeRO;
    null runs as one process or as plain data-parallel processes."""
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
    """Newest checkpoints kept."""
    keep_every: int = Field(default=0, ge=0)
    """Checkpoints of steps that are multiples of this are kept for ever; 0 keeps none of them."""
    save_in_background: bool = True
    """Writes checkpoints beside the training, which waits only for a copy to host memory."""
    resume: Literal["auto", "never"] | int = "auto"
    """Where a run whose folder holds checkpoints goes on: `auto` at the newest whole one, a number
    at the one of that step (later ones are set aside); `never` refuses to go on."""
    patience_s: float = Field(default=1800.0, gt=0)
    """Seconds without a finished step after which a rank counts as hung: all ranks then print their
    stacks and end."""
    compare_ranks_every: int = Field(default=500, ge=0)
    """Steps between comparisons of the ranks' weights, which must be equal to the bit; also before
    each checkpoint. 0 never compares."""
    max_skipped: int = Field(default=10, ge=0)
    """Updates in a row that may be lost to a loss or gradient that is not finite before the run
    stops."""
    outliers: OutlierConfig = Field(default_factory=OutlierConfig)
    """Which updates count as outliers."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """Peak of a rank's device in 10^12 FLOP a second, for its share in the metrics; null looks the
    device up, or measures a matrix product where it is not known."""
    profile: ProfileConfig | None = None
    """Steps whose profile is written to the run folder."""
    wandb: WandbConfig | None = None
    """Metrics go to Weights & Biases too."""

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"run.batch_size {self.batch_size} does not divide into run.accumulation "
                f"{self.accumulation} parts; make it a multiple"
            )
