"""X-VLM's regions on a plain ViT: the last blocks run once a region, on what its box shows.

A region row attends to the class token and its own patches. Nobody reads what it makes of the other
patches, so only the visible ones are gathered and computed, packed one region behind the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wholegrain.model import kernels
from wholegrain.model.indexing import take
from wholegrain.model.packing import Packing


class RegionTokens:
    """The visible tokens of Q regions, packed.

    Args:
        image: (Q,) the image of each region.
        mask: bool (Q, P), the patches inside its box.
        visible: how many are True in all, on the host.
    """

    def __init__(self, image: Tensor, mask: Tensor, visible: int) -> None:
        regions, patches = mask.shape
        self.shape = (regions, 1 + patches)
        shown = torch.cat([mask.new_ones(regions, 1), mask], dim=1)
        self.packing = Packing.of_lengths(shown.sum(1), regions + visible, 1 + patches)
        nth = torch.arange(1, regions + visible + 1, device=mask.device)
        # The place of the k-th visible token in (Q, 1 + P), found without a count on the host.
        self.places = torch.searchsorted(shown.flatten().cumsum(0), nth)
        region, column = self.places // (1 + patches), self.places % (1 + patches)
        self.source = image[region] * (1 + patches) + column

    def gather(self, tokens: Tensor) -> Tensor:
        """(T, D) of the images' tokens (I, 1 + P, D)."""
        return take(tokens.flatten(0, 1), self.source)

    def spread(self, states: Tensor) -> Tensor:
        """(Q, 1 + P, D) of packed states (T, D), zero outside the boxes."""
        rows, columns = self.shape
        whole = states.new_zeros(rows * columns, states.shape[1])
        return whole.index_copy(0, self.places, states).unflatten(0, (rows, columns))


def run_local_blocks(
    blocks: Iterable[nn.Module], states: Tensor, regions: RegionTokens, recompute: bool = False
) -> Tensor:
    """Runs a ViT's blocks over packed states (T, D), each region attending within itself.

    With `recompute`, what lies between blocks is computed again in the backward pass.
    """
    for block in blocks:
        if recompute and torch.is_grad_enabled():
            states = checkpoint(_run_block, block, states, regions.packing, use_reentrant=False)
        else:
            states = _run_block(block, states, regions.packing)
    return states


def _run_block(block: Any, states: Tensor, packing: Packing) -> Tensor:  # timm carries no types
    update = block.ls1(_attend(block.attn, block.norm1(states), packing))
    states = states + _drop_rows(block.drop_path1, update, packing)
    update = block.ls2(block.mlp(block.norm2(states)))
    return states + _drop_rows(block.drop_path2, update, packing)


def _attend(attention: Any, states: Tensor, packing: Packing) -> Tensor:
    query, key, value = attention.qkv(states).unflatten(1, (3, attention.num_heads, -1)).unbind(1)
    query, key = attention.q_norm(query), attention.k_norm(key)
    if kernels.segments_suit(query, query.shape[-1], 0.0):
        longest = (packing.longest, packing.longest)
        found = kernels.segments(query, key, value, packing.bounds, packing.bounds, longest)
    else:
        q, k, v = (packing.unpack(each).transpose(1, 2) for each in (query, key, value))
        mask = packing.mask[:, None, None, :]
        found = packing.pack(kernels.rectangle(q, k, v, mask, 0.0).transpose(1, 2))
    update: Tensor = attention.proj(attention.norm(found.flatten(1)))
    return update


def _drop_rows(drop_path: Any, update: Tensor, packing: Packing) -> Tensor:
    """Stochastic depth a region, not a token."""
    rate = getattr(drop_path, "drop_prob", 0.0)
    if not rate or not drop_path.training:
        return update
    keep = update.new_empty(len(packing), 1).bernoulli_(1 - rate) / (1 - rate)
    return update * take(keep, packing.row)
