"""What the objectives send between ranks, for the plan of a run."""

from __future__ import annotations

from pretrain.config import ObjectiveConfig
from pretrain.data import PretrainData
from wholegrain.model.config import VitVision
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.train.plan import FarNegatives, Gather


def gather_of(
    data: PretrainData, model: MultiGrainModel, options: ObjectiveConfig, world: int, nccl: bool
) -> Gather:
    """The rows that each rank sends in each part of a step.

    Args:
        data: the run's.
        model: the run's.
        options: of the objectives.
        world: ranks.
        nccl: whether ranks talk through NCCL, which returns to each rank its own gradients alone.

    Raises:
        ConfigError: something does not divide over the ranks.
    """
    capacity, config = data.capacity(world), model.config
    far = None
    if options.negatives == "global":
        height, width = model.vision.grid
        far = FarNegatives(
            images=capacity.images,
            tokens=capacity.tokens,
            text_width=config.text.hidden_size,
            patches=height * width,
            patch_width=model.vision.width,
            own_patches=isinstance(config.vision, VitVision) and config.vision.local_layers > 0,
        )
    keys = 0 if options.all_others_are_negatives else 2
    return Gather(
        capacity.concepts, config.embed_dim, keys, options.contrastive_chunk, far, scatters=nccl
    )
