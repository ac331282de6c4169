"""Masked language: the words that were hidden, read from the rest and from the image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_language_sum(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Cross entropy over masked tokens, and how many they are; for `mean_over_ranks`.

    Args:
        logits: (K, V) at the masked places.
        labels: (K,) ids that were hidden.
    """
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(precise, labels, reduction="sum"), len(labels)


def masked_language_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of `masked_language_sum`; 0 where nothing is masked."""
    total, count = masked_language_sum(logits, labels)
    return total / max(1, count)
