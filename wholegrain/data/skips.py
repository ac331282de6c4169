"""Bad samples: counted by cause, logged sparingly, written down, and capped.

One broken photo must not end a run of a week, and a broken corpus must not pass for a good one.
Nothing here is saved with a checkpoint: after a resume the counts begin anew, and the margin for
chance keeps that from being stricter or laxer than going on.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from wholegrain.config import config
from wholegrain.errors import DataError

_log = logging.getLogger(__name__)

LISTED_AT_MOST = 100_000
"""Different bad samples that a ledger remembers and lists; further ones are only counted."""

# How far the bad ones among n samples of a corpus with just the allowed share stray by chance.
_SIGMAS = 4


@config
class SkipPolicy:
    """How many bad samples a run tolerates."""

    max_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Largest share of samples that may be bad. A run is stopped once those it has read show that
    the share is above it, with four standard deviations to spare for bad luck."""

    always_allowed: Annotated[int, Field(ge=0)] = 8
    """Bad samples (different ones) that never stop a run, so that the second sample of a run
    cannot."""

    log_lines: Annotated[int, Field(ge=0)] = 3
    """Log lines for each cause; later ones are only counted."""

    listed_file: Path | None = None
    """JSON-lines file to which each bad sample is added once a run; None keeps no list. Of several
    ranks each has its own: `bad.jsonl` becomes `bad.rank-00003.jsonl`."""


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
    Its memory is bounded, however many samples are bad.

    Args:
        rank, world: which of how many processes with a ledger each; names the listing file.
    """

    def __init__(self, policy: SkipPolicy, rank: int = 0, world: int = 1) -> None:
        self.policy = policy
        self.read = 0
        self.skipped = 0
        self.causes: Counter[str] = Counter()
        self.listed_file = _of_rank(policy.listed_file, rank, world)
        self._known: set[int] = set()
        self._room = max(LISTED_AT_MOST, policy.always_allowed + 1)

    def add(self, read: int, skips: Sequence[Skip]) -> None:
        """Takes note of `read` samples, among them `skips`.

        Raises:
            DataError: the cap is exceeded; names the counts, the last sample and the remedy.
        """
        self.read += read
        new = []
        for skip in skips:
            self.skipped += 1
            self.causes[skip.cause] += 1
            identity = hash((skip.part, skip.index))
            if identity not in self._known and len(self._known) < self._room:
                self._known.add(identity)
                new.append(skip)
            if self.causes[skip.cause] <= self.policy.log_lines:
                _log.warning("bad sample (%s) replaced: %s", skip.cause, skip.message)
        self._list(new)
        allowed = self.policy.max_share * self.read
        over = self.skipped > allowed + _SIGMAS * math.sqrt(allowed)
        if skips and over and len(self._known) > self.policy.always_allowed:
            raise DataError(self._too_many(skips[-1]))

    def summary(self) -> str:
        """Causes with their counts, the commonest first; empty if all was well."""
        return ", ".join(f"{cause} {count}" for cause, count in self.causes.most_common())

    def _list(self, skips: Sequence[Skip]) -> None:
        if self.listed_file is None or not skips:
            return
        lines = "".join(json.dumps(asdict(skip), ensure_ascii=True) + "\n" for skip in skips)
        try:
            self.listed_file.parent.mkdir(parents=True, exist_ok=True)
            # One write to a file that only grows: lines of two processes do not mix, and a killed
            # one leaves whole lines.
            file = os.open(self.listed_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(file, lines.encode())
            finally:
                os.close(file)
        except OSError as error:
            # The list is a help; the run is worth more.
            _log.warning(
                "%s: the list of bad samples cannot be written (%s) and is given up; they are "
                "counted all the same",
                self.listed_file,
                error.strerror,
            )
            self.listed_file = None

    def _too_many(self, last: Skip) -> str:
        where = f"; they are listed in {self.listed_file}" if self.listed_file else ""
        return (
            f"{self.skipped} of {self.read} samples read are bad "
            f"({100 * self.skipped / max(self.read, 1):.1f} %), more than max_share "
            f"{self.policy.max_share}: {self.summary()}. The last one: {last.message}{where}. "
            "Mend or leave out the samples and convert again (`python -m data_tools lint DIR` "
            "finds them), or raise max_share"
        )


def _of_rank(path: Path | None, rank: int, world: int) -> Path | None:
    if path is None or world == 1:
        return path
    return path.with_name(f"{path.stem}.rank-{rank:05d}{path.suffix}")
