"""A rank whose images lost every text still gives each parameter a gradient, of zeros."""

import pytest
import torch

from pretrain.config import ObjectiveConfig
from pretrain.foreign import Capacity
from pretrain.inputs import mark_hidden
from pretrain.objective import PretrainingModule
from tests.pretrain.test_waiting import TEXT, VISIONS, as_on_a_device
from wholegrain.data.batch import ConceptBatch, Sample, collate
from wholegrain.model import cross
from wholegrain.model.checkpointing import checkpoint_blocks
from wholegrain.model.config import ClsBoxHead, ModelConfig, PatchBoxHead
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.model.reading import reader_of


def built(kind: str) -> tuple[MultiGrainModel, ConceptBatch]:
    """A model, and two images without a concept."""
    torch.manual_seed(0)
    head = PatchBoxHead(width=8) if kind == "vit" else ClsBoxHead()
    config = ModelConfig(vision=VISIONS[kind], text=TEXT, embed_dim=8, box_head=head)
    model = MultiGrainModel(config).train()
    side = model.vision.image_size
    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    samples = [Sample(f"a/{number}", image, []) for number, image in enumerate(pixels)]
    return model, mark_hidden(collate(samples), model.vision.grid)


@pytest.mark.parametrize("negatives", ["rank", "global"])
@pytest.mark.parametrize("kind", VISIONS)
@pytest.mark.parametrize("way", ["here", "rows", "segments", "recomputed"])
def test_every_parameter_has_a_gradient_of_zeros(kind: str, negatives: str, way: str) -> None:
    model, batch = built(kind)
    if way == "recomputed":
        checkpoint_blocks(model)
    options = ObjectiveConfig(negatives=negatives)  # type: ignore[arg-type]
    module = PretrainingModule(model, options, Capacity(concepts=4, images=2, tokens=7))
    if way in ("rows", "segments"):
        with as_on_a_device(way == "segments"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(cross, "reader_of", reader_of)  # which knows what suits nothing
            losses = module(batch)
    else:
        losses = module(batch)
    assert losses["loss"].item() == 0
    losses["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert [name for name, p in model.named_parameters() if p.grad.any()] == []
