"""Figures of a corpus as tables on a terminal."""

from __future__ import annotations

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from data_tools.looking.collect import COUNTS, Stats
from data_tools.looking.distribution import Distribution, bins_for

_COLUMNS = ("mean", "min", "median", "95 %", "max")
_BARS = " ▁▂▃▄▅▆▇█"
_BINS = 10


def counts_by(head: str, rows: dict[str, dict[str, int]]) -> Table:
    """Counts of splits or sources."""
    table = _table(head, *COUNTS)
    for name, counts in rows.items():
        table.add_row(escape(name), *(f"{counts.get(column, 0):,}" for column in COUNTS))
    return table


def quantities_table(stats: Stats) -> Table:
    """Mean, quantiles and a line of bars for each quantity."""
    table = _table("quantity", *_COLUMNS)
    table.add_column("histogram", no_wrap=True)
    for name, values in stats.all().values.items():
        row = values.summary()
        table.add_row(name, *(f"{row[key]:,.4g}" for key in _COLUMNS), _bars(values))
    return table


def texts_table(stats: Stats) -> Table:
    """How many texts there are of each kind, and how many recur or are too long."""
    table = _table("texts", "count", "different", "recurring", f"over {stats.max_tokens} tokens")
    for kind, texts in stats.texts.items():
        if texts:
            row = stats.text_summary(kind)
            share = row["too_long_share"]
            table.add_row(
                kind,
                f"{row['count']:,}",
                f"{'' if texts.exact else '≈ '}{row['different']:,}",
                f"{100 * row['repeated_share']:.1f} %",
                "not counted" if share is None else f"{100 * share:.2f} %",
            )
    return table


def top_table(stats: Stats, kind: str, top: int) -> Table:
    """The most frequent texts of a kind."""
    texts = stats.texts[kind]
    table = _table(kind, "count")
    for text, count in texts.most_common(top):
        table.add_row(escape(text), f"{count:,}")
    table.add_row("in all", f"{texts.total:,}", style="bold")
    return table


def _table(*columns: str) -> Table:
    """A first column of names, then figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(columns[0], overflow="fold")
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _bars(values: Distribution) -> str:
    counts = values.binned(bins_for(values, _BINS))
    levels = np.ceil(counts / max(1, counts.max()) * (len(_BARS) - 1)).astype(int)
    return "".join(_BARS[level] for level in levels)
