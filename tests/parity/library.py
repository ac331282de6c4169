"""The library's answers to a reference folder's batches, by the reference's names.

Everything that these tests use of the library's internals is here and in `sizes`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pretrain.config import ObjectiveConfig
from pretrain.inputs import ConceptInputs, Hidden
from pretrain.objective import run_objectives
from tests.parity.folders import Folder
from tests.parity.sizes import model_configs
from wholegrain.hub.xvlm_file import read_xvlm
from wholegrain.hub.xvlm_names import VISION, from_xvlm, vision_part
from wholegrain.model import reference_vision
from wholegrain.model.concepts import whole_images
from wholegrain.model.config import ModelConfig, VisionConfig
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.packing import Packing
from wholegrain.model.vision import VisionEncoder, build_vision
from wholegrain.objectives.matching import Negatives, negative_weights

LOSSES = {
    "loss_itc": "contrastive",
    "loss_itm": "matching",
    "loss_mlm": "masked_language",
    "loss_bbox": "box_l1",
    "loss_giou": "box_giou",
}
OPTIONS = ObjectiveConfig(all_others_are_negatives=True)
Draws = tuple[Tensor, Tensor]


@dataclass
class Answer:
    """What the library makes of one batch."""

    values: dict[str, Tensor]
    """By the names of ``expected.safetensors``, losses aside. Text states hold at tokens alone."""
    losses: dict[str, Tensor]
    """By the reference's names, those alone that a batch of its kind has."""

    def total(self) -> Tensor:
        """Their sum."""
        return torch.stack(list(self.losses.values())).sum()


def config_of(folder: Folder) -> ModelConfig:
    """The configuration of a folder's checkpoint: the first that sees images as the reference."""
    configs = list(model_configs(folder))
    if len(configs) == 1:
        return configs[0]
    state = vision_part(read_xvlm(folder.checkpoint()))
    for config in configs:
        if _distance(folder, config, state) < 1e-4:
            return config
    raise AssertionError(f"{folder.path}: no number of heads and local layers fits its images")


def load(folder: Folder, config: ModelConfig) -> MultiGrainModel:
    """The model of a folder's checkpoint, in evaluation mode."""
    model = MultiGrainModel(config).eval()
    state = from_xvlm(read_xvlm(folder.checkpoint()), config.text.fusion_layer)
    model.load_state_dict(state, strict=True)
    return model


@torch.no_grad()
def _distance(folder: Folder, config: ModelConfig, state: dict[str, Tensor]) -> float:
    """How far the image sequences are from the reference's, relative to their scale."""
    named = {f"{VISION}{name}": tensor for name, tensor in state.items()}
    encoder = build_vision(config.vision).eval()
    ours = from_xvlm(named, config.text.fusion_layer)
    encoder.load_state_dict({n.removeprefix("vision."): t for n, t in ours.items()}, strict=True)
    worst = 0.0
    for kind in folder.kinds():
        expected = folder.expected(kind)["image_embeds"]
        inputs = inputs_of(encoder.grid, folder.batch(kind))
        found = _slow_sequences(encoder, config.vision, inputs)["image_embeds"]
        worst = max(worst, ((found - expected).abs().max() / expected.abs().max()).item())
    return worst


def inputs_of(grid: tuple[int, int], batch: dict[str, Tensor]) -> ConceptInputs:
    """A batch as the objectives read it; what it leaves out is what a batch of images implies."""
    mask = batch["text_atts"].bool()
    count = len(mask)
    shown = torch.ones(count, grid[0] * grid[1], dtype=torch.bool)
    if "image_atts" in batch:
        shown = batch["image_atts"][:, 1:].bool()
    box, boxed = torch.zeros(count, 4), None
    if "target_bbox" in batch:
        box = batch["target_bbox"]
        boxed = (batch.get("is_image", torch.zeros(count)) == 0).nonzero().squeeze(1)
    labels = batch["masked_ids"]
    row, slot = (labels != -100).nonzero(as_tuple=True)
    counts = (labels != -100).sum(dim=1)
    return ConceptInputs(
        images=batch["image"],
        image=batch.get("idx_to_group_img", torch.arange(count)).long(),
        mask=shown,
        box=box,
        tokens=batch["text_ids"][mask],
        masked_tokens=batch["text_ids_masked"][mask],
        texts=Packing.of_mask(mask)[0],
        hidden=Hidden(
            row, batch["masked_pos"][row, slot], labels[row, slot], counts, int(counts.max())
        ),
        boxed=boxed,
        boxed_tokens=0 if boxed is None else int(mask[boxed].sum()),
    )


