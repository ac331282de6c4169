"""What a model is made of; a released checkpoint carries exactly this."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wholegrain.config import config
from wholegrain.errors import ConfigError
from wholegrain.model.adapter_config import MmaConfig, MmcaConfig
from wholegrain.model.config_checks import divides
from wholegrain.model.fusion_config import Ca2mFusion, CrossFusion, RegFusion, ScanFusion
from wholegrain.model.timm_network import check_plain

# What a model is made of is imported from here, wherever it is written.
__all__ = ["Ca2mFusion", "CrossFusion", "MmaConfig", "MmcaConfig", "RegFusion", "ScanFusion"]


@config
class SwinVision:
    """Swin transformer (Liu et al. 2021); the image vector is the mean of the final patches."""

    kind: Literal["swin"] = "swin"
    image_size: int = Field(default=224, gt=0)
    """Side of the square input in pixels; a multiple of the final patch's side (32)."""
    patch_size: int = Field(default=4, gt=0)
    """Side of the first embedding's patch; the final grid is 8 times coarser."""
    embed_dim: int = Field(default=128, gt=0)
    """Channels of the first stage; doubled at each merging."""
    depths: tuple[int, ...] = (2, 2, 18, 2)
    """Blocks of each stage."""
    heads: tuple[int, ...] = (4, 8, 16, 32)
    """Attention heads of each stage."""
    window: int = Field(default=7, gt=0)
    """Side of an attention window in patches; image_size / 32 keeps the last stage unshifted."""
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    """Stochastic depth of the last block; grows linearly from 0."""

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.heads) or min(self.depths) < 1:
            raise ConfigError(
                f"vision.depths is {self.depths} and vision.heads {self.heads}; "
                "give each stage one positive number in both"
            )
        divides("vision.image_size", self.image_size, "final patch", self.final_patch)
        for stage, heads in enumerate(self.heads):
            divides(f"stage {stage}'s width", self.embed_dim * 2**stage, "heads", heads)

    @property
    def final_patch(self) -> int:
        """Side of a patch of the final grid in pixels."""
        return int(self.patch_size * 2 ** (len(self.depths) - 1))


@config
class VitVision:
    """Plain vision transformer: ViT and DeiT, or CLIP's with `clip: true`."""

    kind: Literal["vit"] = "vit"
    image_size: int = Field(default=224, gt=0)
    """Side of the square input in pixels; a multiple of `patch_size`."""
    patch_size: int = Field(default=16, gt=0)
    """Side of a patch in pixels."""
    width: int = Field(default=768, gt=0)
    """Channels."""
    depth: int = Field(default=12, gt=0)
    """Blocks."""
    heads: int = Field(default=12, gt=0)
    """Attention heads."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of a block's MLP over its width."""
    clip: bool = False
    """CLIP's variant: a norm before the blocks, quick GELU, no bias in the patch embedding."""
    activation: Literal["gelu", "quick_gelu"] | None = None
    """Of the MLPs; null takes that of the variant: quick GELU for CLIP's, GELU otherwise."""
    local_layers: int = Field(default=0, ge=0)
    """How many of the last blocks run once a region, attending only inside its box (X-VLM: 4);
    0 pools regions from the final patches, which costs nothing a region (X2-VLM)."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth of the last block."""

    def __post_init__(self) -> None:
        divides("vision.image_size", self.image_size, "vision.patch_size", self.patch_size)
        divides("vision.width", self.width, "vision.heads", self.heads)
        if self.local_layers > self.depth:
            raise ConfigError(
                f"vision.local_layers is {self.local_layers}, more than the {self.depth} blocks; "
                "lower it"
            )

    @property
    def gelu(self) -> Literal["gelu", "quick_gelu"]:
        """The activation, decided."""
        return self.activation or ("quick_gelu" if self.clip else "gelu")


