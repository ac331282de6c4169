"""Every expression answered exactly once, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wholegrain.errors import DataError

_SHOWN = 3


class RollCall:
    """Counts answers against the ids that are wanted.

    What it holds grows with the number of wanted ids, not with what arrives: of ids that nobody
    asked for, only the first few are kept.

    Args:
        wanted: the ids, each once; None accepts any id, but each only once.
    """

    def __init__(self, wanted: Iterable[str] | None) -> None:
        self._wanted = None if wanted is None else dict.fromkeys(wanted)
        self._first: dict[str, int | None] = {}
        self._repeated: dict[str, str] = {}
        self._unknown: list[str] = []
        self._strangers = 0

    def answered(self, name: str, line: int | None = None) -> bool:
        """Notes an answer; False where it is a second one or was not wanted.

        Args:
            name: the expression's id.
            line: of the file, for the message.
        """
        if self._wanted is not None and name not in self._wanted:
            self._strangers += 1
            if len(self._unknown) < _SHOWN:
                self._unknown.append(name if line is None else f"{name} in line {line}")
            return False
        if name not in self._first:
            self._first[name] = line
            return True
        where = "" if line is None else f" in lines {self._first[name]} and {line}"
        self._repeated.setdefault(name, f"{name}{where}")
        return False

    def close(self, remedy: str, where: str = "") -> None:
        """Ends the call.

        Raises:
            DataError: names the first few ids that are missing, repeated or unknown, and `remedy`.
        """
        wanted = self._first if self._wanted is None else self._wanted
        missing = [name for name in wanted if name not in self._first]
        faults = [
            f"{count} {fault} ({', '.join(shown[:_SHOWN])}{', ...' * (count > _SHOWN)})"
            for fault, count, shown in (
                ("missing", len(missing), missing),
                ("answered more than once", len(self._repeated), list(self._repeated.values())),
                ("unknown", self._strangers, self._unknown),
            )
            if count
        ]
        if faults:
            raise DataError(
                f"{where}each of {len(wanted)} expressions needs one answer: {'; '.join(faults)}; "
                f"{remedy}"
            )


def check_complete(found: Iterable[str], wanted: Sequence[str], remedy: str) -> None:
    """Every wanted id exactly once and no other; DataError as `RollCall.close`."""
    roll = RollCall(wanted)
    for name in found:
        roll.answered(name)
    roll.close(remedy)
