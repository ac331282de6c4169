"""The configuration of a pretraining run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pretrain.mixture import composition
from wholegrain.config import config
from wholegrain.data.augment import AugmentConfig
from wholegrain.data.masking import MaskingConfig
from wholegrain.data.sampling import ConceptSampling
from wholegrain.data.skips import SkipPolicy
from wholegrain.data.storage import StorageConfig
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
    contrastive_form: Literal["softmax", "sigmoid"] = "softmax"
    """How pairs compete: each with all others of its row and column, or each pair for itself
    (SigLIP)."""
    contrastive_gradient: Literal["exact", "xvlm"] = "exact"
    """`exact` is the gradient of the global batch's loss at any number of ranks. `xvlm` repeats its
    scaling: the vectors' gradient is divided by the number of ranks, the temperature's is not."""
    contrastive_chunk: int | None = Field(default=None, ge=1)
    """Rows of the similarities that are held at a time; null holds all of a rank's own."""
    means: Literal["global", "rank"] = "global"
    """What a loss is the mean over: the terms of all ranks, so that the number of ranks changes
    nothing, or, X-VLM's way, each rank's own, of which the ranks' mean is then taken."""
    negatives: Literal["rank", "global"] = "rank"
    """Where the negatives of matching are drawn from: this rank's concepts, as X-VLM does, or the
    whole global batch's."""
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
class OrderConfig:
    """In which order an epoch reads a corpus. It decides which samples a batch holds, so that it is
    part of a run's identity: it follows from no other setting.
    """

    block: int | None = Field(default=None, ge=1)
    """Rows of a block in the block-wise order, for storage that is slow to seek: best the samples
    of a shard, a thousand or more. null permutes all samples at once, for local disks."""
    window: int = Field(default=16, ge=1)
    """Blocks whose rows are mixed with each other: about as many shards are in use at a time. A
    batch should be small beside `block` times `window` rows."""


@config
class CorpusConfig:
    """One corpus of the mixture."""

    path: str
    """Folder of shards."""
    per_batch: int = Field(default=0, ge=0)
    """Its images in each global batch; 0 with a single corpus takes the whole batch."""
    weight: float | None = Field(default=None, gt=0)
    """Instead of `per_batch`: its share of the batch is in proportion to this, in whole images."""
    order: OrderConfig | None = None
    """Instead of `data.order`."""
    split: str | None = "train"
    """Which split; null takes all."""
    sampling: ConceptSampling | None = None
    """Concepts of its images, instead of `data.sampling`; fields that are not named have their
    defaults, not the values of `data.sampling`. So one folder can bring captions to one entry of
    the mixture and boxes to another."""


@config
class RegionUpdateConfig:
    """X-VLM's way to learn from boxes: an update of its own before the image update of some steps.

    Which images a global batch of regions holds does not depend on the number of ranks. Which of
    their texts are kept does: each rank keeps, or repeats, its own share of `texts`.
    """

    train: tuple[CorpusConfig, ...]
    """The mixture of a batch of regions."""
    probability: float = Field(default=0.5, gt=0, le=1)
    """Chance of a step to begin with such an update."""
    images: int = Field(default=384, ge=1)
    """Images of a global batch of regions (X-VLM: 48 a rank)."""
    texts: int = Field(default=1024, ge=1)
    """Texts of a global batch of regions, exactly (X-VLM: 128 a rank): each rank keeps a random
    subset of its share's size, or repeats some of its texts where they are fewer."""
    sampling: ConceptSampling = Field(
        default_factory=lambda: ConceptSampling(
            max_concepts=5, anchor_first=False, distinct_texts=False
        )
    )
    """Concepts of an image: X-VLM's 5 slots, the caption first where there is one."""


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
    audit: str | None = None
    """The `--out` of `data_tools audit` over the corpora of all mixtures. A run then starts only if
    they are as they were audited and hold none of the evaluation photos, and the release's card
    says so; null trains without, and the card says that."""
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    """Word pieces."""
    max_tokens: int = Field(default=40, ge=2)
    """Tokens a text is cut to, [CLS] included."""
    sampling: ConceptSampling = Field(default_factory=ConceptSampling)
    """Concepts of an image in a batch."""
    max_concepts: int | None = Field(default=None, ge=1)
    """Most concepts of a global batch; each rank keeps a random subset of at most its share. null
    keeps all. What is dropped depends on the number of ranks."""
    region_updates: RegionUpdateConfig | None = None
    """Updates of their own on regions; null learns from images and regions in one update."""
    order: OrderConfig = Field(default_factory=OrderConfig)
    """How epochs are ordered."""
    skips: SkipPolicy = Field(default_factory=SkipPolicy)
    """How many bad samples are tolerated, and where they are listed."""
    storage: StorageConfig | None = None
    """How corpora at URLs are fetched and kept; null takes the defaults and the environment."""
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    """Crops, flips and colours; its resolution is the model's image size."""
    masking: MaskingConfig = Field(default_factory=MaskingConfig)
    """Which words are hidden."""
    workers: int = Field(default=0, ge=0)
    """Loader processes a rank, and as many again for `region_updates`; 0 decodes in the training
    process, which is best on few cores."""


