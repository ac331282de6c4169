"""Masked language: the words that were hidden, read from the rest and from the image."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def masked_language_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy, the mean over masked tokens; 0 where there is none.

    Args:
        logits: (K, V) at the masked places.
        labels: (K,) ids that were hidden.
    """
    total = F.cross_entropy(logits.float(), labels, reduction="sum")
    return total / max(1, len(labels))
