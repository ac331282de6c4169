"""All objectives of pretraining over one batch of concepts, in few large calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.config import ObjectiveConfig
from wholegrain.boxes import box_mask
from wholegrain.data.batch import IMAGE, ConceptBatch
from wholegrain.data.order import stable_key
from wholegrain.model.concepts import join, whole_images
from wholegrain.model.grounding.box_head import BoxPrediction
from wholegrain.model.indexing import take
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.objectives.box import grounding_losses
from wholegrain.objectives.contrastive import contrastive_loss
from wholegrain.objectives.masked_lm import masked_language_loss
from wholegrain.objectives.matching import Negatives, draw_negatives, matching_loss


@dataclass
class ConceptInputs:
    """What the objectives read of a batch: C concepts on I images."""

    images: Tensor
    """(I, 3, R, R) normalised."""
    image: Tensor
    """(C,) the image of each concept."""
    mask: Tensor
    """bool (C, P) the patches that its box touches."""
    box: Tensor
    """(C, 4) cxcywh in the unit square."""
    ids: Tensor
    """(C, L) token ids."""
    tokens: Tensor
    """bool (C, L) True at tokens."""
    masked_ids: Tensor
    """(C, L) token ids with words hidden."""
    hidden: tuple[Tensor, Tensor, Tensor]
    """Rows, columns and labels (K,) of the hidden tokens."""
    boxed: Tensor
    """(B,) the concepts that the box loss is asked of."""
    image_key: Tensor | None = None
    """(C,) tells images apart across ranks; None lets all be each other's negatives."""
    text_key: Tensor | None = None
    """(C,) tells texts apart."""


@dataclass
class Outputs:
    """Losses, and the intermediate values that validation and parity tests look at."""

    losses: dict[str, Tensor]
    image_vector: Tensor
    text_vector: Tensor
    match_logits: Tensor
    """(3 C, 2): positives, foreign images, foreign texts."""
    token_logits: Tensor
    """(K, V) at the hidden tokens."""
    boxes: Tensor
    """(B, 4) cxcywh of the `boxed` concepts."""
    negatives: Negatives
    sequence: Tensor
    """(C, 1 + P, D) what the cross encoder sees of each concept."""
    text_states: Tensor
    """(C, L, D)."""
    fused: Tensor
    """(C, L, D) of the positive pairs."""

    def total(self, weights: Mapping[str, float]) -> Tensor:
        """The weighted sum of the losses."""
        return torch.stack([weights[name] * loss for name, loss in self.losses.items()]).sum()


def inputs_of(
    batch: ConceptBatch, model: MultiGrainModel, options: ObjectiveConfig
) -> ConceptInputs:
    """Reads a batch; `mark_hidden` must have seen it on the host."""
    ids, tokens, masked_ids, _ = batch.padded()
    extras = batch.extras
    keyed = not options.all_others_are_negatives
    return ConceptInputs(
        images=model.normalise_images(batch.images),
        image=batch.concept_image,
        mask=box_mask(batch.concept_box, model.vision.grid),
        box=batch.concept_box,
        ids=ids,
        tokens=tokens,
        masked_ids=masked_ids,
        hidden=(extras["hidden_row"], extras["hidden_column"], extras["hidden_label"]),
        boxed=extras["boxed"],
        image_key=extras["image_key"] if keyed else None,
        text_key=extras["text_key"] if keyed else None,
    )


def mark_hidden(batch: ConceptBatch) -> ConceptBatch:
    """Lists, on the host, what would otherwise have to be looked for on the device."""
    starts = batch.cu_seqlens.long()
    place = (batch.masked_labels != -100).nonzero().squeeze(1)
    row = torch.searchsorted(starts, place, right=True) - 1
    extras = dict(batch.extras)
    extras["hidden_row"], extras["hidden_column"] = row, place - starts[row]
    extras["hidden_label"] = batch.masked_labels[place]
    extras["boxed"] = (batch.grain != IMAGE).nonzero().squeeze(1)
    images = torch.tensor([_key(name) for name in batch.sample_ids], dtype=torch.long)
    extras["image_key"] = images[batch.concept_image]
    extras["text_key"] = torch.tensor([_key(t) for t in extras["texts"]], dtype=torch.long)
    batch.extras = extras
    return batch


