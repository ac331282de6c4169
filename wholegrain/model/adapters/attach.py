"""From an adapter's configuration to an adapter that sits in its host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wholegrain.model.adapters.base import Adapter
from wholegrain.model.adapters.mma import Mma
from wholegrain.model.adapters.mmca import Mmca
from wholegrain.model.config import AdapterConfig, MmaConfig

if TYPE_CHECKING:
    from wholegrain.model.multigrain import MultiGrainModel


def build_adapter(model: MultiGrainModel, config: AdapterConfig) -> Adapter:
    """Builds an adapter and hooks it into a model, whose weights and names stay as they are.

    Raises:
        ConfigError: the model lacks what the adapter needs; the model is as it was.
    """
    return Mma(model, config) if isinstance(config, MmaConfig) else Mmca(model, config)
