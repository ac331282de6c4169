"""The two ways of a training step, the models and the batches that they are compared on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.machine import Facts
from pretrain.config import ObjectiveConfig
from pretrain.inputs import mark_hidden
from pretrain.objective import PretrainingModule
from pretrain.reference import ReferenceModule
from wholegrain.boxes import box_mask
from wholegrain.data.batch import IMAGE, REGION, WHOLE_IMAGE, Concept, ConceptBatch, Sample, collate
from wholegrain.data.masking import MaskingConfig, Vocabulary, mask_tokens
from wholegrain.errors import ConfigError
from wholegrain.model.config import ModelConfig, SwinVision, TextConfig, VisionConfig, VitVision
from wholegrain.model.flops import StepShape
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.train.config import OptimConfig
from wholegrain.train.optim import Optimizer

REFERENCE, FAST = "reference", "fast"
ITERATIONS = ("image", "region")
SIZES = ("base", "tiny")
VISIONS = ("swin", "vit")

LENGTHS = {"image": (8, 20), "region": (3, 10)}
"""Tokens of captions and of region texts, [CLS] counted, evenly distributed."""
PADDED = 40
"""Tokens that X-VLM pads every text to."""
SLOTS = 8
"""Hidden places a text that X-VLM computes the language head at."""
IMAGES_A_TEXT = {"image": 1.0, "region": 48 / 128}
"""X-VLM's region batch is 48 images with 128 texts."""

_FIRST_WORD = 5  # ids below are special


def model_config(size: str, vision: str) -> ModelConfig:
    """`base` is X-VLM's size with its dropout and stochastic depth; `tiny` runs in milliseconds."""
    chosen: VisionConfig
    if size == "base":
        chosen = SwinVision() if vision == "swin" else VitVision(local_layers=4)
        return ModelConfig(vision=chosen)
    if vision == "swin":
        chosen = SwinVision(image_size=64, embed_dim=16, depths=(2, 2), heads=(1, 2), window=4)
    else:
        chosen = VitVision(image_size=64, patch_size=16, width=32, depth=3, heads=2, local_layers=1)
    text = TextConfig(
        vocab_size=200,
        hidden_size=32,
        layers=4,
        fusion_layer=2,
        heads=2,
        intermediate_size=64,
        max_positions=PADDED,
    )
    return ModelConfig(vision=chosen, text=text, embed_dim=16)


def make_batch(
    config: ModelConfig, iteration: str, images: int, texts: int, seed: int
) -> ConceptBatch:
    """Random photos with texts of natural length, hidden words by X-VLM's rule.

    Args:
        config: of the model.
        iteration: "image": each text is the caption of a whole image; "region": each text belongs
            to a random box.
        images: I.
        texts: C, spread evenly over the images.
        seed: the same seed gives the same batch.
    """
    rng = np.random.default_rng(seed)
    side = config.vision.image_size
    grid = _grid(config)
    samples = []
    for image in range(images):
        count = texts // images + (image < texts % images)
        pixels = torch.from_numpy(rng.integers(0, 256, (3, side, side), dtype=np.uint8))
        concepts = [_concept(config, iteration, f"{seed}/{image}/{n}", rng) for n in range(count)]
        samples.append(Sample(f"{seed}/{image}", pixels, concepts))
    return mark_hidden(collate(samples), grid, boxes=iteration == "region")


def _grid(config: ModelConfig) -> tuple[int, int]:
    vision = config.vision
    patch = vision.final_patch if isinstance(vision, SwinVision) else None
    if patch is None:
        assert isinstance(vision, VitVision)
        patch = vision.patch_size
    return vision.image_size // patch, vision.image_size // patch


def _concept(config: ModelConfig, iteration: str, text: str, rng: np.random.Generator) -> Concept:
    low, high = LENGTHS[iteration]
    length = int(rng.integers(low, high, endpoint=True))
    size = config.text.vocab_size
    ids = [2, *rng.integers(_FIRST_WORD, size, length - 1).tolist()]
    vocabulary = Vocabulary(mask_id=4, size=size)
    rules = MaskingConfig(max_masks=SLOTS)
    masked, labels = mask_tokens(ids, [True] * length, vocabulary, rules, rng)
    if iteration == "image":
        return Concept(IMAGE, WHOLE_IMAGE, text, ids, masked, labels)
    # From a tenth of a side to all of it, anywhere in the image.
    width, height = rng.uniform(0.1, 1.0, 2).tolist()
    x, y = (rng.uniform(extent / 2, 1 - extent / 2) for extent in (width, height))
    return Concept(REGION, (x, y, width, height), text, ids, masked, labels)


