"""The multimodal condition of MMCA: from an image's states and a text to coefficients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from wholegrain.model.adapters.places import Places
from wholegrain.model.config import MmcaConfig
from wholegrain.model.grounding.records import TextStates


class Condition:
    """What the running pass of the image encoder is conditioned on; one a model, for all adapters.

    A pass that is computed again for its backward (activation checkpointing) takes it from `again`.
    """

    def __init__(self) -> None:
        self.text: Tensor | None = None
        """(T, D) mean text states, one a row of the conditioned pass; None leaves the host be."""
        self.image: Tensor | None = None
        """(T,) image of each text."""
        self.image_mask: Tensor | None = None
        """bool (I, H, W) of pixels that are photo rather than padding; None where all are."""
        self.shares: Tensor | None = None
        """(T, N) what each state of a layer counts for, where a fusion says it; else None."""

    @contextmanager
    def on(self, texts: TextStates, image: Tensor, image_mask: Tensor | None) -> Iterator[None]:
        """Within the block, adapted blocks work for these texts, one row each.

        Args:
            texts: T texts.
            image: (T,) the image of each text.
            image_mask: bool (I, H, W), False at padding; None where nothing is padded.
        """
        with self._holding(mean_text(texts.states, texts.mask), image, image_mask, None):
            yield

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the block, what runs through the blocks is no image of a text."""
        with self._holding(None, None, None, None):
            yield

    @contextmanager
    def counting(self, shares: Tensor) -> Iterator[None]:
        """Within the block, state n of text t stands for `shares[t, n]` (T, N) places."""
        with self._holding(self.text, self.image, self.image_mask, shares):
            yield

    def again(self) -> AbstractContextManager[None]:
        """A block in which everything is as it is now, to be entered at any later time."""
        return self._holding(self.text, self.image, self.image_mask, self.shares)

    @contextmanager
    def _holding(
        self,
        text: Tensor | None,
        image: Tensor | None,
        image_mask: Tensor | None,
        shares: Tensor | None,
    ) -> Iterator[None]:
        before = self.text, self.image, self.image_mask, self.shares
        self.text, self.image, self.image_mask, self.shares = text, image, image_mask, shares
        try:
            yield
        finally:
            self.text, self.image, self.image_mask, self.shares = before

    def spread(self, states: Tensor) -> Tensor:
        """One row a text from one row an image; called by the first adapted block."""
        return states if self.image is None else states[self.image]

    def weights(self, places: Places) -> Tensor | None:
        """Share (T, N) of each place that is photo, for pooling; None where all of all is.

        The mask is resampled to the grid at hand, so any resolution and any stage is right.
        """
        if self.shares is not None:
            return self.shares
        if self.image is None or (self.image_mask is None and places.all_real):
            return None
        if self.image_mask is None:
            return places.order(self.image.new_ones(1, *places.grid).float()).expand(
                len(self.image), -1
            )
        shares = nn.functional.adaptive_avg_pool2d(self.image_mask[:, None].float(), places.grid)
        return places.order(shares[:, 0])[self.image]


class Coefficients(nn.Module):
    """``w = Wg (u + gate * v) + b`` with ``u = Wt t`` and ``v = mean over places of Wv x``.

    ``gate = sigmoid(M2 relu(M1 (u + v)))``: the text passes, the image is gated. Wg starts at zero
    and b at one.
    """

    def __init__(self, width: int, text_width: int, config: MmcaConfig) -> None:
        super().__init__()
        self.condition = config.condition
        # An ablation is built without what it leaves out: on several ranks every parameter that
        # learns must take part in each step.
        if config.condition != "image":
            self.text = nn.Linear(text_width, config.embed_dim, bias=False)
        if config.condition != "text":
            self.image = nn.Linear(width, config.embed_dim, bias=False)
        if config.condition == "both":
            self.gate = nn.Sequential(
                nn.Linear(config.embed_dim, config.gate_dim),
                nn.ReLU(),
                nn.Linear(config.gate_dim, config.embed_dim),
                nn.Sigmoid(),
            )
        self.weights = nn.Linear(config.embed_dim, config.rank)
        nn.init.zeros_(self.weights.weight)
        nn.init.ones_(self.weights.bias)

    def embed(self, states: Tensor, text: Tensor, share: Tensor | None) -> Tensor:
        """The embedding E (T, d_e).

        Args:
            states: (T, N, C) at this place of the network.
            text: (T, D) mean text states.
            share: (T, N) how much of each place is photo; None counts all alike.
        """
        if self.condition == "text":
            words: Tensor = self.text(text)
            return words
        # The mean comes before Wv: the projection is linear, so only the cost changes.
        if share is None:
            pooled = states.mean(dim=1)
        else:
            share = share.to(states.dtype)[..., None]
            pooled = (states * share).sum(dim=1) / share.sum(dim=1)
        vision: Tensor = self.image(pooled)
        if self.condition == "image":
            return vision
        words = self.text(text)
        gated: Tensor = words + self.gate(words + vision) * vision
        return gated

    def forward(self, states: Tensor, text: Tensor, share: Tensor | None) -> Tensor:
        """Coefficients (T, rank)."""
        coefficients: Tensor = self.weights(self.embed(states, text, share))
        return coefficients


def mean_text(states: Tensor, mask: Tensor) -> Tensor:
    """Mean (T, D) of text states (T, L, D) over tokens; mask bool (T, L)."""
    weight = mask.to(states.dtype)[..., None]
    return torch.sum(states * weight, dim=1) / weight.sum(dim=1)
