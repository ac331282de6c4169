"""MMCA: updates of the image encoder's weights that depend on image and text, sample by sample.

Every adapted place becomes ``y = W0 x + B diag(w) A x`` (see `sites`) with coefficients w of image
and text (see `condition`). B starts at zero, so the host is unchanged at the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from wholegrain.errors import ConfigError
from wholegrain.model.adapters.condition import Condition, mean_text
from wholegrain.model.adapters.sites import ConditionalBlock, ConditionalLinear, SpreadingBlock
from wholegrain.model.config import MmcaConfig
from wholegrain.model.vision import TimmEncoder

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
    blocks = model.vision.blocks()
    if not 0 < config.blocks <= len(blocks):
        raise ConfigError(
            f"adapter.blocks is {config.blocks} of {len(blocks)} blocks; choose 1 to {len(blocks)}"
        )
    chosen = blocks[len(blocks) - config.blocks :]
    adapted: list[nn.Module] = []
    for block in chosen:
        attention: nn.Module = block.attn  # type: ignore[assignment]
        projections = tuple(site for site in config.sites if site != "mlp")
        if projections:
            attention.qkv = ConditionalLinear(
                attention.qkv,  # type: ignore[arg-type]
                projections,
                text_width,
                config,
                shared,
            )
            adapted.append(attention.qkv)
        if "mlp" in config.sites:
            mlp: nn.Module = block.mlp  # type: ignore[assignment]
            mlp.fc1 = ConditionalLinear(mlp.fc1, ("mlp",), text_width, config, shared)  # type: ignore[arg-type]
            adapted.append(mlp.fc1)
    _replace(model.vision, chosen[0], SpreadingBlock(chosen[0], shared))
    return Mmca(shared, adapted)


def _attach_to_stages(
    vision: TimmEncoder, config: MmcaConfig, text_width: int, shared: Condition
) -> Mmca:
    stages = [child for child in vision.backbone.children() if _is_stage(child)]
    if not 0 < config.blocks <= len(stages):
        raise ConfigError(
            f"adapter.blocks is {config.blocks}, but the backbone has {len(stages)} stages of "
            f"residual blocks; choose 1 to {len(stages)}"
        )
    adapted: list[nn.Module] = []
    channels = vision.backbone.feature_info.channels()
    for index in range(len(stages) - config.blocks, len(stages)):
        width = channels[index - len(stages)]
        host = _blocks_of(stages[index])[-1]
        first = index == len(stages) - config.blocks
        block = ConditionalBlock(host, width, text_width, config, shared, first)
        _replace(vision, host, block)
        adapted.append(block)
    return Mmca(shared, adapted)


def _blocks_of(stage: nn.Module) -> list[nn.Module]:
    blocks = getattr(stage, "blocks", stage)
    return list(blocks.children())


def _is_stage(module: nn.Module) -> bool:
    blocks = getattr(module, "blocks", module)
    if not isinstance(blocks, nn.Sequential):
        return False
    children = list(blocks.children())
    # A stem is a sequence of layers; a stage is a sequence of blocks, which have parts of their own.
    return len(children) > 1 and all(list(child.children()) for child in children)


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in root.modules():
        for name, child in parent.named_children():
            if child is old and parent is not new:
                setattr(parent, name, new)
                return
    raise ConfigError(f"the image encoder has no block {type(old).__name__} to adapt")
