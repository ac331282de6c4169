"""``stats``: how texts, boxes and photos of a corpus are distributed."""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from data_tools.arguments import positive
from wholegrain.data.corpus import Corpus
from wholegrain.data.record import Record

_QUANTILES = {"min": 0.0, "median": 0.5, "95 %": 0.95, "max": 1.0}
_BARS = " ▁▂▃▄▅▆▇█"
_BINS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``stats``."""
    parser.add_argument("corpus", type=Path, help="corpus folder")
    parser.add_argument("--split", help="this split only")
    parser.add_argument("--sample", type=positive, metavar="N", help="read N spread records only")
    parser.add_argument("--top", type=positive, default=15, help="texts to list (default: 15)")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    corpus = Corpus.open(args.corpus).select(args.split)
    chosen = _spread(len(corpus), args.sample)
    console = Console()
    bar = track(chosen, "records", console=console, transient=True, disable=args.json)
    stats = collect(corpus.record(number) for number in bar)
    if args.json:
        print(json.dumps(stats.summary(args.top), ensure_ascii=False, indent=1))
        return 0
    console.print(_splits_table(stats))
    console.print(_spread_table(stats))
    for title, texts in stats.texts.items():
        if texts:
            console.print(_top_table(title, texts, args.top))
    return 0


@dataclass
class Stats:
    """Raw figures of the records read.

    ``values`` holds one number a text, box or photo under the name of the quantity; ``texts``
    counts lower-case texts of regions and objects; ``splits`` counts by split.
    """

    splits: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    texts: dict[str, Counter[str]] = field(
        default_factory=lambda: {"phrases": Counter(), "objects": Counter()}
    )

    def summary(self, top: int) -> dict[str, Any]:
        """All of it as plain JSON values; ``top`` texts of each kind."""
        return {
            "splits": {split: dict(counts) for split, counts in self.splits.items()},
            "quantities": {name: _quantiles(values) for name, values in self.values.items()},
            "top": {kind: dict(texts.most_common(top)) for kind, texts in self.texts.items()},
        }


def collect(records: Iterable[Record]) -> Stats:
    """Read the records once."""
    stats = Stats()
    values = stats.values
    for record in records:
        counts = stats.splits[record.split]
        counts["images"] += 1
        counts["captions"] += len(record.captions)
        values["image width px"].append(record.width)
        values["image height px"].append(record.height)
        values["caption words"].extend(len(text.split()) for text in record.captions)
        if record.regions:
            values["boxes in an image"].append(len(record.regions))
        for region in record.regions:
            kind = "objects" if region.grain == "object" else "phrases"
            counts["objects" if region.grain == "object" else "regions"] += 1
            counts[kind] += len(region.texts) if kind == "phrases" else 0
            stats.texts[kind].update(text.lower() for text in region.texts)
            if kind == "phrases":
                values["phrase words"].extend(len(text.split()) for text in region.texts)
            _, _, width, height = region.box
            share = 100 * width * height / (record.width * record.height)
            values[f"{region.grain} % of image"].append(share)
            values[f"{region.grain} width/height"].append(width / height)
    return stats


def _spread(count: int, sample: int | None) -> list[int]:
    if sample is None or sample >= count:
        return list(range(count))
    return [int(number) for number in np.linspace(0, count - 1, sample)]


def _quantiles(values: list[float]) -> dict[str, float]:
    found = np.quantile(values, list(_QUANTILES.values()))
    row = {name: round(float(value), 4) for name, value in zip(_QUANTILES, found, strict=True)}
    return {"count": len(values), "mean": round(float(np.mean(values)), 4), **row}


def _histogram(values: list[float]) -> str:
    """One bar a step between the 0th and 99th percentile; the far tail would flatten it."""
    low, high = np.quantile(values, [0, 0.99])
    step = (high - low) / _BINS
    if all(float(value).is_integer() for value in values):
        # Steps of whole numbers: others would catch now one, now two of them.
        low, step = low - 0.5, max(1.0, np.ceil((high - low + 1) / _BINS))
    bins = min(_BINS, int(np.ceil((high - low) / step))) if step > 0 else 1
    edges = low + step * np.arange(bins + 1)
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges if step > 0 else 1)
    levels = np.ceil(counts / max(1, counts.max()) * (len(_BARS) - 1)).astype(int)
    return "".join(_BARS[level] for level in levels)


def _table(*columns: str) -> Table:
    """A first column of names, then figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(columns[0], overflow="fold")
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _splits_table(stats: Stats) -> Table:
    names = ("images", "captions", "regions", "phrases", "objects")
    table = _table("split", *names)
    for split, counts in stats.splits.items():
        table.add_row(escape(split), *(f"{counts[name]:,}" for name in names))
    return table


def _spread_table(stats: Stats) -> Table:
    table = _table("quantity", "mean", *_QUANTILES)
    table.add_column("min to 99 %", no_wrap=True)
    for name, values in stats.values.items():
        if values:
            row = _quantiles(values)
            figures = (f"{row[key]:,.4g}" for key in ("mean", *_QUANTILES))
            table.add_row(name, *figures, _histogram(values))
    return table


def _top_table(kind: str, texts: Counter[str], top: int) -> Table:
    table = _table(f"{kind}: {len(texts):,} different", "count")
    for text, count in texts.most_common(top):
        table.add_row(escape(text), f"{count:,}")
    table.add_row("in all", f"{texts.total():,}", style="bold")
    return table
