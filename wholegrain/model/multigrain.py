"""The model: image encoder, text encoder, cross encoder and the heads of every objective."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.boxes import box_mask
from wholegrain.errors import ConfigError
from wholegrain.model.adapters.mmca import Mmca, attach_mmca
from wholegrain.model.attention import PredictionHead, init_bert
from wholegrain.model.concepts import ImageFeatures, Shown, VisualConcepts, whole_images
from wholegrain.model.config import BoxHeadConfig, MmcaConfig, ModelConfig
from wholegrain.model.cross import CrossEncoder
from wholegrain.model.grounding.box_head import BoxPrediction, build_box_head
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
        self.box_head = build_box_head(config.box_head, width, self.vision.width, self.vision.grid)
        # Last, so that a host with and without adapters starts from the same random draws.
        self.adapter: Mmca | None = None
        if config.adapter is not None:
            self.adapter = attach_mmca(self, config.adapter)

    def add_adapter(self, adapter: MmcaConfig) -> None:
        """Attaches adapters to a host that has its weights already.

        Raises:
            ConfigError: there are some already, or the image encoder cannot carry them.
        """
        if self.adapter is not None:
            raise ConfigError("the model has adapters already; start from its host's release")
        self.adapter = attach_mmca(self, adapter)
        self.config = replace(self.config, adapter=adapter)

    def new_box_head(self, head: BoxHeadConfig) -> None:
        """Replaces the box head by a fresh one."""
        width = self.config.text.hidden_size
        self.box_head = build_box_head(head, width, self.vision.width, self.vision.grid)
        self.config = replace(self.config, box_head=head)

    @property
    def image_depends_on_text(self) -> bool:
        """Whether an image must be encoded again for each text."""
        return self.adapter is not None

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

    def ground_encoded(
        self, features: ImageFeatures, states: Tensor, mask: Tensor, image: Tensor
    ) -> tuple[BoxPrediction, Tensor]:
        """Boxes of encoded texts in encoded images.

        Args:
            features: I images, already conditioned on the texts where an adapter asks for it.
            states: (T, L, D) of `encode_text`; mask bool (T, L).
            image: (T,) row of `features` for each text.

        Returns:
            The prediction, and scores (T,) in 0..1: the head's own confidence, or the probability
            that text and whole image match where the head has none.
        """
        memory = self.memory(whole_images(features))
        cls = self.fuse_cls(states, mask, memory, image)
        prediction = self.predict_boxes(cls, features, image)
        if prediction.confidence is not None:
            return prediction, prediction.confidence
        return prediction, self.match_logits(cls).float().softmax(dim=-1)[:, 1]

    def encode_for_texts(
        self, images: Tensor, states: Tensor, mask: Tensor, image: Tensor
    ) -> tuple[ImageFeatures, Tensor]:
        """Image features as texts need them, and the row of them that each text reads.

        Without an adapter an image is encoded once; with one, once a text.
        """
        if self.adapter is None:
            return self.encode_images(images), image
        with self.adapter.conditioned_on(states, mask, image):
            features = self.encode_images(images)
        return features, torch.arange(len(states), device=states.device)

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
        states = self.encode_text(ids, mask)
        features, rows = self.encode_for_texts(images, states, mask, image)
        prediction, scores = self.ground_encoded(features, states, mask, rows)
        return prediction.boxes, scores
