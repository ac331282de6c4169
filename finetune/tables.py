"""Figures as lines of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from finetune.metrics import Summary

_NAME, _COUNT, _VALUE, _INTERVAL = 24, 8, 11, 18


def column_heads(columns: Sequence[str]) -> str:
    """The head of a table whose first column of figures has an interval."""
    first, *others = (
        name.replace("_", " ").replace("acc@", "Acc@").replace("pr@", "Pr@").replace("f1", "F1")
        for name in (column.replace("giou", "GIoU").replace("iou", "IoU") for column in columns)
    )
    head = f"{'':<{_NAME}}{'count':>{_COUNT}}{first:>{_VALUE}}{'95 % interval':>{_INTERVAL}}"
    return head + "".join(f"{name:>{_VALUE}}" for name in others)


def row_of(name: str, summary: Summary, columns: Sequence[str], signed: bool = False) -> str:
    """A slice: shares in percent, means of overlaps as they are."""
    sign = "+" if signed else ""
    low, high = summary.intervals[columns[0]]
    interval = "-" if math.isnan(low) else f"{100 * low:{sign}.1f} .. {100 * high:{sign}.1f}"
    first, *others = (
        f"{summary.values[column]:{sign}.4f}"
        if column.startswith("mean_")
        else f"{100 * summary.values[column]:{sign}.2f}"
        for column in columns
    )
    head = f"{name:<{_NAME}}{summary.expressions:>{_COUNT}}{first:>{_VALUE}}"
    return head + f"{interval:>{_INTERVAL}}" + "".join(f"{cell:>{_VALUE}}" for cell in others)