def shape_of(config: ModelConfig, batch: ConceptBatch) -> StepShape:
    """What the batch asks of the model, for the count of its FLOP."""
    starts = batch.cu_seqlens.long()
    visible = box_mask(batch.concept_box, _grid(config)).sum(dim=1).tolist()
    boxed = batch.extras["boxed"]
    return StepShape(
        images=batch.num_images,
        lengths=(starts[1:] - starts[:-1]).tolist(),
        hidden=batch.extras["hidden_counts"].tolist(),
        regions=[] if boxed is None else boxed.tolist(),
        visible=visible,
        whole=frozenset((batch.grain == IMAGE).nonzero().squeeze(1).tolist()),
    )


@dataclass(frozen=True)
class Setup:
    """Which model runs where, and how the fast path is built."""

    size: str = "base"
    vision: str = "swin"
    device: str = "cpu"
    compile: bool = False
    checkpoint_activations: bool = False

    def as_dict(self) -> Facts:
        """For JSON, and for another process."""
        return dict(vars(self))

    def checkpointed(self) -> Setup:
        """The same with activation checkpointing."""
        return replace(self, checkpoint_activations=True)


class Trainer:
    """Model, objectives and optimizer of one path; a call is one whole step.

    The two paths differ in `pretrain.reference` against `pretrain.objective` alone: weights,
    dropout, stochastic depth, optimizer and precision are the same.
    """

    def __init__(self, path: str, setup: Setup) -> None:
        self.path, self.device = path, torch.device(setup.device)
        self.config = model_config(setup.size, setup.vision)
        torch.manual_seed(0)
        self.model = MultiGrainModel(self.config).to(self.device).train()
        self.module: nn.Module
        if path == REFERENCE:
            self.module = ReferenceModule(self.model, ObjectiveConfig(), PADDED, SLOTS)
        else:
            if setup.checkpoint_activations:
                _hook("checkpointing", "checkpoint_blocks")(self.model)
            if setup.compile:
                _hook("compile", "compile_blocks")(self.model)
            # One process alone: nothing is gathered, so no capacity has to be agreed on.
            self.module = PretrainingModule(self.model, ObjectiveConfig(), capacity=None)
        # A rate that moves the weights but keeps random ones from running away.
        self.optimizer = Optimizer(self.model, OptimConfig(lr=1e-5, warmup=0), steps=1 << 20)
        self.steps = 0

    def step(self, batch: ConceptBatch, precision: str) -> None:
        """Forward, backward, update; `batch` is on the device."""
        self.optimizer.begin_step(self.steps)
        self.forward_backward(batch, precision)
        self.optimizer.step()
        self.steps += 1

    def forward_backward(self, batch: ConceptBatch, precision: str) -> None:
        """All losses and their gradients."""
        with autocast(self.device, precision):
            loss = self.module(batch)["loss"]
        loss.backward()

    def images_alone(self, batch: ConceptBatch, precision: str) -> None:
        """Forward and backward of the image encoder by itself."""
        with autocast(self.device, precision):
            features = self.model.encode_images(self.model.normalise_images(batch.images))
        features.patches.float().square().mean().backward()
        self.model.zero_grad(set_to_none=True)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The precision of matrix products; parameters stay fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def has_hook(module: str) -> bool:
    """Whether `wholegrain.model` has an optional part, "compile" or "checkpointing"."""
    try:
        import_module(f"wholegrain.model.{module}")
    except ModuleNotFoundError:
        return False
    return True


def _hook(module: str, function: str) -> Any:
    if not has_hook(module):
        raise ConfigError(
            f"wholegrain.model.{module} is not there, so {function} cannot be measured; "
            "leave out --compile or --checkpoint-activations"
        )
    return getattr(import_module(f"wholegrain.model.{module}"), function)
