"""The configuration of finetuning for grounding."""

from __future__ import annotations

from pydantic import Field

from wholegrain.config import config
from wholegrain.data.augment import AugmentConfig
from wholegrain.data.skips import SkipPolicy
from wholegrain.data.storage import StorageConfig
from wholegrain.errors import ConfigError
from wholegrain.model.config import AdapterConfig, BoxHeadConfig, FusionConfig, ModelConfig
from wholegrain.objectives.self_paced import SelfPacedConfig
from wholegrain.train.config import OptimConfig, RunConfig


@config
class CorpusConfig:
    """A split of a corpus whose regions are expressions with boxes."""

    path: str
    """Folder of shards."""
    split: str | None = None
    """Which split; null takes all."""
    name: str | None = None
    """How tables call it; null takes the split's name."""

    @property
    def label(self) -> str:
        """How tables call it."""
        return self.name or self.split or self.path


@config
class GroundingDataConfig:
    """What is read."""

    train: CorpusConfig
    """Expressions to learn from."""
    validation: CorpusConfig | None = None
    """Measured while training."""
    evaluate: tuple[CorpusConfig, ...] = ()
    """Splits measured at the end, each expression exactly once."""
    audit: str | None = None
    """The `--out` of `data_tools audit` over the corpus of `train`, against what is evaluated (the
    training photos of one set are evaluation photos of another). The run then starts only if the
    corpus is as it was audited and holds none of the evaluation photos; null trains without, and
    the release's card says that."""
    expressions_per_image: int = Field(default=8, ge=1)
    """Expressions of an image in a batch, at most; the image is encoded once for all of them."""
    max_tokens: int = Field(default=40, ge=2)
    """Tokens a text is cut to, [CLS] included."""
    augment: AugmentConfig = Field(default_factory=lambda: AugmentConfig(min_scale=0.5))
    """Crops, flips and colours."""
    workers: int = Field(default=0, ge=0)
    """Loader processes a rank."""
    skips: SkipPolicy = Field(default_factory=SkipPolicy)
    """How many bad samples training tolerates, and where they are listed."""
    storage: StorageConfig | None = None
    """How corpora at URLs are fetched and kept; null takes the defaults and the environment."""


@config
class BoxLossConfig:
    """Weights of the terms of the box loss."""

    l1: float = Field(default=1.0, ge=0)
    """Of the L1 distance of cxcywh."""
    giou: float = Field(default=1.0, ge=0)
    """Of 1 - generalized IoU."""
    vote: float = Field(default=0.5, ge=0)
    """Of the patch votes, where the head has them."""
    quality: float = Field(default=0.5, ge=0)
    """Of the cross entropy of the expected IoU, where the head tells one; the box does not feel
    it."""
    budget: float = Field(default=0.0, ge=0)
    """Of the squared distance of the share of patches read from `budget_share`, where the fusion
    selects patches."""
    budget_share: float = Field(default=0.65, gt=0, le=1)
    """Share of the patches of the finer scales that the budget pulls towards."""
    self_paced: SelfPacedConfig | None = None
    """Weighs samples by how hard they are, on scales that are learnt; null weighs all alike."""


@config
class BackbonesConfig:
    """Pretrained encoders; heads, fusion and cross-attention start from nothing."""

    vision: str | None = None
    """Weights of the image encoder: a Swin, ViT, DeiT or DETR checkpoint, or a CLIP folder; null
    starts from nothing."""
    text: str | None = None
    """A BERT folder; null starts from nothing."""


@config
class FinetuneConfig:
    """A finetuning run."""

    data: GroundingDataConfig
    """Corpora."""
    init: str | None = None
    """A release, or a run folder whose newest checkpoint is taken; null starts from nothing."""
    model: ModelConfig | None = None
    """The model, where `init` is null."""
    backbones: BackbonesConfig | None = None
    """Pretrained encoders of `model`; null starts it from nothing."""
    tokenizer: str | None = None
    """``tokenizer.json`` or ``vocab.txt``, where `init` is null; null learns one."""
    vocabulary: int = Field(default=4000, ge=100)
    """Pieces learnt, where neither `init` nor `tokenizer` is given."""
    box_head: BoxHeadConfig | None = None
    """A fresh head of this kind; null keeps the pretrained one."""
    fusion: FusionConfig | None = None
    """A fresh way of fusing text and image, with a fresh head; null keeps the pretrained one."""
    adapters: tuple[AdapterConfig, ...] = ()
    """Adapters to attach, one of a kind."""
    train_host: bool = True
    """Whether the pretrained parts train too, or only head and adapters."""
    loss: BoxLossConfig = Field(default_factory=BoxLossConfig)
    """The loss."""
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig(lr=3e-5, new_lr_factor=2.0))
    """Optimizer and schedule."""
    run: RunConfig = Field(default_factory=RunConfig)
    """Length, precision, reporting."""
    hidden_input_baselines: bool = True
    """Evaluates the same model with the photo hidden, and with the words hidden, beside it."""
    out: str = "runs/refcoco"
    """Run folder."""

    def __post_init__(self) -> None:
        if (self.init is None) == (self.model is None):
            raise ConfigError(
                "give either init (a release or run folder) or model (to start from nothing), "
                f"not {'both' if self.init else 'neither'}"
            )
        if self.backbones is not None and self.init is not None:
            raise ConfigError(
                f"init is {self.init!r}, which brings encoders of its own; leave backbones out, or "
                "give model in place of init"
            )
        text = None if self.backbones is None else self.backbones.text
        if text is not None and self.tokenizer is None:
            raise ConfigError(
                f"backbones.text is {text!r}, but tokenizer is null, which learns a vocabulary "
                "that its embeddings do not have; set tokenizer to the vocab.txt beside it"
            )
