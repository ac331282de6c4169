"""Matching: does this text belong to this concept? Negatives are the hard ones of the batch.

X-VLM's ITM (Li et al. 2021, ALBEF): for each text a concept, and for each concept a text, is drawn
in proportion to ``softmax(similarity / tau) + 1e-5``, never its own partner.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_FLOOR = 1e-5  # keeps a draw possible when the softmax underflows


class Negatives(NamedTuple):
    """Hard negatives of C pairs."""

    image: Tensor
    """(C,) a concept that does not belong to text i."""
    text: Tensor
    """(C,) a text that does not belong to concept i."""
    valid: Tensor
    """bool (C,): False where the batch offers no negative; those rows count for nothing."""


def negative_weights(similarity: Tensor, blocked: Tensor) -> Tensor:
    """Unnormalised probabilities (C, C) of drawing column j as the negative of row i.

    Args:
        similarity: (C, C) similarities over temperature, in fp32.
        blocked: bool (C, C), True where j is no negative of i.
    """
    return (similarity.softmax(dim=1) + _FLOOR).masked_fill(blocked, 0.0)


def draw_negatives(
    image: Tensor,
    text: Tensor,
    temperature: Tensor,
    image_key: Tensor | None = None,
    text_key: Tensor | None = None,
) -> Negatives:
    """Draws negatives on the device, without a look at the host.

    Args:
        image, text: unit vectors (C, E).
        temperature: scalar.
        image_key, text_key: (C,) equal where two concepts are of one image, or two texts are one;
            those are no negatives of each other.
    """
    with torch.no_grad():
        blocked = torch.eye(len(image), dtype=torch.bool, device=image.device)
        for key in (image_key, text_key):
            if key is not None:
                blocked = blocked | (key[:, None] == key[None])
        similarity = image.float() @ text.float().T / temperature.float()
        valid = ~blocked.all(dim=1)
        # A row without any negative draws itself, and is not counted.
        alone = torch.eye(len(image), dtype=torch.bool, device=image.device) & ~valid[:, None]
        to_image = negative_weights(similarity.T, blocked).masked_fill(alone, 1.0)
        to_text = negative_weights(similarity, blocked).masked_fill(alone, 1.0)
        return Negatives(
            image=torch.multinomial(to_image, 1).squeeze(1),
            text=torch.multinomial(to_text, 1).squeeze(1),
            valid=valid,
        )


def matching_loss(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """Cross entropy of C positives, then C pairs with a foreign image, then C with a foreign text.

    Args:
        logits: (3 C, 2) in that order; class 1 is a match.
        valid: bool (C,), whose negatives count; None counts all.
    """
    count = len(logits) // 3
    labels = torch.zeros(3 * count, dtype=torch.long, device=logits.device)
    labels[:count] = 1
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    if valid is None:
        return losses.mean()
    weight = torch.cat([torch.ones_like(valid), valid, valid]).to(losses.dtype)
    return (losses * weight).sum() / weight.sum()
