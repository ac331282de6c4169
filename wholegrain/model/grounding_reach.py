"""Which weights learning to ground can reach: found by a pass on tensors without values.

Which parts a box depends on follows from the fusion, the head and the adapters together: CA2M reads
maps and no patches, the cross encoder patches and no maps. On several ranks every parameter that
learns must take part in each step, so what no box depends on has to stay as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wholegrain.model.grounding.records import TextStates
from wholegrain.model.multigrain import MultiGrainModel


@torch.enable_grad()
def unreached(model: MultiGrainModel) -> set[str]:
    """Names of the parameters that no box, vote or expected IoU of a model depends on.

    Args:
        model: which of its parameters learn makes no difference; it is only looked at.
    """
    twin = valueless_twin(model)
    twin.requires_grad_(True)
    texts = blank_text(twin, tokens=2)
    first = torch.zeros(1, dtype=torch.long, device="meta")
    features, rows = twin.encode_for_texts(blank_images(twin, 1), texts, first)
    found = twin.answer(twin.fuse_texts(features, texts, rows), features, rows)
    answers: list[Tensor] = []
    for scale in found.by_scale or (found,):
        given = (scale.boxes, scale.votes, scale.proposals, scale.quality)
        answers += [part.sum() for part in given if part is not None]
    torch.stack(answers).sum().backward()
    return {name for name, parameter in twin.named_parameters() if parameter.grad is None}


def valueless_twin(model: MultiGrainModel) -> MultiGrainModel:
    """A model of the same configuration on the meta device; the same parameters learn in it."""
    with torch.device("meta"):
        twin = MultiGrainModel(model.config).eval()
    if twin.fusion is not None:
        twin.fusion.train()  # in evaluation its work may depend on what it sees
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(learns[name])
    return twin


def blank_images(model: MultiGrainModel, images: int) -> Tensor:
    """Images (images, 3, R, R) without values."""
    side = model.config.vision.image_size
    return torch.zeros(images, 3, side, side, device="meta")


def blank_text(model: MultiGrainModel, tokens: int) -> TextStates:
    """One text of so many tokens without values, encoded."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    return model.read_texts(ids, torch.ones(1, tokens, dtype=torch.bool, device="meta"))
