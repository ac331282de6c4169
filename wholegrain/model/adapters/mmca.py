"""MMCA: updates of the image encoder's weights that depend on image and text, sample by sample.

Every adapted projection becomes ``y = W0 x + B diag(w) A x`` and every adapted convolutional block
``y = F(x) + Conv_A(w * Conv_B(x))`` (see `updates`) with coefficients w of image and text (see
`condition`). B and Conv_A start at zero, so the host is unchanged at the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from wholegrain.errors import ConfigError
from wholegrain.model.adapters.base import Adapter
from wholegrain.model.adapters.mmca_detr import hook_detr
from wholegrain.model.adapters.places import Places
from wholegrain.model.adapters.sites import Site, residual_stages, sites_of
from wholegrain.model.adapters.updates import ConvUpdate, LinearUpdate
from wholegrain.model.config import MmcaConfig
from wholegrain.model.detr import DetrEncoder
from wholegrain.model.stochastic_depth import StochasticDepth
from wholegrain.model.vision import SwinEncoder, TimmEncoder, VisionEncoder, VitEncoder

if TYPE_CHECKING:
    from wholegrain.model.multigrain import MultiGrainModel

_STAGE = "vision.stage."
_PARTS = ("query", "key", "value", "mlp")


class Mmca(Adapter):
    """The adapters of one model, by the site that each belongs to.

    Args:
        model: the host; hooks are set in it, nothing else of it changes.
        config: of the adapters.

    Raises:
        ConfigError: the encoder has fewer blocks than asked for, or regions of its own.
    """

    kind: ClassVar[str] = "mmca"
    needs_text: ClassVar[bool] = True
    tokenwise: ClassVar[bool] = False

    def __init__(self, model: MultiGrainModel, config: MmcaConfig) -> None:
        super().__init__()
        chosen = _chosen_sites(model, config)  # first, so that a refusal leaves the host alone
        text_width = model.config.text.hidden_size
        self.text_projection: nn.Linear | None = None
        if config.text_dim is not None:
            self.text_projection = nn.Linear(text_width, config.text_dim)
            text_width = config.text_dim
        self.condition = model.condition
        self.updates = nn.ModuleDict()
        for site in chosen:
            update = _update_at(site, text_width, config)
            self.updates[site.name.replace(".", "_")] = update
            _set_hook(self, update, site, model.vision, config)
        _set_spread(self, model, chosen)

    @property
    def active(self) -> bool:
        """Whether the running pass is conditioned."""
        return self.enabled and self.condition.text is not None

    def text(self) -> Tensor:
        """(T, D) the mean text states, as the coefficients read them."""
        text = self.condition.text
        assert text is not None  # `active` says so
        return text if self.text_projection is None else self.text_projection(text)


class _BesideLinear:
    """Adds an update beside a projection of the host."""

    def __init__(self, adapter: Mmca, update: nn.Module, site: Site) -> None:
        self.adapter, self.update, self.site = adapter, update, site

    def __call__(self, _: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Inputs are states (T, N, C), or windows (T * windows, n, C), one text's side by side."""
        if not self.adapter.active:
            return None
        (inputs,), text = given, self.adapter.text()
        places = self.site.places
        assert places is not None
        tokens = inputs.reshape(len(text), -1, inputs.shape[-1])
        share = self.adapter.condition.weights(places)
        update: Tensor = self.update(tokens, text, share).reshape(*inputs.shape[:-1], -1)
        before = self.site.offset
        after = output.shape[-1] - before - update.shape[-1]
        return output + nn.functional.pad(update, (before, after))