def _key(text: str) -> int:
    return 1 + stable_key(text) % (2**62)


def run_objectives(
    model: MultiGrainModel,
    inputs: ConceptInputs,
    options: ObjectiveConfig,
    negatives: Negatives | None = None,
    capacity: int | None = None,
) -> Outputs:
    """Encodes images once and texts once, fuses every pass in one call, and takes the losses.

    Args:
        model: the model.
        inputs: C concepts.
        options: which losses, and their weights.
        negatives: drawn already; None draws.
        capacity: at least the number of concepts on any rank; None keeps the contrastive loss
            within this rank.
    """
    count = len(inputs.ids)
    features = model.encode_images(inputs.images)
    concepts = model.vision.concepts(features, inputs.image, inputs.mask)
    # Whole and masked texts share one call; so do all passes of the cross encoder below.
    states = model.encode_text(
        torch.cat([inputs.ids, inputs.masked_ids]), inputs.tokens.repeat(2, 1)
    )
    plain = states[:count]
    image_vector = model.image_vector(concepts.cls)
    text_vector = model.text_vector(plain[:, 0])
    with torch.no_grad():
        model.temperature.clamp_(options.min_temperature, options.max_temperature)
    itc = contrastive_loss(
        image_vector,
        text_vector,
        model.temperature,
        image_key=inputs.image_key,
        text_key=inputs.text_key,
        capacity=capacity,
    )
    if negatives is None:
        negatives = draw_negatives(
            image_vector, text_vector, model.temperature, inputs.image_key, inputs.text_key
        )
    own = torch.arange(count, device=states.device)
    memory = model.memory(join(concepts, whole_images(features)))
    text_rows = torch.cat([own, own, negatives.text, count + own, inputs.boxed])
    memory_rows = torch.cat([own, negatives.image, own, own, count + inputs.image[inputs.boxed]])
    fused = model.fuse(
        take(states, text_rows), inputs.tokens.repeat(2, 1)[text_rows], memory, memory_rows
    )
    match_logits = model.match_logits(fused[: 3 * count, 0])
    row, column, label = inputs.hidden
    token_logits = model.token_logits(
        take(fused.flatten(0, 1), (3 * count + row) * fused.shape[1] + column)
    )
    boxed_image = inputs.image[inputs.boxed]
    prediction = model.predict_boxes(fused[4 * count :, 0], features, boxed_image)
    losses = {
        "contrastive": itc,
        "matching": matching_loss(match_logits, negatives.valid),
        "masked_language": masked_language_loss(token_logits, label),
        **_box_losses(model, prediction, inputs.box[inputs.boxed]),
    }
    return Outputs(
        losses=losses,
        image_vector=image_vector,
        text_vector=text_vector,
        match_logits=match_logits,
        token_logits=token_logits,
        boxes=prediction.boxes,
        negatives=negatives,
        sequence=concepts.sequence(),
        text_states=plain,
        fused=fused[:count],
    )


def _box_losses(
    model: MultiGrainModel, prediction: BoxPrediction, target: Tensor
) -> dict[str, Tensor]:
    # A batch without a region still runs the head, on no rows: on several ranks every parameter
    # must take part in the exchange of gradients.
    count = max(1, len(target))
    terms = grounding_losses(prediction, target, getattr(model.box_head, "centres", None))
    return {f"box_{name}": term.sum() / count for name, term in terms.items()}


class PretrainingModule(nn.Module):
    """Model and objectives as one module, so that a data-parallel wrapper sees one forward."""

    def __init__(self, model: MultiGrainModel, options: ObjectiveConfig, capacity: int) -> None:
        super().__init__()
        self.model, self.options, self.capacity = model, options, capacity

    def forward(self, batch: ConceptBatch) -> dict[str, Tensor]:
        """The named losses and their weighted sum, ``loss``."""
        inputs = inputs_of(batch, self.model, self.options)
        outputs = run_objectives(self.model, inputs, self.options, capacity=self.capacity)
        return {**outputs.losses, "loss": outputs.total(self.options.weights())}