def _negatives(draws: Draws) -> Negatives:
    image, text = (each.long() for each in draws)
    return Negatives(image, text, torch.ones_like(image, dtype=torch.bool))


def answer(model: MultiGrainModel, batch: dict[str, Tensor], draws: Draws) -> Answer:
    """Runs the objectives over a batch with given negatives: images for texts, texts for images."""
    inputs = inputs_of(model.vision.grid, batch)
    out = run_objectives(model, inputs, OPTIONS, _negatives(draws))
    count = len(inputs.texts)
    values = {
        "image_embeds": out.concepts.sequence(),
        "text_embeds": inputs.texts.unpack(out.text_states),
        "image_feat": out.image_vector,
        "text_feat": out.text_vector,
        "itm_logits_pos": out.match_logits[:count],
        "itm_logits_neg": out.match_logits[count:],
        "mlm_logits": out.token_logits,
        **weights(model, out.image_vector, out.text_vector),
    }
    names = {theirs: ours for theirs, ours in LOSSES.items() if ours in out.losses}
    return Answer(values, {theirs: out.losses[ours] for theirs, ours in names.items()})


def weights(model: MultiGrainModel, image: Tensor, text: Tensor) -> dict[str, Tensor]:
    """Weights that negatives are drawn in proportion to, for unit vectors of images and texts."""
    with torch.no_grad():
        similarity = image @ text.T / model.temperature
        own = torch.eye(len(similarity), dtype=torch.bool)
        return {
            "weights_i2t": negative_weights(similarity, own),
            "weights_t2i": negative_weights(similarity.T, own),
        }


@torch.no_grad()
def more(model: MultiGrainModel, batch: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
    """Values that the objectives leave out because nothing in training reads them.

    Whole images of a batch of regions; boxes of every text, whole captions included; the fused
    states of positive pairs at every token.
    """
    inputs = inputs_of(model.vision.grid, batch)
    features = model.encode_images(inputs.images)
    memory = model.memory(model.vision.concepts(features, inputs.image, inputs.mask))
    own = torch.arange(len(inputs.texts))
    states = model.encode_packed(inputs.tokens, inputs.texts)
    fused = model.fuse(inputs.texts.unpack(states), batch["text_atts"].bool(), memory, own)
    values = {
        "image_embeds_full": whole_images(features).sequence()[inputs.image],
        "cross_embeds_pos": fused,
    }
    if inputs.boxed is not None:
        every = replace(inputs, boxed=own, boxed_tokens=len(inputs.tokens))
        values["output_coord"] = run_objectives(model, every, OPTIONS, _negatives(draws)).boxes
    return values


@torch.no_grad()
def slow_sequences(model: MultiGrainModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Image sequences of the library's slow reference, which keeps patches outside of regions."""
    inputs = inputs_of(model.vision.grid, batch)
    return _slow_sequences(model.vision, model.config.vision, inputs)


def _slow_sequences(
    encoder: VisionEncoder, config: VisionConfig, inputs: ConceptInputs
) -> dict[str, Tensor]:
    features = reference_vision.encode_images(encoder, config, inputs.images)
    return {
        "image_embeds": reference_vision.concept_sequences(
            encoder, config, features, inputs.image, inputs.mask
        ),
        "image_embeds_full": whole_images(features).sequence()[inputs.image],
    }


@torch.no_grad()
def drawn(model: MultiGrainModel, batch: dict[str, Tensor], seed: int) -> Draws:
    """Repeats the reference's draws: all images first, then all texts, one row at a time."""
    inputs = inputs_of(model.vision.grid, batch)
    features = model.encode_images(inputs.images)
    image = model.image_vector(model.vision.concepts(features, inputs.image, inputs.mask).cls)
    states = model.encode_packed(inputs.tokens, inputs.texts)
    found = weights(model, image, model.text_vector(states[inputs.texts.starts]))
    torch.manual_seed(seed)
    images = torch.cat([torch.multinomial(row, 1) for row in found["weights_t2i"]])
    texts = torch.cat([torch.multinomial(row, 1) for row in found["weights_i2t"]])
    return images, texts
