"""The configuration of a pretraining run."""

from __future__ import annotations

from pydantic import Field

from wholegrain.config import config
from wholegrain.data.augment import AugmentConfig
from wholegrain.data.masking import MaskingConfig
from wholegrain.data.sampling import ConceptSampling
from wholegrain.errors import ConfigError
from wholegrain.model.config import ModelConfig
from wholegrain.train.config import OptimConfig, RunConfig


@config
class ObjectiveConfig:
    """Weights of the losses, and what counts as a negative."""

    contrastive: float = Field(default=1.0, ge=0)
    """Weight of the contrastive loss."""
    matching: float = Field(default=1.0, ge=0)
    """Weight of the matching loss."""
    masked_language: float = Field(default=1.0, ge=0)
    """Weight of the masked-language loss."""
    box_l1: float = Field(default=1.0, ge=0)
    """Weight of the box loss in L1."""
    box_giou: float = Field(default=1.0, ge=0)
    """Weight of the box loss in generalized IoU."""
    box_vote: float = Field(default=0.5, ge=0)
    """Weight of the patch votes, where the box head has them."""
    all_others_are_negatives: bool = False
    """X-VLM's way: regions of one image and equal texts are each other's negatives too."""
    min_temperature: float = Field(default=0.001, gt=0)
    """The learnt temperature is kept above."""
    max_temperature: float = Field(default=0.5, gt=0)
    """The learnt temperature is kept below."""

    def weights(self) -> dict[str, float]:
        """Name of each loss to its weight."""
        return {
            "contrastive": self.contrastive,
            "matching": self.matching,
            "masked_language": self.masked_language,
            "box_l1": self.box_l1,
            "box_giou": self.box_giou,
            "box_vote": self.box_vote,
        }


@config
class CorpusConfig:
    """One corpus of the mixture."""

    path: str
    """Folder of shards."""
    per_batch: int = Field(default=0, ge=0)
    """Its images in each global batch; 0 with a single corpus takes the whole batch."""
    split: str | None = "train"
    """Which split; null takes all."""


@config
class TokenizerConfig:
    """Where word pieces come from."""

    vocab: str | None = None
    """A BERT ``vocab.txt`` or a ``tokenizer.json``; null learns one from the corpora's texts."""
    size: int = Field(default=4000, ge=100)
    """Largest number of pieces learnt."""
    texts: int = Field(default=200_000, ge=1)
    """Texts that it is learnt from, at most."""


@config
class DataConfig:
    """What is read, and how samples become concepts."""

    train: tuple[CorpusConfig, ...]
    """The mixture; each global batch has this composition."""
    validation: CorpusConfig | None = None
    """Measured while training."""
    validation_images: int = Field(default=500, ge=1)
    """Images of it that are measured, at most."""
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    """Word pieces."""
    max_tokens: int = Field(default=40, ge=2)
    """Tokens a text is cut to, [CLS] included."""
    sampling: ConceptSampling = Field(default_factory=ConceptSampling)
    """Concepts of an image in a batch."""
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    """Crops, flips and colours; its resolution is the model's image size."""
    masking: MaskingConfig = Field(default_factory=MaskingConfig)
    """Which words are hidden."""
    workers: int = Field(default=0, ge=0)
    """Loader processes a rank; 0 decodes in the training process, which is best on few cores."""


@config
class PretrainConfig:
    """A pretraining run."""

    data: DataConfig
    """Corpora and concepts."""
    out: str = "runs/pretrain"
    """Run folder."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    """The model."""
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    """The losses."""
    optim: OptimConfig = Field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    run: RunConfig = Field(default_factory=RunConfig)
    """Length, precision, reporting."""

    def __post_init__(self) -> None:
        if not self.data.train:
            raise ConfigError("data.train is empty; name at least one corpus")
        shares = [corpus.per_batch for corpus in self.data.train]
        if len(shares) > 1 and sum(shares) != self.run.batch_size:
            raise ConfigError(
                f"data.train[].per_batch add up to {sum(shares)}, run.batch_size is "
                f"{self.run.batch_size}; make them equal"
            )
        if self.data.max_tokens > self.model.text.max_positions:
            raise ConfigError(
                f"data.max_tokens {self.data.max_tokens} exceeds model.text.max_positions "
                f"{self.model.text.max_positions}; lower it"
            )
