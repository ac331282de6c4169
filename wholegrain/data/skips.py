"""Bad samples: counted by cause, logged sparingly, written down, and capped.

One broken photo must not end a run of a week, and a broken corpus must not pass for a good one.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from wholegrain.config import config
from wholegrain.errors import DataError

_log = logging.getLogger(__name__)


@config
class SkipPolicy:
    """How many bad samples a run tolerates."""

    max_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Largest share of samples read so far that may be bad."""

    always_allowed: Annotated[int, Field(ge=0)] = 8
    """Bad samples (different ones) that never stop a run, so that the second sample of a run
    cannot."""

    log_lines: Annotated[int, Field(ge=0)] = 3
    """Log lines for each cause; later ones are only counted."""

    listed_file: Path | None = None
    """JSON-lines file to which each bad sample is added once; None keeps no list."""


@dataclass(frozen=True, slots=True)
class Skip:
    """One bad sample.

    Attributes:
        part: name of the corpus.
        index: sample of that corpus.
        cause: one or two words, by which skips are counted.
        message: names file, field and remedy.
    """

    part: str
    index: int
    cause: str
    message: str


class SkipLedger:
    """Counts samples and skips of one stream, in the process that consumes it.

    Workers report; only the ledger decides. So the decision is the same with any number of them.
    """

    def __init__(self, policy: SkipPolicy) -> None:
        self.policy = policy
        self.read = 0
        self.skipped = 0
        self.causes: Counter[str] = Counter()
        self._known: set[tuple[str, int]] = set()

    def add(self, read: int, skips: Sequence[Skip]) -> None:
        """Takes note of `read` samples, among them `skips`.

        Raises:
            DataError: the cap is exceeded; names the counts, the last sample and the remedy.
        """
        self.read += read
        for skip in skips:
            self.skipped += 1
            self.causes[skip.cause] += 1
            if (skip.part, skip.index) not in self._known:
                self._known.add((skip.part, skip.index))
                self._write(skip)
            if self.causes[skip.cause] <= self.policy.log_lines:
                _log.warning("bad sample (%s) replaced: %s", skip.cause, skip.message)
        over = self.skipped > self.policy.max_share * self.read
        if skips and over and len(self._known) > self.policy.always_allowed:
            raise DataError(self._too_many(skips[-1]))

    def summary(self) -> str:
        """Causes with their counts, the commonest first; empty if all was well."""
        return ", ".join(f"{cause} {count}" for cause, count in self.causes.most_common())

    def _write(self, skip: Skip) -> None:
        if self.policy.listed_file is None:
            return
        self.policy.listed_file.parent.mkdir(parents=True, exist_ok=True)
        with self.policy.listed_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(skip), ensure_ascii=False) + "\n")

    def _too_many(self, last: Skip) -> str:
        listed = self.policy.listed_file
        where = f"; all are listed in {listed}" if listed else ""
        return (
            f"{self.skipped} of {self.read} samples read are bad "
            f"({100 * self.skipped / max(self.read, 1):.1f} %), more than max_share "
            f"{self.policy.max_share}: {self.summary()}. The last one: {last.message}{where}. "
            "Mend or leave out the samples and convert again (`python -m data_tools lint DIR` "
            "finds them), or raise max_share"
        )