class _BesideBlock:
    """Adds an update beside a convolutional block, on its output."""

    def __init__(self, adapter: Mmca, update: nn.Module) -> None:
        self.adapter, self.update = adapter, update

    def __call__(self, _: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """States (T, C, H, W)."""
        if not self.adapter.active:
            return None
        states = given[0]
        height, width = states.shape[2:]
        share = self.adapter.condition.weights(Places(grid=(height, width)))
        update: Tensor = self.update(states, self.adapter.text(), share)
        return output + update


class _Spread:
    """From the first adapted block on there is one row a text instead of one an image."""

    def __init__(self, adapter: Mmca) -> None:
        self.adapter = adapter

    def __call__(self, _: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not self.adapter.active:
            return None
        states, *others = given
        return (self.adapter.condition.spread(states), *others)


def _update_at(site: Site, text_width: int, config: MmcaConfig) -> ConvUpdate | LinearUpdate:
    if site.name.startswith(_STAGE):
        return ConvUpdate(site.width, text_width, config)
    return LinearUpdate(site.width, site.out, text_width, config)


def _set_hook(
    adapter: Mmca,
    update: ConvUpdate | LinearUpdate,
    site: Site,
    vision: VisionEncoder,
    config: MmcaConfig,
) -> None:
    if isinstance(update, ConvUpdate):
        site.module.register_forward_hook(_BesideBlock(adapter, update))
    elif isinstance(vision, DetrEncoder):
        hook_detr(adapter, update, site, vision, config)
    else:
        site.module.register_forward_hook(_BesideLinear(adapter, update, site))


def _chosen_sites(model: MultiGrainModel, config: MmcaConfig) -> list[Site]:
    vision, sites = model.vision, sites_of(model)
    if isinstance(vision, VitEncoder) and vision.local_layers:
        raise ConfigError(
            f"vision.local_layers is {vision.local_layers}: adapters cannot sit in blocks "
            "that run once a region; set it to 0"
        )
    stages = [site for site in sites.values() if site.name.startswith(_STAGE)]
    if isinstance(vision, TimmEncoder):
        _refuse_parts_of_blocks(config)
        return _last(stages, config.blocks, "adapters.blocks", "stages of several residual blocks")
    chosen: list[Site] = []
    if config.stages:
        chosen += _last(stages, config.stages, "adapters.stages", "convolutional stages")
    count = len(vision.blocks())
    numbers = _last(range(1, count + 1), config.blocks, "adapters.blocks", "blocks")
    parts = sorted(config.sites, key=_PARTS.index)
    return chosen + [sites[f"vision.block.{number}.{part}"] for number in numbers for part in parts]


def _refuse_parts_of_blocks(config: MmcaConfig) -> None:
    plain = MmcaConfig()
    for field in ("stages", "sites"):
        value, usual = getattr(config, field), getattr(plain, field)
        if value != usual:
            raise ConfigError(
                f"adapters.{field} is {value!r}, but vision.kind `timm` has convolutional stages "
                "alone, whose number is adapters.blocks; leave it out"
            )


def _last(all_of: Sequence[Any], count: int, field: str, what: str) -> list[Any]:
    if not 0 < count <= len(all_of):
        raise ConfigError(
            f"{field} is {count}, but the image encoder has {len(all_of)} {what}; choose at most "
            "so many, or another vision (swin, vit, detr, a convolutional timm backbone)"
        )
    return list(all_of[len(all_of) - count :])


def _set_spread(adapter: Mmca, model: MultiGrainModel, chosen: Sequence[Site]) -> None:
    """Has the first adapted block make one row a text of one row an image."""
    vision, first = model.vision, chosen[0]
    blocks = vision.blocks()
    if first.name.startswith(_STAGE):
        assert isinstance(vision, TimmEncoder | DetrEncoder)  # others have no stages
        spreading = first.module
        adapter.untouched_maps = _maps_before(vision, first)
    else:
        adapter.untouched_blocks = int(first.name.split(".")[2]) - 1
        spreading = blocks[adapter.untouched_blocks]
        if isinstance(vision, SwinEncoder):
            ends = accumulate(len(stage.blocks) for stage in vision.backbone.layers)
            adapter.untouched_maps = sum(end <= adapter.untouched_blocks for end in ends)
        if isinstance(vision, DetrEncoder):
            adapter.untouched_maps = len(vision.backbone.feature_info.out_indices)
    spreading.register_forward_pre_hook(_Spread(adapter))
    adapter.untouched = _before(vision, spreading)
    for block in blocks[adapter.untouched_blocks :]:
        for part in block.modules():
            if isinstance(part, StochasticDepth):
                part.skips = False  # every sample meets its own text


def _before(vision: VisionEncoder, spreading: nn.Module) -> tuple[nn.Module, ...]:
    """The modules of a pass before a block, none of them inside another."""
    found: list[nn.Module] = []

    def walk(module: nn.Module) -> bool:
        """Collects what comes before the block; whether it was met."""
        for child in module.children():
            if child is spreading:
                return True
            if any(part is spreading for part in child.modules()):
                return walk(child)
            found.append(child)
        return False

    if not walk(vision):
        raise ValueError(f"{type(spreading).__name__} is no part of the image encoder")
    return tuple(found)


def _maps_before(vision: TimmEncoder | DetrEncoder, first: Site) -> int:
    """Of the maps that the encoder gives, those of the stages before the first adapted one."""
    stages = residual_stages(vision)
    adapted = stages[int(first.name.rsplit(".", 1)[1]) - 1][0]
    names = {child: name for name, child in vision.backbone.named_children()}
    info = vision.backbone.feature_info
    place = [entry["module"].replace(".", "_") for entry in info.info].index(names[adapted])
    return sum(index < place for index in info.out_indices)
