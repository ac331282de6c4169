"""The named places of a model where an adapter may add something to the host's output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from wholegrain.model.adapters.places import Places, swin_grid, swin_windows
from wholegrain.model.detr import DetrEncoder, DetrLayer
from wholegrain.model.vision import SwinEncoder, TimmEncoder, VisionEncoder

if TYPE_CHECKING:
    from wholegrain.model.multigrain import MultiGrainModel

Norm = Literal["pre", "post", "none"]
Positions = Literal["absolute", "relative", "sine", "none"]

THIRDS = {"query": 0, "key": 1, "value": 2}
"""Order inside a fused projection of queries, keys and values."""


@dataclass(frozen=True)
class Site:
    """A module of the host to whose output something may be added."""

    name: str
    """Blocks, layers and stages count from 1: ``vision.block.7``, ``vision.block.7.query``,
    ``vision.block.7.mlp``, ``vision.stage.3``, ``text.layer.4``, ``cross.layer.1``."""
    module: nn.Module
    """The host's own; its output receives the addition."""
    width: int
    """Channels of its input."""
    out: int
    """Channels of what is added."""
    norm: Norm
    """Where the block that it belongs to has its norms."""
    positions: Positions
    """How that block knows where a state lies."""
    places: Places | None = None
    """How its states lie over the image; None where they are texts, or follow the image's size."""
    offset: int = 0
    """Channel of the output that the addition starts at."""


def sites_of(model: MultiGrainModel) -> dict[str, Site]:
    """All sites of a model by name, in the order in which a pass meets them."""
    found = [*_vision_sites(model.vision), *_text_sites(model)]
    return {site.name: site for site in found}


def _vision_sites(vision: VisionEncoder) -> Iterator[Site]:
    if isinstance(vision, TimmEncoder | DetrEncoder):
        for number, (stage, width) in enumerate(residual_stages(vision), start=1):
            block = blocks_of(stage)[-1]
            yield Site(f"vision.stage.{number}", block, width, width, "none", "none")
    for number, block in enumerate(vision.blocks(), start=1):
        name = f"vision.block.{number}"
        yield from (
            _detr_sites(name, block)
            if isinstance(block, DetrLayer)
            else _timm_sites(name, block, vision)
        )


def _timm_sites(name: str, block: Any, vision: VisionEncoder) -> Iterator[Site]:
    windowed = isinstance(vision, SwinEncoder)
    positions: Positions = "relative" if windowed else "absolute"
    width = int(block.norm1.normalized_shape[0])
    grid = swin_grid(block) if windowed else Places(vision.grid, class_token=True)
    inside = swin_windows(block) if windowed else grid
    yield Site(name, block, width, width, "pre", positions, grid)
    for part, third in THIRDS.items():
        qkv = block.attn.qkv
        yield Site(f"{name}.{part}", qkv, width, width, "pre", positions, inside, third * width)
    hidden = block.mlp.fc1
    yield Site(f"{name}.mlp", hidden, width, int(hidden.out_features), "pre", positions, grid)


def _detr_sites(name: str, layer: DetrLayer) -> Iterator[Site]:
    width = layer.query.in_features
    yield Site(name, layer, width, width, "post", "sine")
    for part in THIRDS:
        yield Site(f"{name}.{part}", getattr(layer, part), width, width, "post", "sine")
    yield Site(f"{name}.mlp", layer.up, width, layer.up.out_features, "post", "sine")


def _text_sites(model: MultiGrainModel) -> Iterator[Site]:
    width = model.config.text.hidden_size
    for part, layers in (("text", model.text.layers), ("cross", model.cross.layers)):
        for number, layer in enumerate(layers, start=1):
            yield Site(f"{part}.layer.{number}", layer, width, width, "post", "absolute")


def residual_stages(vision: TimmEncoder | DetrEncoder) -> list[tuple[nn.Module, int]]:
    """Stages whose last block keeps its resolution and channels, and their channels."""
    if getattr(vision, "channels_last", False):
        return []
    # timm lists all stages here, also those whose maps are not asked for.
    channels = {
        entry["module"].replace(".", "_"): int(entry["num_chs"])
        for entry in vision.backbone.feature_info.info
    }
    return [
        (child, channels[name])
        for name, child in vision.backbone.named_children()
        if name in channels and _is_stage(child)
    ]


def blocks_of(stage: nn.Module) -> list[nn.Module]:
    """The blocks of one of timm's stages."""
    blocks = getattr(stage, "blocks", stage)
    return list(blocks.children())


def _is_stage(module: nn.Module) -> bool:
    blocks = getattr(module, "blocks", module)
    if not isinstance(blocks, nn.Sequential):
        return False
    children = list(blocks.children())
    # A stem is a sequence of layers; a stage is one of blocks, which have parts of their own.
    return len(children) > 1 and all(list(child.children()) for child in children)
