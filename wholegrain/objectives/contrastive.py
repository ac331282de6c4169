"""Contrastive loss between concepts and texts, over the batches of all ranks.

X-VLM's ITC: with unit vectors v, t and temperature tau, the mean of the cross entropies of
``v t' / tau`` row by row and ``t v' / tau`` row by row, the partner on the diagonal being the
class. Or SigLIP's (Zhai et al. 2023): every pair for itself, a partner or not.

Each rank takes its own rows against the columns of all ranks: local x global similarities, of which
not even all need be there at a time.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from wholegrain.objectives.gather import GatheredConcepts, gather_concepts, world

__all__ = ["contrastive_loss", "world"]

Form = Literal["softmax", "sigmoid"]
GradientScale = Literal["exact", "xvlm"]


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    temperature: Tensor,
    *,
    image_key: Tensor | None = None,
    text_key: Tensor | None = None,
    capacity: int | None = None,
    everyone: GatheredConcepts | None = None,
    form: Form = "softmax",
    bias: Tensor | None = None,
    gradient: GradientScale = "exact",
    chunk: int | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """The mean loss of this rank's rows against the concepts of all ranks, in fp32 at least.

    softmax: ``(CE(v t' / tau) + CE(t v' / tau)) / 2``, the mean over rows. A row whose columns are
    all left out but its partner costs 0.

    sigmoid: ``sum_j -log sigmoid(z_ij (v_i t_j' / tau + bias))``, z = 1 for partners and -1
    otherwise, pairs that are left out not counted; the mean over rows i.

    Args:
        image, text: unit vectors (C, E), row i of one belongs to row i of the other. C may differ
            between ranks and be 0.
        temperature: scalar, positive.
        image_key: (C,) int64 that tells images apart. Concepts of one image are then not each
            other's negatives.
        text_key: (C,) int64 that tells texts apart. Equal texts likewise.
        capacity: at least the largest C of any rank; None compares within this rank alone.
        everyone: what `gather_concepts` gave for these vectors and keys, where it is needed
            elsewhere too; `capacity` and the keys are then not read.
        form: how pairs compete.
        bias: scalar, of the sigmoid form; None is 0.
        gradient: `exact`, or `xvlm`: X-VLM never adds up what other ranks ask of a vector, so that
            after averaging over W ranks the vectors' gradient is 1/W of the exact one, while the
            temperature's is exact.
        chunk: similarities of at most so many rows are held at a time; None holds those of all C.
            The gradient is taken in the same sweep, so that neither way keeps any for backward,
            nor computes any twice.
        rows: (C,) that is filled with the loss of each row, whose mean is the loss of this rank's
            rows; it carries no gradient.

    Returns:
        Scalar whose mean over ranks is the loss of the whole batch, also where ranks hold different
        numbers of concepts: the sum over own rows, times W, over the number of rows of all ranks.

    Raises:
        ValueError: there are more concepts than `capacity`, or a bias with softmax, which knows
            none.
    """
    if form == "softmax" and bias is not None:
        raise ValueError("the softmax form has no bias: it would cancel; leave it out")
    with torch.autocast(image.device.type, enabled=False):
        if everyone is None:
            everyone = gather_concepts(image, text, image_key, text_key, capacity)
        dtype, count = everyone.image.dtype, len(image)
        vectors = [image.to(dtype), text.to(dtype), everyone.image, everyone.text]
        if gradient == "xvlm" and everyone.ranks > 1:
            vectors = [_ScaleGradient.apply(each, 1 / everyone.ranks) for each in vectors]
        numbers = [temperature.to(dtype)] + ([] if bias is None else [bias.to(dtype)])
        step = max(1, count) if chunk is None else chunk
        differentiable = torch.is_grad_enabled()
        total: Tensor
        total, each_row = _LocalLoss.apply(everyone, form, step, differentiable, *vectors, *numbers)
        if rows is not None:
            rows.copy_(each_row / len(_SIDES[form]))
        share = everyone.ranks / everyone.total().clamp(min=1).to(dtype)
        return total * share / len(_SIDES[form])


# Which rows are compared with which columns, as places in [image, text, images, texts].
_SIDES: dict[Form, tuple[tuple[int, int], ...]] = {
    "softmax": ((0, 3), (1, 2)),
    "sigmoid": ((0, 3),),
}


class _LocalLoss(torch.autograd.Function):
    """The loss summed over this rank's rows, and of each row; its gradient, some rows at a time.

    The gradient is taken while the similarities are there. Besides memory this keeps its precision
    in one place: backward may run under autocast and would then take products in half precision.
    """

    @staticmethod
    def forward(
        ctx: Any,
        everyone: GatheredConcepts,
        form: Form,
        step: int,
        differentiable: bool,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        numbers = [each.detach().requires_grad_() for each in inputs[4:]]
        gradients = [torch.zeros_like(each) if differentiable else None for each in inputs]
        count = len(inputs[0])
        total, each_row = inputs[0].new_zeros(()), inputs[0].new_zeros(count)
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            own = everyone.first + torch.arange(part.start, part.stop, device=total.device)
            for side in _SIDES[form]:
                rows, columns = (inputs[place].detach() for place in side)
                leaves = [rows[part].requires_grad_(), columns.requires_grad_(), *numbers]
                with torch.set_grad_enabled(differentiable):
                    loss, terms = _sum(everyone, form, own, *leaves)
                total += loss.detach()
                each_row[part] += terms
                if differentiable:
                    found = torch.autograd.grad(loss, leaves)
                    for place, each in zip((*side, 4, 5), found, strict=False):
                        gradient = gradients[place]
                        assert gradient is not None
                        (gradient[part] if place == side[0] else gradient).add_(each)
                del loss
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(each_row)
        return total, each_row

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *asked: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, *(asked[0] * each for each in ctx.saved_tensors)


def _sum(
    everyone: GatheredConcepts,
    form: Form,
    own: Tensor,
    rows: Tensor,
    columns: Tensor,
    temperature: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss summed over some rows (R, E) with gathered indices `own`, against columns (N, E).

    And of each row (R,), without gradient.
    """
    blocked = everyone.blocked(own, partner=False)
    # The temperature goes to the small factor: else autograd would keep the undivided similarities.
    scaled = rows / temperature
    logits = scaled @ columns.T
    if bias is not None:
        logits += bias
    logits.masked_fill_(blocked, float("-inf"))
    if form == "softmax":
        # What `cross_entropy` does, in two steps: the rows then cost no second look at (R, N).
        scores = logits.log_softmax(dim=1)
        terms = -scores.detach().gather(1, own[:, None]).squeeze(1)
        return F.nll_loss(scores, own, reduction="sum"), terms
    partner = (scaled * columns.index_select(0, own)).sum(dim=1)
    if bias is not None:
        partner = partner + bias
    scores = F.logsigmoid(logits.neg_().scatter_(1, own[:, None], partner[:, None]))
    return -scores.sum(), -scores.detach().sum(dim=1)


class _ScaleGradient(torch.autograd.Function):
    """The same values; their gradient times a number."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None
