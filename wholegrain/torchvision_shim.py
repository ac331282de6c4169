"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

The torchvision wheel in the Python package index is built for CUDA. Beside a CPU torch its compiled
operators cannot load, and its import then stops at the first Python decorator that names one of
them: ``operator torchvision::nms does not exist``. timm, transformers (for its image models) and
the ``accelerate`` command all import torchvision and stop with it, although what they use of it
(transforms, tensors with boxes, box arithmetic) is plain Python.

:func:`install` hooks the *import* of torchvision. Just before it runs, and only if torch has
neither CUDA nor ROCm and the compiled operators really fail to load, the two missing schemas are
declared. They have no kernel: calling ``torchvision.ops.nms`` still fails, and says so. With a
torchvision that fits its torch nothing is changed.

The hook itself imports neither torch nor torchvision. ``import wholegrain`` installs it, and
``tools/make_venv.py`` has it installed at interpreter start by a copy of this file, for programs
such as ``accelerate`` that never import wholegrain; so this file imports nothing but the standard
library and must stay usable on its own.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_kept_alive: list[object] = []  # a torch library withdraws its schemas when it is collected


class TorchvisionFinder:
    """Finds ``torchvision`` as usual and has the schemas declared before it is executed.

    Looking for the module (as ``importlib.util.find_spec`` does) costs nothing and imports nothing.
    """

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Spec of torchvision with a prepared loader; None for every other module."""
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None or spec.origin is None:
            return spec
        folder = Path(spec.origin).parent
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            declare_missing_operators(folder)
            execute(module)

        # On the instance: the loader keeps its type, which resource readers look at.
        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Put the hook in place, once; does nothing after torchvision has been imported."""
    if "torchvision" in sys.modules:
        return
    # By name, because the copy made for interpreter start is another module with another class.
    if any(type(finder).__name__ == TorchvisionFinder.__name__ for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, TorchvisionFinder())


def declare_missing_operators(torchvision_folder: Path) -> bool:
    """Declare the operators' schemas if they are needed; True if they were.

    Args:
        torchvision_folder: the installed package, where its compiled library lies.
    """
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None or _kept_alive:
        return False
    if _compiled_operators_load(torchvision_folder):
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    _kept_alive.append(library)
    return True


def _compiled_operators_load(torchvision_folder: Path) -> bool:
    """Whether torchvision's own library loads here; loading it twice is harmless."""
    import torch

    for library in sorted(torchvision_folder.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))
        except (ImportError, OSError):
            continue  # built for another torch; torchvision itself passes over it in the same way
        return True
    return False
