"""The import of torchvision beside a torch that it was not built for."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wholegrain import torchvision_shim

# The environment's own hook, set at interpreter start, must not hide what the package's does.
WITHOUT_HOOK = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "TorchvisionFinder"]
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter of this environment."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_wholegrain_imports_neither_torch_nor_torchvision() -> None:
    result = python(
        "import sys, importlib.util, wholegrain\n"
        "assert importlib.util.find_spec('torchvision').origin\n"
        "assert not {'torch', 'torchvision'} & sys.modules.keys(), 'imported too early'"
    )
    assert result.returncode == 0, result.stderr


def test_after_importing_wholegrain_torchvision_and_its_users_work() -> None:
    result = python(
        WITHOUT_HOOK + "import wholegrain, torch\n"
        "from torchvision.transforms import v2\n"
        "from torchvision import ops, tv_tensors\n"
        "import timm\n"
        "boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]])\n"
        "assert abs(ops.box_iou(boxes, boxes)[0, 1] - 1 / 7) < 1e-6\n"
        "kept = tv_tensors.BoundingBoxes(boxes, format='XYXY', canvas_size=(4, 4))\n"
        "flipped = v2.functional.horizontal_flip(kept)\n"
        "assert flipped.tolist() == [[2, 0, 4, 2], [1, 1, 3, 3]]"
    )
    assert result.returncode == 0, result.stderr


def test_the_hook_is_put_in_place_once() -> None:
    result = python(
        "import sys, wholegrain\n"
        "from wholegrain import torchvision_shim as shim\n"
        "shim.install(); shim.install()\n"
        "assert sum('TorchvisionFinder' in type(f).__name__ for f in sys.meta_path) == 1"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(
    torch.version.cuda is not None or torch.version.hip is not None,
    reason="the schemas are for a torch without CUDA and ROCm",
)
def test_schemas_are_declared_only_where_the_import_would_fail() -> None:
    """On either kind of machine: with the hook the import works, and nothing is done needlessly."""
    plain = python(WITHOUT_HOOK + "import torchvision")
    hooked = python(
        WITHOUT_HOOK + "import wholegrain, torchvision\n"
        "print(len(wholegrain.torchvision_shim._kept_alive))"
    )
    assert hooked.returncode == 0, hooked.stderr
    assert int(hooked.stdout) == (plain.returncode != 0)
    if plain.returncode != 0:
        assert "torchvision::nms" in plain.stderr


@pytest.mark.parametrize("build", ["cuda", "hip"])
def test_a_torch_with_a_device_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build: str
) -> None:
    monkeypatch.setattr(torchvision_shim, "_kept_alive", [])
    monkeypatch.setattr(torch.version, build, "13.0")
    monkeypatch.setattr(torchvision_shim, "_compiled_operators_load", pytest.fail)
    assert torchvision_shim.declare_missing_operators(tmp_path) is False


def test_compiled_operators_that_load_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded: list[str] = []
    (tmp_path / "_C.so").touch()
    monkeypatch.setattr(torchvision_shim, "_kept_alive", [])
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert torchvision_shim.declare_missing_operators(tmp_path) is False
    assert loaded == [str(tmp_path / "_C.so")]


def test_a_library_that_cannot_load_counts_as_missing(tmp_path: Path) -> None:
    assert torchvision_shim._compiled_operators_load(tmp_path) is False
    (tmp_path / "_C.so").write_bytes(b"not a library")
    assert torchvision_shim._compiled_operators_load(tmp_path) is False
