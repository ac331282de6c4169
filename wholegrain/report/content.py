"""What a report holds. Plain values only: a stage fills them in, `page` turns them into HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval, such as an accuracy with its bootstrap interval."""

    value: float
    low: float
    high: float


Cell = str | float | int | Estimate | None
"""One cell of a table; None is shown as a dash, strings are shown as they are."""


@dataclass(frozen=True, slots=True)
class ResultTable:
    """Figures of one evaluation, with what they must be compared with."""

    name: str
    """Heading of the table."""
    columns: Sequence[str]
    """Heads, the one of the row labels included."""
    rows: Sequence[Sequence[Cell]]
    """Rows as wide as `columns`; the first cell labels the row."""
    baselines: Sequence[int] = ()
    """Indices of the rows that are baselines (a constant box, words hidden): set apart below."""
    note: str = ""
    """Protocol or caveat, in a sentence or two."""
    command: str = ""
    """Command that reproduces the table."""

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.name!r}, row {index}: {len(row)} cells under "
                    f"{len(self.columns)} columns; give every row one cell a column"
                )
        wrong = [index for index in self.baselines if not 0 <= index < len(self.rows)]
        if wrong:
            raise ValueError(
                f"table {self.name!r}: baselines {wrong} are not row indices "
                f"(there are {len(self.rows)} rows)"
            )


@dataclass(frozen=True, slots=True)
class Case:
    """One photo with an expression, the predicted box and the true one."""

    image: np.ndarray
    """uint8 (H, W, 3), RGB."""
    text: str
    """The expression."""
    predicted: Box | None = None
    """xyxy in pixels of `image`."""
    truth: Box | None = None
    """xyxy in pixels of `image`."""
    iou: float | None = None
    """Intersection over union of the two, 0 to 1."""
    caption: str = ""
    """Small print below the expression: the sample's id, the score."""

    def __post_init__(self) -> None:
        shape, dtype = self.image.shape, self.image.dtype
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ValueError(
                f"case {self.text[:40]!r}: image is {dtype} {shape}; give uint8 (H, W, 3) in RGB"
            )


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one report shows."""

    title: str
    command: str
    """Command line that was run."""
    config_yaml: str
    """The resolved configuration."""
    metrics_path: Path | None = None
    """`metrics.jsonl`: lines {"step": int, "split": "train" | "val", NAME: float, ...}."""
    results: Sequence[ResultTable] = ()
    cases: Mapping[str, Sequence[Case]] = field(default_factory=dict)
    """Heading ('A sample', 'Best', 'Worst') to the cases below it, in the order shown."""
    environment: Mapping[str, object] = field(default_factory=dict)
    """Versions, devices, world size: name to value."""
    summary: str = ""
    """A paragraph under the title: what was done and what came of it."""
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