@config
class InitConfig:
    """Pretrained encoders to start from; heads and cross-attention start from nothing."""

    vision: str | None = None
    """Weights of the image encoder: a Swin, ViT, DeiT or DETR checkpoint, or a CLIP folder; null
    starts from nothing."""
    text: str | None = None
    """A BERT folder, for the text and the cross encoder; null starts from nothing."""


@config
class PretrainConfig:
    """A pretraining run."""

    data: DataConfig
    """Corpora and concepts."""
    out: str = "runs/pretrain"
    """Run folder."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    """The model."""
    init: InitConfig = Field(default_factory=InitConfig)
    """What the encoders start from; a resumed run starts from its checkpoint instead."""
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    """The losses."""
    optim: OptimConfig = Field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    run: RunConfig = Field(default_factory=RunConfig)
    """Length, precision, reporting."""

    def __post_init__(self) -> None:
        _check_pretrainable(self.model)
        parts = self.run.accumulation
        composition("data.train", self.data.train, "run.batch_size", self.run.batch_size, parts)
        regions = self.data.region_updates
        if regions is not None:
            where = "data.region_updates"
            composition(f"{where}.train", regions.train, f"{where}.images", regions.images, parts)
            for name, count in (("images", regions.images), ("texts", regions.texts)):
                _check_parts(f"{where}.{name}", count, self.run.accumulation)
        if self.data.max_concepts is not None:
            _check_parts("data.max_concepts", self.data.max_concepts, self.run.accumulation)
        sigmoid = self.objective.contrastive_form == "sigmoid"
        if sigmoid != (self.model.contrastive_bias is not None):
            raise ConfigError(
                f"objective.contrastive_form is {self.objective.contrastive_form!r} and "
                f"model.contrastive_bias {self.model.contrastive_bias}; the sigmoid form, and it "
                "alone, has a bias: SigLIP starts it at -10"
            )
        if self.data.max_tokens > self.model.text.max_positions:
            raise ConfigError(
                f"data.max_tokens {self.data.max_tokens} exceeds model.text.max_positions "
                f"{self.model.text.max_positions}; lower it"
            )


def _check_parts(where: str, count: int, parts: int) -> None:
    if count % parts:
        raise ConfigError(
            f"{where} {count} does not divide into run.accumulation {parts} parts; make it a "
            "multiple"
        )


def _check_pretrainable(model: ModelConfig) -> None:
    """ConfigError for parts that only finetuning has."""
    head = model.box_head.kind
    for name, value, wanted, right in (
        ("model.fusion", model.fusion.kind, "cross", model.fusion.kind == "cross"),
        ("model.adapters", [a.kind for a in model.adapters], "none", not model.adapters),
        ("model.box_head", head, "cls or patch", head in {"cls", "patch"}),
    ):
        if not right:
            raise ConfigError(
                f"{name} is {value}, which belongs to finetuning; pretrain with {wanted} and give "
                "it to finetune/refcoco.py"
            )
