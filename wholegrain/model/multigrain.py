"""The model: image encoder, text encoder, cross encoder and the heads of every objective."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.boxes import box_mask
from wholegrain.errors import ConfigError
from wholegrain.model.adapters.attach import build_adapter
from wholegrain.model.adapters.base import Adapter
from wholegrain.model.adapters.condition import Condition
from wholegrain.model.adapters.mma_pair import PairedAdapter
from wholegrain.model.adapters.prefix import computed_once
from wholegrain.model.attention import PredictionHead, init_bert
from wholegrain.model.concepts import ImageFeatures, Shown, VisualConcepts, whole_images
from wholegrain.model.config import (
    AdapterConfig,
    BoxHeadConfig,
    ClsBoxHead,
    CrossFusion,
    FusionConfig,
    MlpBoxHead,
    ModelConfig,
)
from wholegrain.model.cross import CrossEncoder
from wholegrain.model.grounding.box_head import BoxPrediction, ScaleHeads, build_box_head
from wholegrain.model.grounding.build import build_fusion
from wholegrain.model.grounding.fusion import Fused, Fusion
from wholegrain.model.grounding.records import TextStates
from wholegrain.model.indexing import take
from wholegrain.model.memory import Memory
from wholegrain.model.packing import Chosen, Packing
from wholegrain.model.text import MaskedLanguageHead, Reads, TextEncoder
from wholegrain.model.vision import build_vision


class MultiGrainModel(nn.Module):
    """Images, regions and objects against words (X-VLM, Zeng et al. 2022).

    Shapes: I images, C concepts, R rows of a cross-encoder call, L tokens, P patches.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.text.hidden_size
        self.vision = build_vision(config.vision)
        self.text = TextEncoder(config.text)
        self.cross = CrossEncoder(config.text, self.vision.width)
        self.image_projection = nn.Linear(self.vision.width, config.embed_dim)
        self.text_projection = nn.Linear(width, config.embed_dim)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        self.contrastive_bias: nn.Parameter | None = None
        if config.contrastive_bias is not None:
            self.contrastive_bias = nn.Parameter(torch.tensor(config.contrastive_bias))
        self.match_head = PredictionHead(width, 2)
        self.masked_language_head = MaskedLanguageHead(config.text)
        for part in (self.text, self.cross, self.masked_language_head):
            init_bert(part)
        self.condition = Condition()
        self.fusion = self._fusion(config.fusion)
        self.box_head = self._head(config.box_head, self.fusion)
        # Last, so that a host with and without adapters starts from the same random draws.
        self.adapters = nn.ModuleDict()
        for adapter in config.adapters:
            self.adapters[adapter.kind] = build_adapter(self, adapter)
        self._connect()

    def _connect(self) -> None:
        """A fusion that runs blocks itself does without their hooks, and asks their adapters."""
        if self.fusion is not None:
            adapters = self.adapters.values()
            self.fusion.beside = [each for each in adapters if isinstance(each, PairedAdapter)]

    def _fusion(self, config: FusionConfig) -> Fusion | None:
        return build_fusion(config, self.vision, self.config.text)

    def _head(self, config: BoxHeadConfig, fusion: Fusion | None) -> nn.Module:
        width = self.config.text.hidden_size if fusion is None else fusion.width
        scales = 1 if fusion is None else fusion.scales
        return build_box_head(config, width, self.vision.width, self.vision.grid, scales)

    @property
    def max_text(self) -> int:
        """Tokens of the longest text that can be grounded, [CLS] included."""
        places = self.config.text.max_positions
        return min(places, self.fusion.max_text or places) if self.fusion else places

    @property
    def scales(self) -> int:
        """Vectors, and so boxes, that a text gets."""
        return 1 if self.fusion is None else self.fusion.scales

    def add_adapter(self, adapter: AdapterConfig) -> None:
        """Attaches an adapter to a host that has its weights already.

        Raises:
            ConfigError: there is one of its kind already, or the host cannot carry it.
        """
        if adapter.kind in self.adapters:
            raise ConfigError(
                f"the model has adapters of kind {adapter.kind!r} already; start from its host's "
                "release"
            )
        config = replace(self.config, adapters=(*self.config.adapters, adapter))
        self.adapters[adapter.kind] = self._join(build_adapter(self, adapter))
        self._connect()
        self.config = config

    def new_fusion(self, fusion: FusionConfig, head: BoxHeadConfig | None = None) -> None:
        """Replaces the way of fusing by a fresh one, and the box head, which reads it, likewise.

        Args:
            fusion: the new way.
            head: of the boxes; None takes one of the kind that there is, or `mlp` where that is
                `cls`, which goes with the cross encoder.

        Raises:
            ConfigError: the image or text encoder lacks what it needs, or an adapter sits where the
                new way does not pass; the model is as it was.
        """
        kept = self.config.box_head
        foreign = isinstance(kept, ClsBoxHead) and not isinstance(fusion, CrossFusion)
        config = replace(
            self.config, fusion=fusion, box_head=head or (MlpBoxHead() if foreign else kept)
        )
        made = self._fusion(fusion)
        fresh = self._head(config.box_head, made)  # before anything changes: it may be refused
        if made is not None:
            self._join(made)
        self.fusion, self.box_head, self.config = made, self._join(fresh), config
        self._connect()

    def new_box_head(self, head: BoxHeadConfig) -> None:
        """Replaces the box head by a fresh one."""
        config = replace(self.config, box_head=head)
        self.box_head = self._join(self._head(head, self.fusion))
        self.config = config

    def _join(self, part: nn.Module) -> nn.Module:
        """A part that is new to this model: on its device, in its precision and mode."""
        return part.to(self.temperature.device, self.temperature.dtype).train(self.training)

    def config_now(self) -> ModelConfig:
        """The configuration, with what was changed of the adapters since (MMA's alpha)."""
        config = self.config
        adapters = (cast(Adapter, self.adapters[each.kind]) for each in config.adapters)
        pairs = zip(adapters, config.adapters, strict=True)
        return replace(config, adapters=tuple(adapter.as_now(each) for adapter, each in pairs))

    @property
    def text_adapters(self) -> list[Adapter]:
        """The adapters by which an image's pass depends on the text."""
        found = [a for a in self.adapters.values() if isinstance(a, Adapter)]
        return [adapter for adapter in found if adapter.needs_text and adapter.enabled]

    @property
    def image_depends_on_text(self) -> bool:
        """Whether an image must be encoded again for each text."""
        return bool(self.text_adapters) and not self._fusion_runs_blocks

    @property
    def _fusion_runs_blocks(self) -> bool:
        return self.fusion is not None and self.fusion.image_per_text

    # --- encoders -------------------------------------------------------------------------------

    def normalise_images(self, images: Tensor) -> Tensor:
        """uint8 (I, 3, R, R) to the floats that `encode_images` reads."""
        return self.vision.normalise(images)

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """Encodes normalised images (I, 3, R, R), once, whatever is asked of them."""
        features: ImageFeatures = self.vision(images)
        return features

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """States (C, L, D) of token ids (C, L) with mask bool (C, L)."""
        texts, places = Packing.of_mask(mask)
        return texts.unpack(self.encode_packed(ids.flatten()[places], texts))

    def encode_packed(self, tokens: Tensor, texts: Packing) -> Tensor:
        """States (T, D) of packed token ids (T,)."""
        states: Tensor = self.text(tokens, texts)
        return states

    def concepts(
        self,
        features: ImageFeatures,
        image: Tensor,
        boxes: Tensor,
        shown: Shown | None = None,
    ) -> VisualConcepts:
        """Concepts of boxes.

        Args:
            features: of `encode_images`.
            image: (C,) the image of each concept.
            boxes: (C, 4) cxcywh in the unit square.
            shown: what the host knows of the patches that the boxes touch; without it the device
                may be asked.
        """
        mask = box_mask(boxes, features.grid)
        concepts: VisualConcepts = self.vision.concepts(features, image, mask, shown)
        return concepts

    def memory(self, concepts: VisualConcepts) -> Memory:
        """Keys and values of the concepts for the cross encoder."""
        return self.cross.memory(concepts)

    def fuse(self, states: Tensor, mask: Tensor, memory: Memory, rows: Tensor) -> Tensor:
        """Fuses text states (R, L, D) with the concepts `rows` (R,) of a memory."""
        texts, places = Packing.of_mask(mask)
        packed = take(states.flatten(0, 1), places)
        return texts.unpack(self.fuse_packed(packed, texts, memory, rows))

    def fuse_cls(self, states: Tensor, mask: Tensor, memory: Memory, rows: Tensor) -> Tensor:
        """The fused [CLS] states (R, D) alone, which is cheaper than `fuse`."""
        texts, places = Packing.of_mask(mask)
        packed = take(states.flatten(0, 1), places)
        return self.fuse_packed(packed, texts, memory, rows, Reads.first(texts))

    def fuse_packed(
        self,
        states: Tensor,
        texts: Packing,
        memory: Memory,
        rows: Tensor,
        reads: Reads | None = None,
        chosen: Chosen | None = None,
    ) -> Tensor:
        """Fuses packed states (T, D) with the concepts `rows` (R,); see `CrossEncoder.forward`."""
        fused: Tensor = self.cross(states, texts, memory, rows, reads, chosen)
        return fused

    # --- heads ----------------------------------------------------------------------------------

    def image_vector(self, cls: Tensor) -> Tensor:
        """Unit vectors (C, E) of concept vectors (C, Dv), in fp32."""
        return F.normalize(self.image_projection(cls).float(), dim=-1)

    def text_vector(self, cls: Tensor) -> Tensor:
        """Unit vectors (C, E) of text [CLS] states (C, D), in fp32."""
        return F.normalize(self.text_projection(cls).float(), dim=-1)

    def match_logits(self, cls: Tensor) -> Tensor:
        """Logits (R, 2) of fused [CLS] states; class 1 is a match."""
        logits: Tensor = self.match_head(cls)
        return logits

    def token_logits(self, states: Tensor) -> Tensor:
        """Logits (..., V) of fused states (..., D) at masked places."""
        logits: Tensor = self.masked_language_head(states, self.text.embeddings.word.weight)
        return logits

    def predict_boxes(self, cls: Tensor, features: ImageFeatures, image: Tensor) -> BoxPrediction:
        """Boxes of fused [CLS] states (T, D); `image` (T,) is each text's image."""
        prediction: BoxPrediction = self.box_head(cls, features.patches, image)
        return prediction

    # --- grounding ------------------------------------------------------------------------------

    def read_texts(self, ids: Tensor, mask: Tensor) -> TextStates:
        """Texts (T, L) with mask bool (T, L), encoded with the states of every layer."""
        texts, places = Packing.of_mask(mask)
        layers = self.text.layer_states(ids.flatten()[places], texts)
        states = tuple(texts.unpack(layer) for layer in layers)
        return TextStates(states[-1], mask, states)

    def see(self, images: Tensor, pixel_mask: Tensor | None = None) -> ImageFeatures:
        """What grounding reads of normalised images (I, 3, R, R) before any text is seen.

        All that there is to encode, unless `image_depends_on_text`; see `encode_for_texts`.
        """
        if self.fusion is None:
            features = self.encode_images(images)
        else:
            features = self.fusion.encode(self.vision, images)
        features.pixel_mask = pixel_mask
        return features

    def same_images(self) -> AbstractContextManager[None]:
        """A block within which all images encoded are the same, however many texts are about them.

        What an image's pass computes before adapters read the texts is then computed once.
        """
        adapters = self.text_adapters if self.image_depends_on_text else []
        return computed_once(min((each.untouched for each in adapters), key=len, default=()))

    def encode_for_texts(
        self, images: Tensor, texts: TextStates, image: Tensor, pixel_mask: Tensor | None = None
    ) -> tuple[ImageFeatures, Tensor]:
        """Image features as texts need them, and the row of them that each text reads.

        An image is encoded once, but where adapters make its pass depend on the text: then once a
        text, from the first adapted block on.

        Args:
            images: normalised (I, 3, R, R).
            texts: T texts.
            image: (T,) the image of each text.
            pixel_mask: bool (I, R, R), False at padding; None where nothing is padded.
        """
        if not self.image_depends_on_text:
            return self.see(images, pixel_mask), image
        with self.condition.on(texts, image, pixel_mask):
            features = self.encode_images(images)
        untouched = min(adapter.untouched_maps for adapter in self.text_adapters)
        maps = enumerate(features.pyramid)
        features.pyramid = tuple(m[image] if place < untouched else m for place, m in maps)
        features.pixel_mask = None if pixel_mask is None else pixel_mask[image]
        return features, torch.arange(len(texts), device=images.device)

    def fuse_texts(self, features: ImageFeatures, texts: TextStates, image: Tensor) -> Fused:
        """Fuses texts with the images that they are about.

        Args:
            features: of `encode_for_texts`.
            texts: T texts.
            image: (T,) row of `features` for each text.
        """
        if self.fusion is None:
            if features.memory is None:
                features.memory = self.memory(whole_images(features))
            cls = self.fuse_cls(texts.states, texts.mask, features.memory, image)
            return Fused(cls[:, None])
        with self._conditioned(texts, features, image):
            fused: Fused = self.fusion(self.vision, texts, features, image, self.condition)
        return fused

    def _conditioned(
        self, texts: TextStates, features: ImageFeatures, image: Tensor
    ) -> AbstractContextManager[None]:
        """Where the fusion runs the image encoder's blocks, their adapters read the texts there."""
        if self._fusion_runs_blocks and self.text_adapters:
            return self.condition.on(texts, image, features.pixel_mask)
        return nullcontext()

    def answer(self, fused: Fused, features: ImageFeatures, image: Tensor) -> BoxPrediction:
        """Boxes of fused texts; `image` (T,) is the row of `features` for each text."""
        vectors = fused.vectors if isinstance(self.box_head, ScaleHeads) else fused.vectors[:, -1]
        return self.predict_boxes(vectors, features, image)

    def ground_encoded(
        self, features: ImageFeatures, texts: TextStates, image: Tensor
    ) -> tuple[BoxPrediction, Tensor, Fused]:
        """Boxes of encoded texts in encoded images.

        Args:
            features: of `encode_for_texts`.
            texts: T texts.
            image: (T,) row of `features` for each text.

        Returns:
            The prediction; scores (T,) in 0..1: the head's own confidence, or the probability that
            text and whole image match where the head has none; and the fused texts.
        """
        if self.fusion is not None and self.fusion.stops_early and not self.training:
            fused, prediction = self._answer_early(self.fusion, features, texts, image)
        else:
            fused = self.fuse_texts(features, texts, image)
            prediction = self.answer(fused, features, image)
        if prediction.confidence is not None:
            return prediction, prediction.confidence, fused
        match = self.match_logits(fused.vectors[:, -1]).float().softmax(dim=-1)
        return prediction, match[:, 1], fused

    def _answer_early(
        self, fusion: Fusion, features: ImageFeatures, texts: TextStates, image: Tensor
    ) -> tuple[Fused, BoxPrediction]:
        """Each text's answer is that of the scale at which it stopped."""
        heads = self.box_head
        assert isinstance(heads, ScaleHeads)  # there are several scales to stop between

        def quality(scale: int, vectors: Tensor) -> Tensor:
            expected: Tensor = heads[scale](vectors, features.patches, image).confidence
            return expected

        with self._conditioned(texts, features, image):
            fused, scale = fusion.read_until(
                self.vision, texts, features, image, self.condition, quality
            )
        prediction = heads.answer_of(self.answer(fused, features, image), scale)
        return fused._replace(answers=scale), prediction

    def ground(
        self, images: Tensor, ids: Tensor, mask: Tensor, image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Finds texts in images.

        Args:
            images: normalised (I, 3, R, R).
            ids, mask: (T, L) token ids and bool mask.
            image: (T,) the image of each text.

        Returns:
            Boxes (T, 4) cxcywh in the unit square and scores (T,) as `ground_encoded` gives them.
        """
        texts = self.read_texts(ids, mask)
        features, rows = self.encode_for_texts(images, texts, image)
        prediction, scores, _ = self.ground_encoded(features, texts, rows)
        return prediction.boxes, scores
