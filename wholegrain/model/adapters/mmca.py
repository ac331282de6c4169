"""MMCA: updates of the image encoder's weights that depend on image and text, sample by sample.

Every adapted place becomes ``y = W0 x + B diag(w) A x`` (see `sites`) with coefficients w of image
and text (see `condition`). B starts at zero, so the host is unchanged at the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from wholegrain.errors import ConfigError
from wholegrain.model.adapters.condition import Condition, mean_text
from wholegrain.model.adapters.places import Places, swin_grid, swin_windows
from wholegrain.model.adapters.sites import ConditionalBlock, ConditionalLinear, SpreadingBlock
from wholegrain.model.config import MmcaConfig
from wholegrain.model.stochastic_depth import StochasticDepth
from wholegrain.model.vision import SwinEncoder, TimmEncoder, VisionEncoder, VitEncoder

if TYPE_CHECKING:
    from wholegrain.model.multigrain import MultiGrainModel


class Mmca:
    """The handle on a model's adapters; the modules themselves sit in the image encoder."""

    def __init__(self, shared: Condition, modules: list[nn.Module]) -> None:
        self.shared, self.modules = shared, modules

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the adapters add to the host."""
        for module in self.modules:
            for name, parameter in module.named_parameters():
                if not name.startswith("host."):
                    yield parameter

    @contextmanager
    def conditioned_on(
        self, states: Tensor, mask: Tensor, image: Tensor, image_mask: Tensor | None = None
    ) -> Iterator[None]:
        """Within the block, the image encoder gives one row a text.

        Args:
            states: text states (T, L, D); mask bool (T, L).
            image: (T,) the image of each text.
            image_mask: bool (I, H, W), False at padding; None where nothing is padded.
        """
        self.shared.text = mean_text(states, mask)
        self.shared.image, self.shared.image_mask = image, image_mask
        try:
            yield
        finally:
            self.shared.text = self.shared.image = self.shared.image_mask = None


def attach_mmca(model: MultiGrainModel, config: MmcaConfig) -> Mmca:
    """Adapts the last blocks (transformer) or the last stages' last blocks (convolution) in place.

    Raises:
        ConfigError: the encoder has fewer blocks than asked for, or regions of its own.
    """
    shared = Condition()
    text_width = model.config.text.hidden_size
    if isinstance(model.vision, TimmEncoder):
        return _attach_to_stages(model.vision, config, text_width, shared)
    if isinstance(model.vision, VitEncoder) and model.vision.local_layers:
        raise ConfigError(
            f"vision.local_layers is {model.vision.local_layers}: adapters cannot sit in blocks "
            "that run once a region; set it to 0"
        )
    blocks = model.vision.blocks()
    if not blocks:
        raise ConfigError(
            f"vision.kind is {model.config.vision.kind!r}, whose blocks carry no adapters; use "
            "swin, vit or a convolutional timm backbone"
        )
    if not 0 < config.blocks <= len(blocks):
        raise ConfigError(
            f"adapter.blocks is {config.blocks} of {len(blocks)} blocks; choose 1 to {len(blocks)}"
        )
    chosen = blocks[len(blocks) - config.blocks :]
    adapted: list[nn.Module] = []
    for block in chosen:
        adapted += _attach_to_block(block, model.vision, config, text_width, shared)
    _replace(model.vision, chosen[0], SpreadingBlock(chosen[0], shared))
    return Mmca(shared, adapted)


def _attach_to_block(
    block: Any,  # one of timm's, which carry no types
    vision: VisionEncoder,
    config: MmcaConfig,
    text_width: int,
    shared: Condition,
) -> list[nn.Module]:
    windowed = isinstance(vision, SwinEncoder)
    for part in block.modules():
        if isinstance(part, StochasticDepth):
            part.skips = False  # every sample meets its own text
    of_vit = Places(vision.grid, class_token=True)
    adapted: list[nn.Module] = []
    projections = tuple(site for site in config.sites if site != "mlp")
    if projections:
        places = swin_windows(block) if windowed else of_vit
        host = block.attn.qkv
        block.attn.qkv = ConditionalLinear(host, projections, text_width, config, shared, places)
        adapted.append(block.attn.qkv)
    if "mlp" in config.sites:
        places = swin_grid(block) if windowed else of_vit
        host = block.mlp.fc1
        block.mlp.fc1 = ConditionalLinear(host, ("mlp",), text_width, config, shared, places)
        adapted.append(block.mlp.fc1)
    return adapted


def _attach_to_stages(
    vision: TimmEncoder, config: MmcaConfig, text_width: int, shared: Condition
) -> Mmca:
    stages = _stages(vision)
    if not 0 < config.blocks <= len(stages):
        raise ConfigError(
            f"adapter.blocks is {config.blocks}, but the backbone has {len(stages)} stages of "
            "several residual blocks; choose at most so many, or another vision.name"
        )
    adapted: list[nn.Module] = []
    for number, (stage, width) in enumerate(stages[len(stages) - config.blocks :]):
        host = _blocks_of(stage)[-1]
        block = ConditionalBlock(host, width, text_width, config, shared, first=number == 0)
        _replace(vision, host, block)
        adapted.append(block)
    return Mmca(shared, adapted)


def _stages(vision: TimmEncoder) -> list[tuple[nn.Module, int]]:
    """Stages whose last block keeps its resolution and channels, and their channels."""
    if vision.channels_last:
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


def _blocks_of(stage: nn.Module) -> list[nn.Module]:
    blocks = getattr(stage, "blocks", stage)
    return list(blocks.children())


def _is_stage(module: nn.Module) -> bool:
    blocks = getattr(module, "blocks", module)
    if not isinstance(blocks, nn.Sequential):
        return False
    children = list(blocks.children())
    # A stem is a sequence of layers; a stage is one of blocks, which have parts of their own.
    return len(children) > 1 and all(list(child.children()) for child in children)


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in root.modules():
        for name, child in parent.named_children():
            if child is old and parent is not new:
                setattr(parent, name, new)
                return
    raise ConfigError(f"the image encoder has no block {type(old).__name__} to adapt")
