"""Learning adapters from a few images a class: a plain loop of SGD.

The loop of the other stages is AdamW's, with checkpoints, ranks and resuming in mid-epoch. A run
here is minutes and a few hundred steps of a recipe that depends on SGD (the adapters' gradients are
scaled for it), so that what is interrupted is simply done again: what is finished is kept by the
cells of a run, see `finetune.shots.cells`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import get_total_norm

from finetune.shots.config import SgdConfig
from finetune.shots.hosts import Encoders
from finetune.shots.images import batches, fixed_view, random_view
from finetune.shots.sets import Item
from wholegrain.data.permutation import keyed_rng
from wholegrain.errors import WholegrainError


@dataclass(frozen=True)
class Score:
    """Right answers among test images."""

    correct: int
    count: int

    @property
    def percent(self) -> float:
        """Accuracy in percent."""
        return 100 * self.correct / self.count


@dataclass(frozen=True)
class Lesson:
    """What is learnt from."""

    name: str
    """Of the set; it keys order and views."""
    folder: Path
    """What the items' paths are relative to."""
    items: tuple[Item, ...]
    prompts: Sequence[str]
    """One a class, by label."""
    batch_size: int
    workers: int


def learn(encoders: Encoders, lesson: Lesson, optim: SgdConfig, seed: int) -> list[float]:
    """Trains the adapters by cross entropy of ``scale * cos(image, class texts)``.

    Order and views are functions of the set's name, the seed and the epoch.

    Args:
        encoders: with fresh adapters, which alone change.
        lesson: images and class texts; all texts are encoded in each step, since the adapters of
            the text encoder learn as well.
        optim: rates and length.
        seed: of order and views.

    Returns:
        The mean loss of each epoch.

    Raises:
        WholegrainError: the loss or its gradient is not finite.
        DataError: an image cannot be read.
    """
    encoders.adapters.requires_grad_(True)
    parameters = list(encoders.adapters.parameters())
    sgd = torch.optim.SGD(
        parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
    )
    texts = encoders.tokens(lesson.prompts)
    labels = torch.tensor([item.label for item in lesson.items])
    losses: list[float] = []
    for epoch in range(optim.epochs):
        for group in sgd.param_groups:
            group["lr"] = learning_rate(optim, epoch)
        plan = epoch_plan(len(lesson.items), lesson.batch_size, (lesson.name, seed, epoch))

        def load(position: int, epoch: int = epoch) -> Tensor:
            path = lesson.folder / lesson.items[position].path
            key = (lesson.name, seed, epoch, position)
            return random_view(path, encoders.resolution, key)

        # Kept on the device until the epoch's end: no step waits for the host.
        seen = []
        for positions, pixels in zip(plan, batches(load, plan, lesson.workers), strict=True):
            target = labels[positions].to(encoders.device)
            seen.append(_step(encoders, sgd, parameters, pixels, texts, target))
        loss, norm = torch.stack(seen).unbind(dim=1)
        _check_finite(lesson.name, seed, epoch, optim, loss, norm)
        losses.append(float(loss.mean()))
    return losses


def _step(
    encoders: Encoders,
    sgd: torch.optim.SGD,
    parameters: list[nn.Parameter],
    pixels: Tensor,
    texts: tuple[Tensor, Tensor],
    target: Tensor,
) -> Tensor:
    """One update; (2,) loss and gradient norm."""
    logits = encoders.scale * encoders.image_vectors(pixels) @ encoders.text_vectors(texts).T
    loss = F.cross_entropy(logits, target)
    sgd.zero_grad(set_to_none=True)
    loss.backward()
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    sgd.step()
    return torch.stack([loss.detach(), norm])


def learning_rate(optim: SgdConfig, epoch: int) -> float:
    """``lr (1 + cos(pi e / E)) / 2`` of epoch e = 0 .. E - 1, constant within it."""
    return optim.lr * 0.5 * (1 + math.cos(math.pi * epoch / optim.epochs))


def epoch_plan(count: int, batch_size: int, key: Sequence[int | str]) -> list[list[int]]:
    """Positions 0 .. count - 1 of each batch, in an order that the key decides.

    The last ones that do not fill a batch are left out; where there are fewer than a batch in all,
    they are the batch.
    """
    order: list[int] = keyed_rng("few-shot order", *key).permutation(count).tolist()
    if count < batch_size:
        return [order]
    whole = count - count % batch_size
    return [order[first : first + batch_size] for first in range(0, whole, batch_size)]


def _check_finite(
    name: str, seed: int, epoch: int, optim: SgdConfig, loss: Tensor, norm: Tensor
) -> None:
    finite = (loss.isfinite() & norm.isfinite()).tolist()
    if not all(finite):
        raise WholegrainError(
            f"{name}, seed {seed}: the loss or its gradient is not finite from step "
            f"{finite.index(False) + 1} of epoch {epoch + 1} on; lower optim.lr (now "
            f"{optim.lr:g}) or adapter.alpha"
        )


@torch.inference_mode()
def accuracy(
    encoders: Encoders,
    folder: Path,
    items: Sequence[Item],
    prompts: Sequence[str],
    batch_size: int,
    workers: int,
) -> Score:
    """Counts the images whose highest cosine is with the text of their own class.

    The class texts are encoded once, by the weights there are now.

    Args:
        encoders: with or without adapters.
        folder: what the items' paths are relative to.
        items: with labels into `prompts`.
        prompts: one a class; no other class can be answered.
        batch_size: images encoded together.
        workers: threads that decode.

    Raises:
        DataError: an image cannot be read.
    """
    texts = encoders.text_vectors(encoders.tokens(prompts))
    starts = range(0, len(items), batch_size)
    plan = [range(first, min(first + batch_size, len(items))) for first in starts]

    def load(position: int) -> Tensor:
        path = folder / items[position].path
        return fixed_view(path, encoders.resolution, encoders.squeezes)

    labels = torch.tensor([item.label for item in items])
    correct = torch.zeros((), dtype=torch.long, device=encoders.device)
    for positions, pixels in zip(plan, batches(load, plan, workers), strict=True):
        answers = (encoders.image_vectors(pixels) @ texts.T).argmax(dim=1)
        target = labels[positions.start : positions.stop].to(encoders.device)
        correct += (answers == target).sum()
    return Score(int(correct), len(items))
