"""Masked language: the words that were hidden, read from the rest and from the image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from wholegrain.objectives.gather import Summed


def masked_language_sum(logits: Tensor, labels: Tensor) -> Summed:
    """Cross entropy over the K masked tokens, and its terms (K,).

    Args:
        logits: (K, V) at the masked places.
        labels: (K,) ids that were hidden.
    """
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # What `cross_entropy` does, in two steps: the terms then cost no second look at (K, V).
    scores = precise.log_softmax(dim=1)
    terms = -scores.detach().gather(1, labels[:, None]).squeeze(1)
    return Summed(F.nll_loss(scores, labels, reduction="sum"), len(labels), terms)


def masked_language_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of `masked_language_sum`; 0 where nothing is masked."""
    summed = masked_language_sum(logits, labels)
    return summed.total / max(1, len(labels))
