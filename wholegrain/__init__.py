"""wholegrain: one model that learns from whole images, regions and objects at once.

``wholegrain.load(folder)`` opens a release; everything else is imported from its module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wholegrain import torchvision_shim

if TYPE_CHECKING:
    from wholegrain.predict import load as load

__all__ = ["load"]

torchvision_shim.install()


def __getattr__(name: str) -> Any:
    # Late, so that `import wholegrain` costs nothing: torch alone takes seconds.
    if name == "load":
        from wholegrain.predict import load

        return load
    raise AttributeError(f"module 'wholegrain' has no attribute {name!r}")
