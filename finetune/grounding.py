"""Learning to ground: the box loss over expressions, and the model as the evaluation sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from finetune.config import BoxLossConfig, FinetuneConfig
from finetune.evaluation import EvalBatch, Predict
from wholegrain.boxes import cxcywh_to_xyxy, iou
from wholegrain.data.batch import ConceptBatch
from wholegrain.data.corpus import Corpus
from wholegrain.data.sampling import ConceptSampling
from wholegrain.data.skips import SkipLedger
from wholegrain.data.stream import Source, Stream
from wholegrain.model.grounding.fusion import Fused
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.objectives.box import grounding_losses
from wholegrain.objectives.self_paced import SelfPaced
from wholegrain.text import Tokenizer


class GroundingModule(nn.Module):
    """Model and box loss as one module."""

    def __init__(self, model: MultiGrainModel, weights: BoxLossConfig) -> None:
        super().__init__()
        self.model, self.weights = model, weights
        self.paced = None if weights.self_paced is None else SelfPaced(weights.self_paced)

    def train(self, mode: bool = True) -> GroundingModule:
        """Training mode, but a frozen batch norm keeps its statistics: they are weights too."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(
                parameter.requires_grad for parameter in module.parameters(recurse=False)
            ):
                module.eval()
        return self

    def forward(self, batch: ConceptBatch) -> dict[str, Tensor]:
        """The loss, its terms, and the training accuracy at IoU 0.5."""
        model = self.model
        ids, mask, _, _ = batch.padded()
        images = model.normalise_images(batch.images)
        texts = model.read_texts(ids, mask)
        features, rows = model.encode_for_texts(images, texts, batch.concept_image)
        fused = model.fuse_texts(features, texts, rows)
        prediction = model.answer(fused, features, rows)
        target = batch.concept_box
        terms = grounding_losses(prediction, target, getattr(model.box_head, "centres", None))
        losses = {f"box_{name}": _sum(term).mean() for name, term in terms.items()}
        weights = {name: float(getattr(self.weights, name)) for name in terms}
        if self.paced is None:
            weighed = [weights[name] * losses[f"box_{name}"] for name in terms]
            loss = torch.stack(weighed).sum()
        else:
            paced = self.paced(terms, weights)
            loss = paced.per_sample.mean()
            losses |= {f"self_paced/{name}": figure for name, figure in paced.figures.items()}
        if self.weights.budget and fused.gates is not None:
            losses["budget"] = (fused.gates.mean() - self.weights.budget_share).square()
            loss = loss + self.weights.budget * losses["budget"]
        if fused.kept is not None:
            losses["kept"] = fused.kept.detach().mean()
        overlap = iou(cxcywh_to_xyxy(prediction.boxes.detach()), cxcywh_to_xyxy(target))
        return {**losses, "acc@0.5": (overlap >= 0.5).float().mean(), "loss": loss}


def _sum(term: Tensor) -> Tensor:
    """(T,) of a term (T,) or, summed over scales, (T, S)."""
    return term.reshape(len(term), -1).sum(dim=1)


def training_stream(
    config: FinetuneConfig,
    corpus: Corpus,
    model: MultiGrainModel,
    tokenizer: Tokenizer,
    ledgers: list[SkipLedger] | None = None,
) -> Callable[[int, int, int, int], Iterator[ConceptBatch]]:
    """Batches of images with some of their expressions: ``stream(start, stop, rank, world)``.

    Each stream that is opened adds its ledger of bad samples to `ledgers`.
    """
    data, run = config.data, config.run
    sampling = ConceptSampling(
        captions_per_image=0,
        max_regions=data.expressions_per_image,
        max_objects=0,
        max_tokens=data.max_tokens,
    )
    augment = dataclasses.replace(data.augment, resolution=model.config.vision.image_size)

    def stream(start: int, stop: int, rank: int, world: int) -> Iterator[ConceptBatch]:
        source = Source("data.train", corpus, run.batch_size // run.accumulation)
        opened = Stream(
            [source],
            seed=run.seed,
            tokenizer=tokenizer,
            augment=augment,
            sampling=sampling,
            rank=rank,
            world=world,
            start_step=start,
            stop_step=stop,
            workers=data.workers,
            skips=data.skips,
        )
        if ledgers is not None:
            ledgers.append(opened.ledger)
        return iter(opened)

    return stream


def predictor(
    model: MultiGrainModel,
    tokenizer: Tokenizer,
    max_tokens: int,
    device: torch.device,
    on_fused: Callable[[Fused], None] | None = None,
) -> Predict:
    """The model as a function of an evaluation batch.

    Args:
        model, tokenizer, max_tokens, device: what answers, and where.
        on_fused: is shown the fused texts of each batch.
    """

    def predict(batch: EvalBatch) -> tuple[Tensor, Tensor]:
        model.eval()
        ids, mask = tokenizer.encode_batch(batch.texts, max_tokens)
        ids, mask = ids.to(device), mask.to(device)
        images = model.normalise_images(batch.images.to(device))
        texts = model.read_texts(ids, mask)
        features, rows = model.encode_for_texts(images, texts, batch.image_index.to(device))
        prediction, scores, fused = model.ground_encoded(features, texts, rows)
        if on_fused is not None:
            on_fused(fused)
        return batch.to_pixels(prediction.boxes), scores.float().cpu()

    return predict
