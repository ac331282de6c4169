"""Two systems on the same expressions: is one better, or did the photos fall its way?

Both answer the same questions, so the difference is taken expression by expression and its interval
from resamples of the photos. That is far narrower than two intervals side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.metrics import RESAMPLES, Summary
from finetune.sheet import ALL, Sheet
from finetune.tables import column_heads, row_of


@dataclass(frozen=True)
class Comparison:
    """One evaluation less another."""

    summaries: dict[str, dict[str, Summary]]
    """Protocol -> slice -> the differences of the metrics."""
    won: dict[str, int]
    """Protocol -> expressions with a higher first mark: met by the one, missed by the other."""
    lost: dict[str, int]
    """Protocol -> expressions with a lower first mark."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            protocol: {
                "won": self.won[protocol],
                "lost": self.lost[protocol],
                **{name: summary.to_dict() for name, summary in groups.items()},
            }
            for protocol, groups in self.summaries.items()
        }

    def table(self, names: tuple[str, str]) -> str:
        """The differences as text, `names` being those of the two files."""
        lines = [f"{names[0]} less {names[1]}"]
        for protocol, groups in self.summaries.items():
            columns = list(groups[ALL].values)
            if len(lines) == 1:
                lines.append(column_heads(columns))
            lines.append(row_of(protocol, groups[ALL], columns, signed=True))
            lines.append(f"  won {self.won[protocol]}, lost {self.lost[protocol]} ({columns[0]})")
        protocol, groups = next(iter(self.summaries.items()))
        for name, summary in groups.items():
            if name != ALL:
                lines.append(row_of(f"  {name}", summary, list(summary.values), signed=True))
        lines.append("points; intervals: bootstrap over images of the paired difference, 95 %")
        return "\n".join(lines)


def compare(
    first: Sheet, second: Sheet, *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """What the first is better by.

    Args:
        first: its marks.
        second: those of the other, for the same expressions in any order.
        resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        DataError: the two are not about the same expressions, images and true boxes.
    """
    difference = first.minus(second)
    headline = {protocol: next(iter(rows.values())) for protocol, rows in difference.marks.items()}
    return Comparison(
        summaries=difference.summaries(resamples=resamples, seed=seed),
        won={protocol: int(np.count_nonzero(row > 0)) for protocol, row in headline.items()},
        lost={protocol: int(np.count_nonzero(row < 0)) for protocol, row in headline.items()},
    )
