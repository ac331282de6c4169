"""Learning to ground: the box loss over expressions, and the model as the evaluation sees it."""

from __future__ import annotations

import dataclasses
import math
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
from wholegrain.model.grounding.fusion import Fused, share_of_patches
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.objectives.box import grounding_losses, over_scales
from wholegrain.objectives.gather import mean_over_ranks, whole_of_shares
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
        """The loss, its terms, and the training accuracy at IoU 0.5.

        Each is a share of the mean over the expressions of all ranks; the mean of the shares is it.
        """
        model = self.model
        ids, mask, image, target = _expressions(batch)
        images = model.normalise_images(batch.images)
        texts = model.read_texts(ids, mask)
        features, rows = model.encode_for_texts(images, texts, image)
        fused = model.fuse_texts(features, texts, rows)
        prediction = model.answer(fused, features, rows)
        terms = grounding_losses(prediction, target, getattr(model.box_head, "centres", None))
        number = batch.num_concepts
        weights = {name: float(getattr(self.weights, name)) for name in terms}
        overlap = iou(cxcywh_to_xyxy(prediction.boxes.detach()), cxcywh_to_xyxy(target))
        per_text = {f"box_{name}": over_scales(term) for name, term in terms.items()}
        per_text["acc@0.5"] = (overlap >= 0.5).float()
        figures: dict[str, Tensor] = {}
        if self.paced is None:
            weighed = [weights[name] * per_text[f"box_{name}"] for name in terms]
            per_text["loss"] = torch.stack(weighed).sum(dim=0)
        else:
            paced = self.paced(terms, weights)
            per_text["loss"] = paced.per_sample
            # What is not finite is left out of the means that are reported.
            left_out = 0.0 if number else math.nan
            figures = {f"self_paced/{name}": v + left_out for name, v in paced.figures.items()}
        if fused.gates is not None:
            per_text["gates"] = share_of_patches(fused.gates)
        if fused.kept is not None:
            per_text["kept"] = share_of_patches(fused.kept.detach())
        # Ranks have different numbers of expressions, and each expression counts alike.
        sums = [values.sum() if number else 0 * values.sum() for values in per_text.values()]
        means = mean_over_ranks(sums, [number] * len(sums))
        losses = dict(zip(per_text, means, strict=True))
        gates = losses.pop("gates", None)
        if gates is not None and self.weights.budget:
            read = whole_of_shares(gates)
            losses["budget"] = (read - self.weights.budget_share).square()
            losses["loss"] = losses["loss"] + self.weights.budget * losses["budget"]
        return losses | figures


def _expressions(batch: ConceptBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids and mask (T, L), rows of images (T,) and boxes (T, 4).

    Photos without any expression give one that is none: on several ranks every pass, and every
    parameter in it, must be there, and what it costs is multiplied by 0.
    """
    if batch.num_concepts:
        ids, mask, _, _ = batch.padded()
        return ids, mask, batch.concept_image, batch.concept_box
    ids = batch.tokens.new_full((1, 1), batch.pad_id)
    whole = batch.concept_box.new_tensor([[0.5, 0.5, 1.0, 1.0]])
    return ids, ids == ids, torch.zeros_like(ids[0]), whole


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
            pin_memory=torch.cuda.is_initialized(),
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
        ids, mask = batch.encode_texts(tokenizer, max_tokens)
        ids, mask = ids.to(device), mask.to(device)
        images = model.normalise_images(batch.images.to(device))
        texts = model.read_texts(ids, mask)
        features, rows = model.encode_for_texts(images, texts, batch.image_index.to(device))
        prediction, scores, fused = model.ground_encoded(features, texts, rows)
        if on_fused is not None:
            on_fused(fused)
        return batch.to_pixels(prediction.boxes), scores.float().cpu()

    return predict
