"""All objectives of pretraining over one batch of concepts, in few large calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pretrain.config import ObjectiveConfig
from pretrain.foreign import Capacity, fetch_negatives
from pretrain.grains import BOXED, Terms, grain_means
from pretrain.inputs import ConceptInputs, inputs_of
from pretrain.passes import plan_passes
from wholegrain.data.batch import ConceptBatch
from wholegrain.model.concepts import ImageFeatures, VisualConcepts, join, whole_images
from wholegrain.model.grounding.box_head import BoxPrediction
from wholegrain.model.indexing import take
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.objectives.box import grounding_losses
from wholegrain.objectives.contrastive import contrastive_loss
from wholegrain.objectives.gather import Summed, gather_concepts, mean_over_ranks
from wholegrain.objectives.masked_lm import masked_language_sum
from wholegrain.objectives.matching import Negatives, draw_negatives, matching_sum


@dataclass
class Outputs:
    """Losses, and the intermediate values that validation and parity tests look at."""

    image_vector: Tensor
    """(C, E) unit vectors."""
    text_vector: Tensor
    """(C, E) unit vectors."""
    features: ImageFeatures
    """Of the I images."""
    concepts: VisualConcepts
    """C concepts and what the cross encoder sees of them."""
    text_states: Tensor
    """(T, D) of the whole texts, before the cross encoder."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    terms: dict[str, Terms] = field(default_factory=dict)
    """Of each loss, by its name."""
    negatives: Negatives = field(init=False)
    match_logits: Tensor = field(init=False)
    """(3 C, 2): positives, foreign images, foreign texts."""
    token_logits: Tensor = field(init=False)
    """(K, V) at the hidden tokens."""
    boxes: Tensor | None = None
    """(B, 4) cxcywh of the `boxed` concepts; None where the box head was left out."""

    def total(self, weights: Mapping[str, float]) -> Tensor:
        """The weighted sum of the losses."""
        return torch.stack([weights[name] * loss for name, loss in self.losses.items()]).sum()


def run_objectives(
    model: MultiGrainModel,
    inputs: ConceptInputs,
    options: ObjectiveConfig,
    negatives: Negatives | None = None,
    capacity: Capacity | None = None,
) -> Outputs:
    """Encodes images once and texts once, fuses every pass in one call, and takes the losses.

    Args:
        model: the model.
        inputs: C concepts.
        options: which losses, and their weights.
        negatives: drawn already; None draws.
        capacity: the most that any rank holds; None keeps everything within this rank.
    """
    features = model.encode_images(inputs.images)
    concepts = model.vision.concepts(features, inputs.image, inputs.mask, inputs.shown)
    # Whole and masked texts share one call; so do all passes of the cross encoder below.
    states = model.encode_packed(
        torch.cat([inputs.tokens, inputs.masked_tokens]), inputs.texts.repeated(2)
    )
    outputs = Outputs(
        image_vector=model.image_vector(concepts.cls),
        text_vector=model.text_vector(take(states, inputs.texts.starts)),
        features=features,
        concepts=concepts,
        text_states=states[: inputs.texts.total],
    )
    outputs.negatives = _contrast(model, inputs, options, outputs, capacity, negatives)
    everything, foreign = join(concepts, whole_images(features)), None
    if capacity is not None and options.negatives == "global":
        foreign = fetch_negatives(inputs, concepts, states, outputs.negatives, capacity)
        everything = join(everything, foreign.concepts)
        states = torch.cat([states, foreign.states])
    passes = plan_passes(inputs, outputs.negatives, foreign)
    fused = model.fuse_packed(
        states,
        passes.sources,
        model.memory(everything),
        passes.concepts,
        passes.reads,
        passes.chosen,
    )
    _read_heads(model, inputs, options, outputs, fused.split(passes.sizes), capacity)
    return outputs


