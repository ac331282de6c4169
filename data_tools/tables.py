"""Tables for the terminal, shared by the verbs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.markup import escape
from rich.table import Table


def counts_table(
    manifest: dict[str, Any],
    *,
    skipped: Counter[str] | None = None,
    left_out: Counter[str] | None = None,
) -> Table:
    """What a corpus holds, and what was skipped as bad or left out by rule."""
    table = Table(title=escape(manifest["name"]), title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, count in manifest["counts"].items():
        table.add_row(name, f"{count:,}")
    table.add_row("shards", f"{manifest['shards']['count']:,}")
    table.add_row("bytes", f"{manifest['shards']['bytes']:,}")
    _section(table, "images in split", manifest["splits"])
    _section(table, "skipped", skipped or {}, style="yellow")
    _section(table, "left out", +(left_out or Counter()))
    return table


def _section(table: Table, title: str, counts: dict[str, int], style: str = "") -> None:
    if counts:
        table.add_section()
    for name, count in counts.items():
        table.add_row(f"{title}: {escape(name)}", f"{count:,}", style=style)
