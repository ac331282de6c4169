"""Stops a conversion in which too many samples are bad.

The verdict depends on the source alone, never on who wrote which part or when:

- Where the number of samples is known, the bad ones may be ``max_bad`` of it. One more, seen in
  whatever order, settles it.
- Where it is not, that holds of all samples and of those of each row of parts 0 .. k that has
  ``_ENOUGH_SEEN`` of them, so that a hopeless source does not have to be read to its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from data_tools.sources.base import Bad
from wholegrain.errors import DataError

_ENOUGH_SEEN = 10_000


class Judge:
    """Counts bad samples by cause, and keeps one example of each cause.

    Attributes:
        total: samples there will be; None if unknown.
    """

    def __init__(self, out: Path, max_bad: float, total: int | None) -> None:
        self.out, self.max_bad, self.total = out, max_bad, total
        self.causes: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._seen = 0

    def saw(self, seen: int, bad: Iterable[Bad]) -> None:
        """Takes some samples. DataError if the known total can no longer be met."""
        self._seen += seen
        for one in bad:
            self.causes[one.cause] += 1
            self._examples.setdefault(one.cause, one.detail)
        if self.total is not None:
            self._check(self.total)

    def saw_part(self, notes: dict[str, Any]) -> None:
        """Takes the next part, by its notes; parts come in order. DataError if all is lost."""
        self.saw(notes["seen"], (Bad(**one) for one in notes["skipped"]))
        if self.total is None and self._seen >= _ENOUGH_SEEN:
            self._check(self._seen)

    def finish(self) -> None:
        """DataError if there was no sample, or too many were bad."""
        if not self._seen:
            raise DataError(f"{self.out}: the source holds no sample; nothing is written")
        self._check(self._seen)

    def _check(self, total: int) -> None:
        bad = self.causes.total()
        if bad <= self.max_bad * total:
            return
        counted = ", ".join(f"{count} x {cause}" for cause, count in self.causes.most_common())
        examples = "".join(f"\n  {detail}" for detail in islice(self._examples.values(), 5))
        raise DataError(
            f"{bad} of {self._seen} samples are bad ({counted}), more than {self.max_bad:.1%} of "
            f"{total}; nothing is written to {self.out}. Mend the source, or raise --max-bad (what "
            f"is converted is used again then). For instance:{examples}"
        )