@config
class TimmVision:
    """Any convolutional or hierarchical timm backbone that gives feature maps."""

    kind: Literal["timm"] = "timm"
    name: str = "resnet18d"
    """Plain name in timm, for instance ``resnet50``, ``convnext_tiny``; nothing is fetched."""
    image_size: int = Field(default=224, gt=0)
    """Side of the square input in pixels; a multiple of the last stage's stride."""
    stages: tuple[int, ...] = (1, 2, 3, 4)
    """timm's indices of the feature maps to keep; the last one gives the patch grid."""
    options: dict[str, int | float | bool | str | list[int]] = Field(default_factory=dict)
    """Further arguments of the timm model, such as ``{channels: [32, 64, 128, 256]}``."""

    def __post_init__(self) -> None:
        check_plain(self.name, self.options)


@config
class DetrVision:
    """DETR's image encoder: a ResNet with frozen batch norms, a transformer over its last map."""

    kind: Literal["detr"] = "detr"
    name: str = "resnet50"
    """Residual network in timm: ``resnet50``, ``resnet101``."""
    image_size: int = Field(default=640, gt=0)
    """Side of the square input in pixels; a multiple of 32."""
    width: int = Field(default=256, gt=0)
    """Channels of the transformer; a multiple of 4, which the sine positions need."""
    layers: int = Field(default=6, gt=0)
    """Transformer layers."""
    heads: int = Field(default=8, gt=0)
    """Attention heads."""
    feed_forward: int = Field(default=2048, gt=0)
    """Hidden width of a layer's feed-forward."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of hidden states and attention weights."""
    options: dict[str, int | float | bool | str | list[int]] = Field(default_factory=dict)
    """Further arguments of the timm model, such as ``{channels: [4, 8, 16, 32]}``."""

    def __post_init__(self) -> None:
        check_plain(self.name, self.options)
        divides("vision.image_size", self.image_size, "the network's stride", self.stride)
        divides("vision.width", self.width, "vision.heads", self.heads)
        divides("vision.width", self.width, "the sine positions' group", 4)

    @property
    def stride(self) -> int:
        """Side of a patch of the final grid in pixels."""
        return 32


VisionConfig = Annotated[
    SwinVision | VitVision | TimmVision | DetrVision, Field(discriminator="kind")
]


@config
class TextConfig:
    """A BERT stack cut in two: layers below `fusion_layer` read text, the others fuse the image."""

    vocab_size: int = Field(default=30522, gt=0)
    """Word pieces; must equal the tokenizer's."""
    hidden_size: int = Field(default=768, gt=0)
    """Channels."""
    layers: int = 12
    """Layers in all."""
    fusion_layer: int = 6
    """First layer with cross-attention to the image, counted from 0; `layers` for none, where
    `fusion` is another than `cross`."""
    heads: int = Field(default=12, gt=0)
    """Attention heads."""
    intermediate_size: int = Field(default=3072, gt=0)
    """Hidden width of the feed-forward."""
    max_positions: int = Field(default=512, gt=0)
    """Longest text in tokens."""
    type_vocab_size: int = Field(default=2, gt=0)
    """Token types; only type 0 is used, the table is kept for BERT weights."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of hidden states."""
    attention_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of attention weights; 0 lets the fused attention kernels run on every device."""
    norm_eps: float = Field(default=1e-12, gt=0)
    """Epsilon of the layer norms."""

    def __post_init__(self) -> None:
        if not 0 < self.fusion_layer <= self.layers:
            raise ConfigError(
                f"text.fusion_layer is {self.fusion_layer} of {self.layers} layers; "
                "leave at least one layer below it"
            )
        divides("text.hidden_size", self.hidden_size, "text.heads", self.heads)


@config
class ClsBoxHead:
    """X-VLM's head: an MLP on the fused [CLS] state, then a sigmoid."""

    kind: Literal["cls"] = "cls"


@config
class PatchBoxHead:
    """Every patch proposes a box and votes; the proposal that most of the votes overlap answers."""

    kind: Literal["patch"] = "patch"
    width: int = Field(default=256, gt=0)
    """Channels of the joint text-patch features."""


