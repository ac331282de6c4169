"""Hosts and adapters of every kind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from wholegrain.model.config import MmcaConfig
from wholegrain.model.multigrain import MultiGrainModel


@pytest.fixture
def adapted(build: Callable[..., MultiGrainModel]) -> Callable[..., MultiGrainModel]:
    """A stirred host in double precision with fresh adapters, or with adapters that do something.

    ``adapted("swin", awake=True, blocks=2, sites=("query",))``
    """

    def make(kind: str, awake: bool = False, **options: Any) -> MultiGrainModel:
        model = build(kind).double()
        chosen = MmcaConfig(**{"rank": 3, "embed_dim": 5, "gate_dim": 4, "blocks": 1, **options})
        model.add_adapter(chosen)
        model.double().eval()
        if awake:
            generator = torch.Generator().manual_seed(5)
            for parameter in model.adapters.parameters():
                nn.init.normal_(parameter, std=0.4, generator=generator)
        return model

    return make
