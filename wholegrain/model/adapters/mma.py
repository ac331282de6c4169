"""MMA on the model: pairs between blocks of the image encoder and layers of the text encoder.

A pair (see `mma_pair`) reads and adds as follows, ``out = Block(x) + alpha A(...)``:

- a block of a ViT or Swin (pre-norm) gives it the block's own first norm of x, as on CLIP;
- a layer of BERT or DETR (post-norm) has no norm at its entry and gives it x itself. The addition
  comes after the last norm, ``LN(z) + alpha A(x)``, or before it, ``LN(z + alpha A(x))``;
- a layer of the cross encoder gives it what its feed-forward reads, which has seen the image: the
  pair stands beside the feed-forward, since the layer's halves run apart and at other texts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wholegrain.errors import ConfigError
from wholegrain.model.adapters.mma_pair import Pair, PairedAdapter
from wholegrain.model.adapters.sites import Site, sites_of
from wholegrain.model.config import AdapterConfig, MmaConfig
from wholegrain.model.vision import VitEncoder

if TYPE_CHECKING:
    from wholegrain.model.multigrain import MultiGrainModel

DEFAULT_BLOCKS = 4
_VISION, _TEXT, _CROSS = "vision.block.", "text.layer.", "cross.layer."


def paired(
    config: MmaConfig, vision_blocks: int, text_layers: int, default: int
) -> list[tuple[int, int]]:
    """(image block, text layer) of each pair, counted from 1.

    Args:
        config: of the adapters.
        vision_blocks, text_layers: how many the host has.
        default: of `blocks`, where the configuration leaves it open.

    Raises:
        ConfigError: the host lacks one of them.
    """
    if config.pairs is not None:
        for pair in config.pairs:
            if pair[0] > vision_blocks or pair[1] > text_layers:
                raise ConfigError(
                    f"adapters.pairs has {list(pair)}, but there are {vision_blocks} image blocks "
                    f"and {text_layers} text layers; name pairs among these"
                )
        return list(config.pairs)
    blocks = config.blocks or default
    if blocks > min(vision_blocks, text_layers):
        raise ConfigError(
            f"adapters.blocks is {blocks}{'' if config.blocks else ' (the default)'}, but there "
            f"are {vision_blocks} image blocks and {text_layers} text layers; choose at most "
            f"{min(vision_blocks, text_layers)}"
        )
    return [(vision_blocks - back, text_layers - back) for back in reversed(range(blocks))]


class Mma(PairedAdapter):
    """The pairs of one model.

    The weights do not depend on what is frozen: as published all of the host is, the box head
    apart.

    Args:
        model: the host; hooks are set in it, nothing else of it changes.
        config: of the adapters.

    Raises:
        ConfigError: the image encoder has no transformer blocks, fewer than asked for, or some that
            run once a region; the text encoder has too few layers.
    """

    def __init__(self, model: MultiGrainModel, config: MmaConfig) -> None:
        chosen = _chosen_sites(model, config)  # first, so that a refusal leaves the host alone
        super().__init__(config.alpha, config.gradient_trick)
        for sides in chosen:
            widths = {side: site.width for side, site in sides.items()}
            pair = Pair(widths, config.rank, config.zero_up)
            self.pairs.append(pair)
            for side, site in sides.items():
                self._attach(site, pair, side, inside=config.placement == "inside")

    def as_now(self, config: AdapterConfig) -> AdapterConfig:
        assert isinstance(config, MmaConfig)
        return replace(config, alpha=self.alpha)

    def _attach(self, site: Site, pair: Pair, side: str, inside: bool) -> None:
        host: Any = site.module
        if site.norm == "pre":
            self._beside(site.name, pair, side, host, host.norm1)
        elif inside:
            self._within(site.name, pair, side, *_inner(site))
        else:
            # A cross layer is not called as a module; its last part is, and returns its output.
            module = host.feed_forward_residual if site.name.startswith(_CROSS) else host
            self._beside(site.name, pair, side, module, None)


def _inner(site: Site) -> tuple[Any, Any]:
    """Of a post-norm layer: a part whose first argument is the pair's input, and the last norm."""
    layer: Any = site.module
    if site.name.startswith(_VISION):
        return layer.value, layer.feed_forward_norm
    last = layer.feed_forward_residual
    return (last if site.name.startswith(_CROSS) else layer.attention_residual), last.norm


def _chosen_sites(model: MultiGrainModel, config: MmaConfig) -> list[dict[str, Site]]:
    """The sites of each pair by the side's name: vision, text and, of one pair, cross_1 on."""
    sites = sites_of(model)
    numbers = paired(config, _vision_blocks(model), len(model.text.layers), DEFAULT_BLOCKS)
    chosen = [
        {"vision": sites[f"{_VISION}{block}"], "text": sites[f"{_TEXT}{layer}"]}
        for block, layer in numbers
    ]
    vision = model.vision
    if isinstance(vision, VitEncoder) and vision.local_layers:
        first = len(vision.blocks()) - vision.local_layers + 1
        if max(block for block, _ in numbers) >= first:
            raise ConfigError(
                f"vision.local_layers is {vision.local_layers}: adapters cannot sit in blocks that "
                f"run once a region; set it to 0, or name pairs below image block {first}"
            )
    if config.cross:
        layers = [site for name, site in sites.items() if name.startswith(_CROSS)]
        last = max(range(len(numbers)), key=lambda place: numbers[place][0])
        chosen[last] |= {f"cross_{number}": site for number, site in enumerate(layers, start=1)}
    return chosen


def _vision_blocks(model: MultiGrainModel) -> int:
    blocks = len(model.vision.blocks())
    if not blocks:
        raise ConfigError(
            f"vision.kind is {model.config.vision.kind!r}, whose convolutions have no transformer "
            "blocks to be paired with the text's; use swin, vit or detr, or the adapters mmca"
        )
    return blocks
