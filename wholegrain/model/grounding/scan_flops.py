"""What ScanFormer costs: multiply-adds (MACs; 1 MAC is 2 FLOP) of its products, from the sizes.

A transformer layer in which n queries of width D see K keys, those of earlier passes for free, with
a feed-forward r D wide:

    (4 + 2 r) n D^2 + 2 n K D

The text of T tokens is one such pass. Scale s is another, of ``m_s = 1 + k_s + [N_s > 0]`` tokens
([REG], the selected patches, one for all N_s others), which see ``K_s = T + sum_{j <= s} m_j``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Body:
    """The sizes of the transformer."""

    width: int = 768
    """D."""
    depth: int = 12
    """Blocks."""
    mlp_ratio: float = 4.0
    """r."""
    patch_side: int = 32
    """Pixels."""

    def layer(self, queries: int, keys: int) -> int:
        """MACs of one layer."""
        products = int((4 + 2 * self.mlp_ratio) * queries * self.width**2)
        return products + 2 * queries * keys * self.width

    def run(self, queries: int, keys: int) -> int:
        """MACs of all layers."""
        return self.depth * self.layer(queries, keys)

    def embedding(self, patches: int) -> int:
        """MACs of the patch embedding."""
        return patches * 3 * self.patch_side**2 * self.width


@dataclass(frozen=True)
class ScanMacs:
    """MACs of one text in one image."""

    text: int
    """The text's pass through the blocks."""
    scales: tuple[int, ...]
    """The blocks at each scale, coarse to fine."""
    embedding: int
    """Patches that are embedded."""
    selection: int
    """The selector, and the projection of the text."""

    @property
    def blocks(self) -> int:
        """Text and scales, by which methods are compared."""
        return self.text + sum(self.scales)

    @property
    def total(self) -> int:
        """Everything."""
        return self.blocks + self.embedding + self.selection


def scan_macs(
    body: Body,
    tokens: int,
    patches: Sequence[int],
    selected: Sequence[int],
    text_width: int = 768,
    selector_width: int = 192,
    merged: bool = True,
) -> ScanMacs:
    """MACs of a scanning.

    Args:
        body: the transformer.
        tokens: T of the text.
        patches: of each scale's grid, coarse to fine.
        selected: k_s of them that are read.
        text_width: channels of the text's states before their projection.
        selector_width: hidden channels of the selector.
        merged: whether the patches that are left out are one token, and are not embedded.
    """
    seen, scales, selecting = tokens, [], 0
    for scale, (all_of, some) in enumerate(zip(patches, selected, strict=True)):
        run = some + (some < all_of) if merged else all_of
        seen += 1 + run
        scales.append(body.run(1 + run, seen))
        if scale + 1 < len(patches):
            selecting += run * selector_width * (body.width + 4)
    return ScanMacs(
        text=body.run(tokens, tokens),
        scales=tuple(scales),
        embedding=body.embedding(sum(selected if merged else patches)),
        selection=selecting + tokens * text_width * body.width,
    )


def joint_macs(body: Body, tokens: int, patches: Sequence[int]) -> int:
    """MACs of text and grids in one pass in which all see all, a [REG] token a grid.

    Of one grid: the dense model that reads its finest scale alone. The blocks only.
    """
    together = tokens + sum(1 + count for count in patches)
    return body.run(together, together)


def selected_counts(patches: Sequence[int], share: float) -> tuple[int, ...]:
    """Patches of each scale of which so large a share of all are read, the coarsest whole.

    The finer scales are read to the same part each.
    """
    coarse, total = patches[0], sum(patches)
    part = max(0.0, (share * total - coarse) / max(1, total - coarse))
    return (coarse, *(round(part * count) for count in patches[1:]))
