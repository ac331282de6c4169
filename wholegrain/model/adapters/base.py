"""What all adapters have in common: modules beside the host, which hooks bring into its passes."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from torch import nn

from wholegrain.model.config import AdapterConfig


class Adapter(nn.Module, ABC):
    """Weights that a host is given for finetuning.

    They stand beside the host (``model.adapters``) and reach its passes by forward hooks, so that
    the host's names and weights stay as they are: a release of the host loads into the adapted
    model, and what an adapter adds can be kept by itself.

    Attributes:
        kind: as in its configuration.
        needs_text: whether an image's pass then depends on the text.
        tokenwise: whether what it adds to a state depends on that state alone, so that equal states
            stay equal.
        enabled: False leaves the host be, to the last bit.
        untouched_maps: how many of the image encoder's maps, finest first, come before all that an
            adapter that needs texts adds, and so have a row an image rather than a row a text.
        untouched_blocks: how many of its blocks do.
        untouched: the modules of its pass that do, each run once a pass.
    """

    kind: ClassVar[str]
    needs_text: ClassVar[bool]
    tokenwise: ClassVar[bool]
    untouched_maps: int = 0
    untouched_blocks: int = 0
    untouched: tuple[nn.Module, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True

    def as_now(self, config: AdapterConfig) -> AdapterConfig:
        """Its configuration with what was changed of it since."""
        return config

    @contextmanager
    def neutral(self) -> Iterator[None]:
        """Within the block, the host is as if it had no such adapter."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before
