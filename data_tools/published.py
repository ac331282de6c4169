"""The counts that publishers state of their sets, and how a corpus differs from them.

``published.csv`` has one row for a set, a split and a quantity, with the source of the figure. For
split, ``all`` stands for all of a set together, ``any`` for a set that was published undivided.
``rounded_to`` stands where the figure was published rounded (5.4 million), ``explained_by`` names
what readers leave out by rule and count (crowd boxes, say), ``note`` a known reason for another
number.
"""

from __future__ import annotations

import csv
import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TABLE = Path(__file__).with_name("published.csv")
_ALL = "all"
_ANY = "any"
_EXCLUDED = "excluded: "
# What `data_tools.mend` drops of any set, by the quantity that then lacks it.
_MENDED = {
    "captions": ("caption: ",),
    "objects": ("region: box outside", "region: box without area", "region: box not finite"),
    "images": (_EXCLUDED,),
}
_MENDED["regions"] = (*_MENDED["objects"], "region: without text")
_MENDED["phrases"] = (*_MENDED["regions"], "region: text")


@dataclass(frozen=True, slots=True)
class Published:
    """One row of the table."""

    split: str
    quantity: str
    count: int
    rounded_to: int
    explained_by: tuple[str, ...]
    note: str
    source: str


@functools.cache
def published_counts() -> dict[str, tuple[Published, ...]]:
    """The table by set."""
    found: dict[str, list[Published]] = {}
    with _TABLE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            published = Published(
                split=row["split"],
                quantity=row["quantity"],
                count=int(row["count"]),
                rounded_to=int(row["rounded_to"] or 1),
                explained_by=tuple(filter(None, row["explained_by"].split(";"))),
                note=row["note"],
                source=row["source"],
            )
            found.setdefault(row["set"], []).append(published)
    return {name: tuple(rows) for name, rows in found.items()}


def compare(name: str, manifest: dict[str, Any], left_out: Counter[str]) -> list[str]:
    """How a corpus differs from the published counts, a line each; empty if it does not.

    A difference that is made up of what ``left_out`` counts for it is none. So is a quantity of
    which the corpus holds nothing, such as captions where only boxes were converted, and a split
    that the user left out.

    Args:
        name: the set, as ``Source.published`` names it.
        manifest: with ``counts``, ``split_counts`` and ``source`` of a corpus' manifest.
        left_out: what was left out by rule.
    """
    rows = published_counts().get(name)
    if rows is None:
        return [f"no published counts for {name}"]
    lines: list[str] = []
    whole = _is_whole(manifest)
    for quantity in dict.fromkeys(row.quantity for row in rows):
        lines += _compare_quantity(
            name, [row for row in rows if row.quantity == quantity], manifest, left_out, whole
        )
    by_split = dict.fromkeys(row.split for row in rows if row.split not in (_ALL, _ANY))
    splits = manifest["split_counts"]
    if by_split and (other := [split for split in splits if split not in by_split]):
        lines.append(f"{name}: no published counts for split {', '.join(other)}")
    if whole and (missing := [split for split in by_split if split not in splits]):
        lines.append(f"{name}: nothing of split {', '.join(missing)}, which the set should have")
    return lines


def _is_whole(manifest: dict[str, Any]) -> bool:
    """Whether all that the files hold was asked for, which only some readers' inputs can say."""
    return manifest["source"].get("inputs", {}).get("split", _ANY) is None


def _compare_quantity(
    name: str,
    rows: list[Published],
    manifest: dict[str, Any],
    left_out: Counter[str],
    whole: bool,
) -> Iterator[str]:
    quantity = rows[0].quantity
    if not manifest["counts"][quantity]:
        return
    splits = manifest["split_counts"]
    here = {row.split: splits[row.split][quantity] for row in rows if row.split in splits}
    for row in rows:
        if row.split == _ANY or (row.split == _ALL and whole):
            here[row.split] = manifest["counts"][quantity]
    rows = [row for row in rows if row.split in here]
    explained = {cause: left_out[cause] for cause in left_out if _explains(cause, rows)}
    if not rows or _accounted(rows, here, sum(explained.values())):
        return
    for row in rows:
        if not _near(here[row.split], here[row.split], row):
            yield _line(name, row, here[row.split], explained, manifest)


def _explains(cause: str, rows: list[Published]) -> bool:
    return any(
        cause in row.explained_by or cause.startswith(_MENDED.get(row.quantity, ())) for row in rows
    )


def _accounted(rows: list[Published], here: dict[str, int], explained: int) -> bool:
    """Whether what was left out makes up the difference; it is not counted by split."""
    lacking = [row.count - here[row.split] for row in rows]
    if len(rows) == 1:
        return _near(here[rows[0].split], here[rows[0].split] + explained, rows[0])
    return min(lacking) >= 0 and sum(lacking) == explained


def _near(low: int, high: int, row: Published) -> bool:
    """Whether the published figure is ``high``, or rounds something of ``low`` .. ``high``."""
    if row.rounded_to == 1:
        return high == row.count
    slack = row.rounded_to / 2
    return low <= row.count + slack and high >= row.count - slack


def _line(
    name: str,
    row: Published,
    here: int,
    explained: dict[str, int],
    manifest: dict[str, Any],
) -> str:
    lacking = row.count - here
    about = "about " if row.rounded_to > 1 else ""
    where = name if row.split in (_ALL, _ANY) else f"{name} {row.split}"
    share = f"{abs(lacking) / row.count:.2%}"
    what = f"missing {lacking:,} ({share})" if lacking > 0 else f"{-lacking:,} more ({share})"
    reasons = [f"{count:,} x {cause}" for cause, count in explained.items() if count]
    if skipped := sum(manifest["source"].get("skipped", {}).values()):
        reasons.append(f"{skipped:,} bad samples skipped")
    if row.quantity != "images":
        excluded = sum(
            count
            for cause, count in manifest["source"].get("left_out", {}).items()
            if cause.startswith(_EXCLUDED)
        )
        reasons += [f"{excluded:,} photos excluded"] if excluded else []
    if len(manifest["split_counts"]) > 1 and reasons:
        reasons[0] = f"in all splits: {reasons[0]}"
    reasons += [row.note] if row.note else []
    why = f"; {'; '.join(reasons)}" if reasons else "; no reason is known"
    return f"{where} {row.quantity}: published {about}{row.count:,}, here {here:,}, {what}{why}"
