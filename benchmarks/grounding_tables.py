"""From kept runs to rows: means over seeds, paired differences, and both kinds of intervals.

Two questions are kept apart. Would another seed have said otherwise? Student's t interval over the
seeds' figures answers it, with few seeds widely. Would other photos have? A bootstrap over photos
answers that, of each expression's marks averaged over the seeds. Differences are paired: the same
seed, the same expressions.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

from benchmarks.grounding_cells import Kept
from benchmarks.grounding_recipes import FRESH, REFERENCE, STARTS, Recipes
from finetune.evaluate import evaluate_file
from finetune.metrics import RESAMPLES
from finetune.sheet import ALL, Sheet

Row = dict[str, Any]
METRICS = ("acc@0.5", "acc@0.75", "acc@0.9", "mean_iou")
PROTOCOL = "merged"
# Quantiles 0.975 of Student's t with 1, 2, ... degrees of freedom.
# fmt: off
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045,
)
# fmt: on


def over_seeds(values: Sequence[float]) -> Row:
    """Mean, least and greatest value, and the 95 % interval of the mean by Student's t.

    The interval is None for one seed, which says nothing of others.
    """
    found: Row = {"mean": fmean(values), "min": min(values), "max": max(values), "t_95": None}
    if len(values) > 1:
        # Beyond 30 seeds it falls to 1.96: the interval is then up to 4 % too wide.
        quantile = _T[len(values) - 2] if len(values) - 2 < len(_T) else _T[-1]
        half = quantile * stdev(values) / math.sqrt(len(values))
        found["t_95"] = [found["mean"] - half, found["mean"] + half]
    return found


@lru_cache(maxsize=256)
def sheet_of(predictions: Path) -> Sheet:
    """The marks of a run, of the merged box over all expressions."""
    sheet = evaluate_file(predictions, resamples=1).sheet
    marks = {PROTOCOL: sheet.marks[PROTOCOL]}
    return Sheet(sheet.questions, sheet.images, marks, {ALL: sheet.groups[ALL]})


def mean_sheet(sheets: Sequence[Sheet]) -> Sheet:
    """The mean of several sheets about the same expressions.

    Raises:
        DataError: they are about different ones.
    """
    first = sheets[0]
    # `minus` pairs expression with expression and refuses strangers: x - (x - y) is y in x's order.
    others = [first.minus(other).marks[PROTOCOL] for other in sheets[1:]]
    marks = {
        name: row - sum(other[name] for other in others) / len(sheets)
        for name, row in first.marks[PROTOCOL].items()
    }
    return Sheet(first.questions, first.images, {PROTOCOL: marks}, first.groups)


def photo_intervals(sheet: Sheet, resamples: int = RESAMPLES) -> dict[str, list[float]]:
    """The 95 % interval of each metric over photos."""
    summary = sheet.summaries(resamples=resamples)[PROTOCOL][ALL]
    return {name: list(summary.intervals[name]) for name in METRICS}


def rows_of(
    kept: Sequence[Kept], recipes: Recipes, costs: Mapping[str, Row], resamples: int = RESAMPLES
) -> list[Row]:
    """A row a host, method and start, in the recipes' order.

    Args:
        kept: finished runs of one data set.
        recipes: what they are of.
        costs: of each ``host.method``, see `grounding_cost`; may lack some.
        resamples: bootstrap draws.
    """
    runs: dict[tuple[str, str, str], dict[int, Kept]] = {}
    for one in kept:
        cell = one.cell
        runs.setdefault((cell.host, cell.method, cell.start), {})[cell.seed] = one
    order = [
        (host, method, start)
        for start in STARTS
        for host, method in recipes.pairs(recipes.hosts, recipes.methods)
    ]
    rows = []
    for host, method, start in (key for key in order if key in runs):
        seeds = runs[host, method, start]
        first = next(iter(seeds.values()))
        sheet = mean_sheet([sheet_of(one.predictions) for one in seeds.values()])
        photos = photo_intervals(sheet, resamples)
        figures = {
            name: {**over_seeds([one.figures[name] for one in seeds.values()])}
            | {"photos_95": photos[name], "seeds": [o.figures[name] for o in seeds.values()]}
            for name in METRICS
        }
        against = {
            other: found
            for other in recipes.methods[method].against
            if (found := difference(seeds, runs.get((host, other, start), {}), resamples))
        }
        rows.append(
            {
                "data": first.cell.data,
                "host": host,
                "method": method,
                "start": start,
                "title": recipes.methods[method].title,
                "seeds": sorted(seeds),
                "expressions": first.figures["expressions"],
                "photos": first.figures["images"],
                "figures": figures,
                "against": against,
                "seconds": fmean(one.seconds for one in seeds.values()),
                "cost": cost_of(costs, host, method),
            }
        )
    return rows


def difference(ours: Mapping[int, Kept], theirs: Mapping[int, Kept], resamples: int) -> Row:
    """What the one method is better by, metric by metric, of the seeds that both have.

    Empty where they share none.
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return {}
    paired = [
        sheet_of(ours[seed].predictions).minus(sheet_of(theirs[seed].predictions)) for seed in seeds
    ]
    photos = photo_intervals(mean_sheet(paired), resamples)
    return {
        name: {
            **over_seeds([ours[seed].figures[name] - theirs[seed].figures[name] for seed in seeds]),
            "photos_95": photos[name],
            "seeds": seeds,
        }
        for name in METRICS
    }