def _contrast(
    model: MultiGrainModel,
    inputs: ConceptInputs,
    options: ObjectiveConfig,
    outputs: Outputs,
    capacity: Capacity | None,
    negatives: Negatives | None,
) -> Negatives:
    """Takes the contrastive loss, and draws the negatives of matching by its similarities.

    Those that are given already are given back.
    """
    with torch.no_grad():
        model.temperature.clamp_(options.min_temperature, options.max_temperature)
    vectors = (outputs.image_vector, outputs.text_vector)
    keys = (inputs.image_key, inputs.text_key)
    everyone = gather_concepts(*vectors, *keys, None if capacity is None else capacity.concepts)
    rows = everyone.image.new_empty(len(outputs.image_vector))
    outputs.losses["contrastive"] = contrastive_loss(
        *vectors,
        model.temperature,
        everyone=everyone,
        form=options.contrastive_form,
        bias=model.contrastive_bias,
        gradient=options.contrastive_gradient,
        chunk=options.contrastive_chunk,
        rows=rows,
    )
    outputs.terms["contrastive"] = Terms(rows, torch.arange(len(rows), device=rows.device))
    if negatives is not None:
        return negatives
    afar = options.negatives == "global" and capacity is not None
    return draw_negatives(
        *vectors,
        model.temperature,
        *keys,
        scope="global" if afar else "rank",
        everyone=everyone if afar else None,
        chunk=options.contrastive_chunk,
    )


def _read_heads(
    model: MultiGrainModel,
    inputs: ConceptInputs,
    options: ObjectiveConfig,
    outputs: Outputs,
    fused: Sequence[Tensor],
    capacity: Capacity | None,
) -> None:
    """Takes the losses of matching, masked language and boxes from their fused states."""
    matched, hidden, boxed = fused
    outputs.match_logits = model.match_logits(matched)
    outputs.token_logits = model.token_logits(hidden)
    matching = matching_sum(outputs.match_logits, outputs.negatives.valid)
    masked_language = masked_language_sum(outputs.token_logits, inputs.hidden.label)
    summed = {"matching": matching, "masked_language": masked_language}
    outputs.terms |= {
        "matching": Terms.of(matching, outputs.terms["contrastive"].concept.repeat(3)),
        "masked_language": Terms.of(masked_language, inputs.hidden.row),
    }
    if inputs.boxed is not None:
        prediction = model.predict_boxes(boxed, outputs.features, inputs.image[inputs.boxed])
        boxes = _box_sums(model, prediction, inputs.box[inputs.boxed])
        outputs.terms |= {n: Terms.of(loss, inputs.boxed, BOXED) for n, loss in boxes.items()}
        summed |= boxes
        outputs.boxes = prediction.boxes
    means = mean_over_ranks(
        [loss.total for loss in summed.values()],
        [loss.number for loss in summed.values()],
        across=capacity is not None and options.means == "global",
    )
    outputs.losses |= dict(zip(summed, means, strict=True))


def _box_sums(
    model: MultiGrainModel, prediction: BoxPrediction, target: Tensor
) -> dict[str, Summed]:
    # A batch without a region still runs the head, on no rows: on several ranks every parameter
    # must take part in the exchange of gradients.
    terms = grounding_losses(prediction, target, getattr(model.box_head, "centres", None))
    return {
        f"box_{name}": Summed(term.sum(), len(target), term.detach())
        for name, term in terms.items()
    }


class PretrainingModule(nn.Module):
    """Model and objectives as one module, so that a data-parallel wrapper sees one forward."""

    def __init__(
        self, model: MultiGrainModel, options: ObjectiveConfig, capacity: Capacity | None
    ) -> None:
        super().__init__()
        self.model, self.options, self.capacity = model, options, capacity

    def forward(self, batch: ConceptBatch) -> dict[str, Tensor]:
        """The named losses, their weighted sum ``loss``, and by grain (`grain_means`)."""
        inputs = inputs_of(batch, self.model, self.options)
        outputs = run_objectives(self.model, inputs, self.options, capacity=self.capacity)
        by_grain = grain_means(outputs.terms, batch.grain, across=self.capacity is not None)
        return {**outputs.losses, **by_grain, "loss": outputs.total(self.options.weights())}
