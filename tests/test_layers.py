"""The walls of the house: who may import whom, and how large a room may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

STAGES = ("pretrain", "finetune", "data_tools")
# From the ground up. A unit may use its own floor and those below it.
FLOORS = (
    (
        "wholegrain.errors",
        "wholegrain.once",
        "wholegrain.boxes",
        "wholegrain.text",
        "wholegrain.config",
        "wholegrain.torchvision_shim",
    ),
    ("wholegrain.data", "wholegrain.objectives"),
    ("wholegrain.draw", "wholegrain.model", "wholegrain.train", "wholegrain.report", "data_tools"),
    ("wholegrain.hub",),
    ("wholegrain.predict", "wholegrain.__main__", "pretrain", "finetune"),
)
FLOOR_OF = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}
# Downward or level, and forbidden all the same: data know no loss, a model knows neither its loss
# nor the loop, the loop knows no task.
FORBIDDEN = {
    ("wholegrain.data", "wholegrain.objectives"),
    ("wholegrain.model", "wholegrain.objectives"),
    ("wholegrain.model", "wholegrain.train"),
    ("wholegrain.train", "data_tools"),
    *((a, b) for a in STAGES for b in STAGES if a != b),
}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80


def python_files(repository: Path, *folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (repository / folder).rglob("*.py"))


def unit_of(module: str) -> str | None:
    """The part of the house a dotted module belongs to; None for what is not ours.

    `wholegrain/__init__.py` itself is the front door and stands on no floor.
    """
    first, *rest = module.split(".")
    if first in STAGES:
        return first
    return f"wholegrain.{rest[0]}" if first == "wholegrain" and rest else None


def module_of(path: Path, repository: Path) -> str:
    parts = path.relative_to(repository).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, also those inside functions, relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            drop = node.level - is_package
            start = base[: len(base) - drop] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def arrows(repository: Path) -> Iterator[tuple[str, str, str]]:
    """(unit, unit it imports, where) for every import that crosses from one unit to another."""
    for path in python_files(repository, "wholegrain", *STAGES):
        module = module_of(path, repository)
        unit = unit_of(module)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, name in imported(tree, module, path.name == "__init__.py"):
            target = unit_of(name)
            if unit and target and target != unit:
                yield unit, target, f"{path.relative_to(repository)}:{line}"


def test_every_part_has_a_floor(repository: Path) -> None:
    modules = (module_of(path, repository) for path in python_files(repository, "wholegrain"))
    homeless = {unit for module in modules if (unit := unit_of(module))} - set(FLOOR_OF)
    assert not homeless, f"give these a floor in FLOORS: {sorted(homeless)}"


def test_arrows_run_down(repository: Path) -> None:
    wrong = [
        f"{where}: {unit} must not import {target}"
        for unit, target, where in arrows(repository)
        # A name that is no module (`from wholegrain import load`) comes through the front door,
        # and behind it is the top floor.
        if FLOOR_OF.get(target, len(FLOORS) - 1) > FLOOR_OF[unit] or (unit, target) in FORBIDDEN
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_imports(repository: Path) -> None:
    graph: dict[str, set[str]] = {}
    for unit, target, _ in arrows(repository):
        graph.setdefault(unit, set()).add(target)
    while leaves := {unit for unit in graph if not graph[unit] & graph.keys()}:
        graph = {unit: targets for unit, targets in graph.items() if unit not in leaves}
    assert not graph, f"these import each other: { {u: sorted(t) for u, t in graph.items()} }"


def test_the_reader_of_imports_sees_every_form() -> None:
    source = """
import wholegrain.train.loop
from wholegrain import boxes as b
from ..objectives import box
def f():
    from . import vision
    from finetune import refcoco
"""
    names = {name for _, name in imported(ast.parse(source), "wholegrain.model.concepts", False)}
    assert {unit_of(name) for name in names} == {
        "wholegrain.train",
        "wholegrain.boxes",
        "wholegrain.objectives",
        "wholegrain.model",
        "finetune",
    }


def test_files_and_functions_stay_small(repository: Path) -> None:
    large = []
    for path in python_files(repository, "wholegrain", *STAGES, "tools", "benchmarks", "tests"):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(repository)
        if (lines := text.count("\n")) > MAX_FILE_LINES:
            large.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    large.append(f"{name}:{node.lineno} {node.name}: {length} lines")
    assert not large, "\n".join(large)