def cost_of(costs: Mapping[str, Row], host: str, method: str) -> Row | None:
    """A method's cost and how many parameters it has beyond the reference on its host."""
    found = costs.get(f"{host}.{method}")
    if found is None:
        return None
    reference = costs.get(f"{host}.{REFERENCE}")
    added = None if reference is None else found["parameters"] - reference["parameters"]
    return {**found, "parameters_added": added}


def csv_of(rows: Sequence[Row]) -> str:
    """The rows, one a line: shares in 0..1, seconds, bytes, multiply-adds."""
    lines = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _flat(row: Row) -> Row:
    line: Row = {name: row[name] for name in ("data", "host", "method", "start")}
    line["seeds"] = len(row["seeds"])
    line |= {name: row[name] for name in ("expressions", "photos")}
    for name in METRICS:
        line |= _flat_figure(name, row["figures"][name])
    for other, figures in row["against"].items():
        line |= _flat_figure(f"acc@0.5 less {other}", figures["acc@0.5"])
    cost = row["cost"]
    if cost is None:
        return line
    line |= {name: cost[name] for name in ("parameters", "parameters_used", "parameters_added")}
    for unit in ("macs", "seconds"):
        line |= {f"{unit} of {count}": value for count, value in cost[unit].items()}
    line |= {f"memory_{name}": value for name, value in cost.get("memory", {}).items()}
    if cost["kept"] is not None:
        line["kept"] = cost["kept"]["all"]
    return line


def _flat_figure(name: str, figure: Row) -> Row:
    line = {name: figure["mean"], f"{name} min": figure["min"], f"{name} max": figure["max"]}
    for interval in ("t_95", "photos_95"):
        low, high = figure[interval] or ("", "")
        line |= {f"{name} {interval} low": low, f"{name} {interval} high": high}
    return line


def table(rows: Sequence[Row], baselines: Mapping[str, Row], title: str) -> Table:
    """For the terminal, in %; baselines come last."""
    result = Table(title=f"{title}: accuracy in %")
    result.add_column("host")
    result.add_column("method")
    heads = [
        "start",
        "Acc@0.5",
        "seeds' t",
        "photos",
        "0.75",
        "0.9",
        "mean IoU",
        "less cross",
        "less mlp",
    ]
    heads += ["parameters added", "MMACs of 1, 16", "ms of 1, 16", "MiB", "read"]
    for head in heads:
        result.add_column(head, justify="right")
    for row in rows:
        figures = row["figures"]
        accuracy = figures["acc@0.5"]
        result.add_row(
            row["host"],
            row["title"],
            row["start"],
            f"{100 * accuracy['mean']:.1f}",
            _range(accuracy["t_95"]),
            _range(accuracy["photos_95"]),
            *(f"{100 * figures[name]['mean']:.1f}" for name in METRICS[1:]),
            *(_signed(row["against"].get(other)) for other in (REFERENCE, FRESH)),
            *_cost_cells(row["cost"]),
        )
    for name, one in baselines.items():
        cells = [f"{100 * one['acc@0.5']:.1f}", "", _range(one["interval_95"]["acc@0.5"])]
        cells += [f"{100 * one[metric]:.1f}" for metric in METRICS[1:]]
        result.add_row("", name, "", *cells)
    return result


def _cost_cells(cost: Row | None) -> list[str]:
    if cost is None:
        return []
    added = cost["parameters_added"]
    memory = cost.get("memory", {}).get("peak")
    return [
        "" if added is None else f"{added:,}",
        ", ".join(f"{value / 1e6:,.0f}" for value in cost["macs"].values()),
        ", ".join(f"{1000 * value:.1f}" for value in cost["seconds"].values()),
        "" if memory is None else f"{memory / 2**20:,.0f}",
        "" if cost["kept"] is None else f"{cost['kept']['all']:.0%}",
    ]


def _range(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.1f} .. {100 * interval[1]:.1f}"


def _signed(figures: Row | None) -> str:
    if figures is None:
        return ""
    figure = figures["acc@0.5"]
    low_high = figure["t_95"] or figure["photos_95"]
    low, high = (100 * bound for bound in low_high)
    return f"{100 * figure['mean']:+.1f} ({low:+.1f} .. {high:+.1f})"
