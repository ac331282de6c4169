"""Result tables as the template takes them: written cells, baselines set apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wholegrain.report.content import Cell, Estimate, ResultTable
from wholegrain.report.numbers import aligned

NONE = "–"


@dataclass(frozen=True, slots=True)
class CellView:
    """A written cell; `interval` stands beside the figure in a column of its own."""

    text: str
    interval: str = ""


@dataclass(frozen=True, slots=True)
class ColumnView:
    """How a column is set."""

    head: str
    numeric: bool
    """Set flush right."""
    spread: bool
    """Some cell has an interval, so the column takes two."""


@dataclass(frozen=True, slots=True)
class TableView:
    """A table with the rows of the baselines after the others."""

    table: ResultTable
    columns: list[ColumnView]
    figures: list[list[CellView]]
    baselines: list[list[CellView]]

    @staticmethod
    def of(table: ResultTable) -> TableView:
        cells = [[row[index] for row in table.rows] for index in range(len(table.columns))]
        written = list(zip(*map(write_column, cells), strict=True))
        apart = set(table.baselines)
        return TableView(
            table=table,
            columns=[
                ColumnView(
                    head=head,
                    numeric=not any(isinstance(cell, str) for cell in column),
                    spread=any(isinstance(cell, Estimate) for cell in column),
                )
                for head, column in zip(table.columns, cells, strict=True)
            ],
            figures=[list(row) for index, row in enumerate(written) if index not in apart],
            baselines=[list(written[index]) for index in table.baselines],
        )


def write_column(cells: Sequence[Cell]) -> list[CellView]:
    """The cells of one column, its floats with the same number of decimals."""
    floats: list[float] = []
    for cell in cells:
        if isinstance(cell, Estimate):
            floats += (cell.value, cell.low, cell.high)
        elif isinstance(cell, float):
            floats.append(cell)
    figures = iter(aligned(floats))
    views = []
    for cell in cells:
        if isinstance(cell, Estimate):
            views.append(CellView(next(figures), f"{next(figures)}–{next(figures)}"))
        elif isinstance(cell, float):
            views.append(CellView(next(figures)))
        elif cell is None:
            views.append(CellView(NONE))
        elif isinstance(cell, int) and not isinstance(cell, bool):
            views.append(CellView(f"{cell:,}"))
        else:
            views.append(CellView(str(cell)))
    return views
