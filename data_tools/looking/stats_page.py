"""The page of ``stats``: histograms, counts and frequent texts, in total and by split."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from data_tools.looking.collect import COUNTS, KINDS, QUANTITIES, Group, Quantity, Stats
from data_tools.looking.distribution import Distribution, bins_for
from data_tools.looking.histogram import MAX_BARS, Frame, histogram, shares
from data_tools.looking.page import write_page
from data_tools.looking.sample import Reading

if TYPE_CHECKING:
    from data_tools.looking.filters import RecordFilter
    from wholegrain.data.corpus import Corpus

_MAX_SPLITS = 8
"""Splits that can be looked at alone, the largest."""
_MAX_SOURCES = 20
_HEADROOM = 1.06


@dataclass(frozen=True, slots=True)
class View:
    """One histogram; ``svg`` is None where a split has no such value."""

    svg: Markup | None
    count: int = 0
    median: str = ""
    facts: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A quantity with its histograms: of all records, then of each split."""

    quantity: Quantity
    views: list[View]


@dataclass(frozen=True, slots=True)
class Rows:
    """Counts in a table, a row a name; ``share`` is of the photos, in %."""

    head: str
    columns: list[str]
    rows: list[tuple[str, list[int], float]]
    note: str


def write_stats_page(
    path: Path,
    corpus: Corpus,
    stats: Stats,
    reading: Reading,
    wanted: RecordFilter,
    seed: int,
    top: int,
) -> None:
    """Writes the page to ``path``; ``top`` texts of each kind."""
    splits = sorted(stats.splits, key=lambda name: -stats.splits[name].counts["images"])
    splits = splits[:_MAX_SPLITS] if len(splits) > 1 else []
    values = {
        "name": corpus.manifest["name"],
        "path": str(corpus.path),
        "split": corpus.split,
        "fingerprint": corpus.fingerprint,
        "seed": seed,
        "reading": reading,
        "wanted": wanted,
        "estimate": estimate(reading),
        "sampled": reading.read < reading.total,
        "splits": [(split, stats.splits[split].counts["images"]) for split in splits],
        "sections": sections(stats, splits),
        "tables": list(_tables(corpus, stats, reading, wanted)),
        "grains": [(KINDS[k], k, stats.text_summary(k)) for k, t in stats.texts.items() if t],
        "counts_tokens": stats.counts_tokens,
        "max_tokens": stats.max_tokens,
        "top": {kind: _frequent(stats, kind, top) for kind in KINDS},
        "rules": _view_rules(len(splits)),
    }
    write_page(path, "stats", values)


def sections(stats: Stats, splits: list[str]) -> dict[str, list[Chart]]:
    """The charts by part of the page, each with a view of all records and one of each split."""
    everything = stats.all()
    groups = [everything, *(stats.splits[split] for split in splits)]
    parts: dict[str, list[Chart]] = {}
    for name, values in everything.values.items():
        if values.cells:
            chart = _chart(QUANTITIES[name], values, groups)
            parts.setdefault(chart.quantity.about, []).append(chart)
    return parts


def estimate(reading: Reading) -> tuple[int, int]:
    """How many samples match in the whole, and half the width of its 95 % interval.

    The interval is that of a share in a sample without replacement.
    """
    sound = reading.read - reading.bad.total()
    share = reading.matched / max(1, sound)
    left = 1 - reading.read / max(1, reading.total)
    error = 1.96 * math.sqrt(share * (1 - share) / max(1, sound) * left)
    return round(share * reading.total), math.ceil(error * reading.total)


def _chart(quantity: Quantity, everything: Distribution, groups: list[Group]) -> Chart:
    bins = bins_for(everything, MAX_BARS)
    found = [group.values.get(quantity.name) for group in groups]
    drawn = [values for values in found if values is not None and values.cells]
    top = max(float(shares(values, bins).max()) for values in drawn)
    frame = Frame(bins, _HEADROOM * top, quantity.ratio)
    views = []
    for number, values in enumerate(found):
        if values is None or not values.cells:
            views.append(View(None))
            continue
        behind = everything if number else None
        row = {name: _written(value) for name, value in values.summary().items()}
        views.append(
            View(
                svg=histogram(quantity.title, values, frame, behind),
                count=values.count,
                median=row["median"],
                facts=_facts(row),
            )
        )
    return Chart(quantity, views)


def _facts(row: dict[str, str]) -> str:
    if row["min"] == row["max"]:
        return f"all of them {row['min']}"
    inner = f"nine in ten from {row['5 %']} to {row['95 %']}"
    return f"mean {row['mean']}, {inner}, all from {row['min']} to {row['max']}"


def _written(value: float) -> str:
    """Three significant digits, and whole numbers whole."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _tables(corpus: Corpus, stats: Stats, reading: Reading, wanted: RecordFilter) -> Iterable[Rows]:
    in_read = f"In the {reading.matched:,} records read" + (" that match." if wanted else ".")
    exact: dict[str, dict[str, int]] = corpus.manifest.get("split_counts", {})
    if exact and not wanted:
        rows = {s: c for s, c in exact.items() if corpus.split in (None, s)}
        yield _rows("split", rows, "Exact, from the corpus's manifest.")
    else:
        yield _rows("split", {s: group.counts for s, group in stats.splits.items()}, in_read)
    yield _rows("source", dict(stats.sources), in_read)


def _rows(head: str, counts: dict[str, Any], note: str) -> Rows:
    photos = sum(row.get("images", 0) for row in counts.values())
    columns = [name for name in COUNTS if any(row.get(name) for row in counts.values())]
    ordered = sorted(counts.items(), key=lambda item: -item[1].get("images", 0))
    rows = [
        (name, [row.get(c, 0) for c in columns], 100 * row.get("images", 0) / max(1, photos))
        for name, row in ordered[:_MAX_SOURCES]
    ]
    if len(ordered) > _MAX_SOURCES:
        note += f" The {_MAX_SOURCES} largest of {len(ordered):,}."
    return Rows(head, columns, rows, note)


def _frequent(stats: Stats, kind: str, top: int) -> list[tuple[str, int, float]]:
    """Texts with their count and the bar's length in % of the first; captions that recur only."""
    found = [(t, n) for t, n in stats.texts[kind].most_common(top) if n > 1 or kind != "captions"]
    return [(text, n, 100 * n / found[0][1]) for text, n in found]


def _view_rules(splits: int) -> Markup:
    """CSS that shows view 0, or the view of the split that is chosen."""
    rules = [".view:not(.v0) { display: none; }"]
    for number in range(1, splits + 1):
        chosen = f"main:has(#v{number}:checked)"
        rules.append(f"{chosen} .v0 {{ display: none; }} {chosen} .v{number} {{ display: block; }}")
    return Markup("\n".join(rules))
