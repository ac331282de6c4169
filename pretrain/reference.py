"""Slow reference of the objectives: X-VLM's way, pass by pass.

Every text is padded to one length, every pass of the text and the cross encoder is a call of its
own, keys and values are projected from every row's own image sequence in every call, and negatives
are drawn one by one on the host. `PretrainingModule` computes the same losses faster; this module
says what they are, and what the faster way is measured against.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.config import ObjectiveConfig
from wholegrain.boxes import box_mask
from wholegrain.data.batch import GRAINS, IGNORED, ConceptBatch
from wholegrain.model import reference, reference_vision
from wholegrain.model.concepts import ImageFeatures
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.objectives.box import grounding_losses
from wholegrain.objectives.matching import Negatives

_FLOOR = 1e-5  # keeps a draw possible where the softmax underflows


@dataclass
class ReferenceOutputs:
    """Losses, and the values on the way to them."""

    losses: dict[str, Tensor]
    image_vector: Tensor
    """(C, E) unit vectors."""
    text_vector: Tensor
    """(C, E) unit vectors."""
    negatives: Negatives
    match_logits: Tensor
    """(3 C, 2): positives, foreign images, foreign texts."""
    token_logits: Tensor
    """(K, V) at the hidden tokens, row-major."""
    boxes: Tensor
    """(B, 4) cxcywh of the regions."""
    box_terms: dict[str, Tensor]
    """(B,) each."""


@dataclass
class _Texts:
    """Texts as rectangles (C, L)."""

    ids: Tensor
    mask: Tensor
    masked_ids: Tensor
    labels: Tensor


class ReferenceModule(nn.Module):
    """Model and objectives as one module, called as `PretrainingModule` is; one process alone.

    Args:
        model: whose weights are used. In training mode its dropout and stochastic depth apply.
        options: which losses, and their weights.
        length: tokens that every text is padded to; longer texts are cut.
        slots: hidden places a text that the language head is computed at; those that are not
            needed point at [CLS] and count for nothing, as in X-VLM.
    """

    def __init__(
        self,
        model: MultiGrainModel,
        options: ObjectiveConfig,
        length: int = 40,
        slots: int = 8,
    ) -> None:
        super().__init__()
        self.model, self.options, self.length, self.slots = model, options, length, slots

    def forward(self, batch: ConceptBatch, negatives: Negatives | None = None) -> dict[str, Tensor]:
        """The named losses and their weighted sum, ``loss``.

        Args:
            batch: as `pretrain.inputs.mark_hidden` left it.
            negatives: drawn already; None draws.
        """
        losses = self.outputs(batch, negatives).losses
        weights = self.options.weights()
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        return {**losses, "loss": total}

    def outputs(self, batch: ConceptBatch, negatives: Negatives | None = None) -> ReferenceOutputs:
        """As `forward`, with the values on the way."""
        model = self.model
        texts = _Texts(*batch.padded(self.length))
        count = len(texts.ids)
        vision = model.config.vision
        features = reference_vision.encode_images(
            model.vision, vision, model.normalise_images(batch.images)
        )
        shown = box_mask(batch.concept_box, features.grid)
        sequence = reference_vision.concept_sequences(
            model.vision, vision, features, batch.concept_image, shown
        )
        visible = torch.cat([shown.new_ones(count, 1), shown], dim=1)

        states = self._encode_text(texts.ids, texts.mask)
        image_vector = F.normalize(model.image_projection(sequence[:, 0]).float(), dim=-1)
        text_vector = F.normalize(model.text_projection(states[:, 0]).float(), dim=-1)
        with torch.no_grad():
            model.temperature.clamp_(self.options.min_temperature, self.options.max_temperature)
        blocked = self._blocked(batch)
        if negatives is None:
            negatives = self._draw(image_vector, text_vector, blocked)

        match_logits = self._match(states, texts.mask, sequence, visible, negatives)
        token_logits, labels = self._masked_language(texts, sequence, visible)
        boxes, box_terms = self._boxes(batch, states, texts.mask, features)
        losses = {
            "contrastive": self._contrastive(image_vector, text_vector, blocked),
            "matching": _matching_loss(match_logits, negatives.valid),
            # The sum over real places, so that a batch without one costs 0 and not NaN.
            "masked_language": F.cross_entropy(
                token_logits.float(), labels, ignore_index=IGNORED, reduction="sum"
            )
            / (labels != IGNORED).sum().clamp(min=1),
            **{name: term.sum() / max(1, len(term)) for name, term in box_terms.items()},
        }
        hidden = token_logits[labels != IGNORED]
        return ReferenceOutputs(
            losses, image_vector, text_vector, negatives, match_logits, hidden, boxes, box_terms
        )

    @torch.no_grad()
    def by_grain(self, batch: ConceptBatch, outputs: ReferenceOutputs) -> dict[str, float]:
        """The mean of each loss over the concepts of a grain, concept by concept on the host.

        A figure of which the batch has nothing is left out.
        """
        contrastive = self._contrastive_terms(batch, outputs)
        found: dict[str, list[Tensor]] = {}
        for concept in range(batch.num_concepts):
            grain = GRAINS[int(batch.grain[concept])]
            terms = {
                "contrastive": contrastive[concept][None],
                "matching": _matching_terms(outputs, concept),
                "masked_language": _language_terms(batch, outputs, concept),
            }
            for name, each in outputs.box_terms.items():
                terms[name] = each[batch.extras["boxed"] == concept]
            for name, each in terms.items():
                found.setdefault(f"{name}/{grain}", []).extend(each.unbind())
        return {name: torch.stack(each).mean().item() for name, each in found.items() if each}

    # --- encoders -------------------------------------------------------------------------------

    def _encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        return reference.encode_text(self.model.text, self.model.config.text, ids, mask)

    def _fuse(self, states: Tensor, mask: Tensor, sequence: Tensor, visible: Tensor) -> Tensor:
        config = self.model.config.text
        return reference.fuse(self.model.cross, config, states, mask, sequence, visible)

    # --- losses ---------------------------------------------------------------------------------

    def _blocked(self, batch: ConceptBatch) -> Tensor:
        """Bool (C, C), True where concept j is no negative of i; itself is one of them."""
        count = batch.num_concepts
        blocked = torch.eye(count, dtype=torch.bool, device=batch.device)
        if not self.options.all_others_are_negatives:
            for key in (batch.extras["image_key"], batch.extras["text_key"]):
                blocked = blocked | (key[:, None] == key[None])
        return blocked

    def _contrastive(self, image: Tensor, text: Tensor, blocked: Tensor) -> Tensor:
        """X-VLM 2.1: both cross entropies of ``S = v t' / tau``, the partner on the diagonal."""
        to_text, to_image = self._cross_entropies(image, text, blocked)
        return (to_text.mean() + to_image.mean()) / 2

    def _contrastive_terms(self, batch: ConceptBatch, outputs: ReferenceOutputs) -> Tensor:
        """(C,)."""
        vectors = outputs.image_vector, outputs.text_vector
        to_text, to_image = self._cross_entropies(*vectors, self._blocked(batch))
        return (to_text + to_image) / 2

    def _cross_entropies(
        self, image: Tensor, text: Tensor, blocked: Tensor
    ) -> tuple[Tensor, Tensor]:
        partner = torch.arange(len(image), device=image.device)
        others = blocked & ~torch.eye(len(image), dtype=torch.bool, device=image.device)
        similarity = (image @ text.T / self.model.temperature).masked_fill(others, -torch.inf)
        to_text = F.cross_entropy(similarity, partner, reduction="none")
        to_image = F.cross_entropy(similarity.T, partner, reduction="none")
        return to_text, to_image

    @torch.no_grad()
    def _draw(self, image: Tensor, text: Tensor, blocked: Tensor) -> Negatives:
        """X-VLM 2.2: an image for each text, then a text for each image, drawn on the host."""
        similarity = image @ text.T / self.model.temperature
        to_text = (similarity.softmax(dim=1) + _FLOOR).masked_fill(blocked, 0.0)
        to_image = (similarity.T.softmax(dim=1) + _FLOOR).masked_fill(blocked, 0.0)
        drawn = []
        for weights in (to_image, to_text):
            rows = []
            for row in range(len(weights)):
                # A row without any negative takes itself, and is not counted.
                some = bool(weights[row].sum() > 0)
                rows.append(int(torch.multinomial(weights[row], 1).item()) if some else row)
            drawn.append(torch.tensor(rows, device=image.device))
        return Negatives(image=drawn[0], text=drawn[1], valid=~blocked.all(dim=1))

    def _match(
        self,
        states: Tensor,
        mask: Tensor,
        sequence: Tensor,
        visible: Tensor,
        negatives: Negatives,
    ) -> Tensor:
        """Logits (3 C, 2): one call on the positives, one on twice as many negatives."""
        positive = self._fuse(states, mask, sequence, visible)
        foreign = self._fuse(
            torch.cat([states, states[negatives.text]]),
            torch.cat([mask, mask[negatives.text]]),
            torch.cat([sequence[negatives.image], sequence]),
            torch.cat([visible[negatives.image], visible]),
        )
        cls = torch.cat([positive[:, 0], foreign[:, 0]])
        logits: Tensor = self.model.match_head(cls)
        return logits

    def _masked_language(
        self, texts: _Texts, sequence: Tensor, visible: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (C * slots, V) and labels (C * slots,) of the masked texts through all layers."""
        states = self._encode_text(texts.masked_ids, texts.mask)
        fused = self._fuse(states, texts.mask, sequence, visible)
        hidden = texts.labels != IGNORED
        slots = max(self.slots, int(hidden.sum(dim=1).max()))
        slots = min(slots, hidden.shape[1])
        # Hidden places first, in their order.
        place = (~hidden).long().argsort(dim=1, stable=True)[:, :slots]
        labels = texts.labels.gather(1, place)
        place = place.masked_fill(labels == IGNORED, 0)
        states = fused.gather(1, place[..., None].expand(-1, -1, fused.shape[-1]))
        return self.model.token_logits(states.flatten(0, 1)), labels.flatten()

    def _boxes(
        self, batch: ConceptBatch, states: Tensor, mask: Tensor, features: ImageFeatures
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Boxes (B, 4) of the regions, read from their whole images, and the losses' terms (B,)."""
        boxed = batch.extras["boxed"]
        if boxed is None:  # an update without regions by construction
            return batch.concept_box[:0], {}
        image = batch.concept_image[boxed]
        whole = torch.cat([features.cls[:, None], features.patches], dim=1)[image]
        visible = torch.ones(whole.shape[:2], dtype=torch.bool, device=whole.device)
        cls = states[boxed, 0]
        if len(boxed):
            cls = self._fuse(states[boxed], mask[boxed], whole, visible)[:, 0]
        prediction = self.model.predict_boxes(cls, features, image)
        centres = getattr(self.model.box_head, "centres", None)
        terms = grounding_losses(prediction, batch.concept_box[boxed], centres)
        return prediction.boxes, {f"box_{name}": term for name, term in terms.items()}


def _matching_loss(logits: Tensor, valid: Tensor) -> Tensor:
    count = len(valid)
    label = torch.tensor([1] * count + [0] * 2 * count, device=logits.device)
    counted = torch.cat([torch.ones_like(valid), valid, valid]).float()
    losses = F.cross_entropy(logits.float(), label, reduction="none")
    return (losses * counted).sum() / counted.sum()


def _matching_terms(outputs: ReferenceOutputs, concept: int) -> Tensor:
    """(3,), or (1,) where the concept has no negatives."""
    count = len(outputs.negatives.valid)
    rows = [concept, count + concept, 2 * count + concept]
    if not outputs.negatives.valid[concept]:
        rows = rows[:1]
    logits = outputs.match_logits[rows].float()
    label = torch.tensor([1, 0, 0][: len(rows)], device=logits.device)
    return F.cross_entropy(logits, label, reduction="none")


def _language_terms(batch: ConceptBatch, outputs: ReferenceOutputs, concept: int) -> Tensor:
    """One a hidden word."""
    _, _, _, labels = batch.padded()
    row, _ = (labels != IGNORED).nonzero(as_tuple=True)
    own = row == concept
    words = labels[labels != IGNORED][own]
    return F.cross_entropy(outputs.token_logits[own].float(), words, reduction="none")