@config
class MlpBoxHead:
    """Linear layers with ReLU on the fused vector, then a sigmoid: the head of the one-paper
    grounding methods. Beside the box it says how well it expects the box to fit.
    """

    kind: Literal["mlp"] = "mlp"
    layers: int = Field(default=3, gt=0)
    """Linear layers."""
    width: int | None = Field(default=None, gt=0)
    """Hidden channels; null takes those of the fused vector."""


BoxHeadConfig = Annotated[ClsBoxHead | PatchBoxHead | MlpBoxHead, Field(discriminator="kind")]


AdapterConfig = Annotated[MmcaConfig | MmaConfig, Field(discriminator="kind")]


FusionConfig = Annotated[
    CrossFusion | Ca2mFusion | ScanFusion | RegFusion, Field(discriminator="kind")
]


@config
class ModelConfig:
    """Vision, text and cross encoder with the heads of every objective."""

    vision: VisionConfig = Field(default_factory=SwinVision)
    """The image encoder."""
    text: TextConfig = Field(default_factory=TextConfig)
    """The text and cross encoder."""
    embed_dim: int = Field(default=256, gt=0)
    """Channels of the unit vectors that image and text are compared in."""
    temperature: float = Field(default=0.07, gt=0)
    """Initial temperature of the contrastive loss; learnt."""
    contrastive_bias: float | None = None
    """Initial bias of the sigmoid form of the contrastive loss, learnt (SigLIP: -10, with a
    temperature of 0.1); null for the softmax form, which has none."""
    box_head: BoxHeadConfig = Field(default_factory=ClsBoxHead)
    """How a box is read from the fused text and the image."""
    fusion: FusionConfig = Field(default_factory=CrossFusion)
    """How text and image become the vector that a box is read from; pretraining has `cross`."""
    adapters: tuple[AdapterConfig, ...] = ()
    """Adapters attached for finetuning, one of a kind; none in pretraining."""

    def __post_init__(self) -> None:
        if self.text.fusion_layer == self.text.layers and isinstance(self.fusion, CrossFusion):
            raise ConfigError(
                f"text.fusion_layer is {self.text.fusion_layer} of {self.text.layers} layers, "
                "which leaves none to fuse the image; lower it, or choose another fusion"
            )
        self._check_fusion()
        kinds = [adapter.kind for adapter in self.adapters]
        if len(set(kinds)) < len(kinds):
            raise ConfigError(f"adapters are of the kinds {kinds}; give one of each kind")

    def _check_fusion(self) -> None:
        if isinstance(self.fusion, CrossFusion):
            return
        kind, scan = self.fusion.kind, isinstance(self.fusion, ScanFusion)
        if isinstance(self.box_head, ClsBoxHead):
            raise ConfigError(
                "box_head is `cls`, whose score comes from the cross encoder's matching; fusion "
                f"`{kind}` needs {'`mlp`' if scan else '`mlp` or `patch`'}"
            )
        if isinstance(self.box_head, PatchBoxHead) and scan:
            raise ConfigError(
                "box_head is `patch`, whose patches vote; fusion `scan` has other patches at each "
                "scale, and needs `mlp`"
            )
        if any(isinstance(each, MmaConfig) and each.cross for each in self.adapters):
            raise ConfigError(
                f"adapters.cross is true, but fusion.kind is {kind!r}, which does without the "
                "cross encoder; set the one to false or the other to cross"
            )

    @classmethod
    def base(cls) -> ModelConfig:
        """X-VLM's size: Swin-B and BERT-base, 215,637,241 parameters."""
        return cls()

    @classmethod
    def tiny(cls, vocab_size: int = 4000) -> ModelConfig:
        """A size that two CPU cores train in minutes."""
        return cls(
            vision=TimmVision(
                name="resnet18d",
                image_size=128,
                stages=(1, 2, 3),
                options={"channels": [32, 64, 192, 256], "stem_width": 16},
            ),
            text=TextConfig(
                vocab_size=vocab_size,
                hidden_size=192,
                layers=4,
                fusion_layer=2,
                heads=6,
                intermediate_size=576,
                max_positions=64,
                dropout=0.0,
                attention_dropout=0.0,
            ),
            embed_dim=128,
            box_head=PatchBoxHead(width=192),
        )
